"""PLOT and PLOT++ (reference methods_text.md)."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import clip as clip_package
from coop_jax.clip import unit
from coop_jax.methods import Data, Images, Stage, create, cross_entropy, recipe, transport
from recorded.case import Case, Parameter, checks, relative, split, value
from recorded.learned_texts import compare_training
from recorded.texts import CONTEXT, check_tokens, frozen_images, optimizer

CLOSE = 1e-5


def check_sinkhorn(case: Case) -> None:
    """Refuse a case of other constants than those here."""
    recorded = {key: case.meta["sinkhorn"][key] for key in ("eps", "max_iter", "thresh")}
    assert recorded == {
        "eps": transport.REGULARISATION,
        "max_iter": transport.MOST_STEPS,
        "thresh": transport.ENOUGH,
    }


def check_plans(case: Case, images: Any, texts: Any, expected: np.ndarray) -> None:
    """Compare the plans of all images and classes, image by image."""
    cosines = jnp.einsum("bre,nce->bcrn", unit(images), unit(texts), precision="highest")
    parts = [cosines[some] for some in case.evaluated(len(cosines))]
    plans = np.concatenate([transport.plans(part, stop_together=True) for part in parts])
    assert relative(plans.reshape(expected.shape), expected) < CLOSE


@checks("plot")
def check_plot(case: Case) -> None:
    """Compare a case of PLOT, or of its forward pass on given features alone."""
    check_sinkhorn(case)
    if "clip" in case.meta:
        check_training(case)
    else:
        check_features(case)


def check_training(case: Case) -> None:
    """Compare patches, tokens, the trajectory, plans and logits of a case with a CLIP."""
    meta = case.meta
    assert not (meta["csc"] or meta["ctx_init"]) and meta["class_token_position"] == "end"
    method = case.create(
        "plot",
        prompts=meta["n_prompts"],
        n_ctx=meta["n_ctx"],
        global_logits=meta["add_global_logits"],
        stop_together=True,
    )
    patches = np.asarray(case.clip.vision.patches(jnp.asarray(case.pixels())))
    assert relative(unit(jnp.asarray(patches)), unit(jnp.asarray(case["local_features"]))) < CLOSE
    images = frozen_images(case)._replace(patches=patches)
    everyone = case["tokenized_prompts"].reshape(meta["n_prompts"], len(meta["classnames"]), -1)
    assert (everyone == everyone[:1]).all()
    case.arrays["tokenized_prompts"] = everyone[0]
    check_tokens(case, method)
    compare_training(case, method, CONTEXT, Stage(optimizer=optimizer(case)), images)
    texts = method.texts(case.clip, None)
    expected = case["final_text_features"]
    assert relative(unit(texts), unit(jnp.asarray(expected))) < 3e-5
    check_plans(case, jnp.asarray(patches), texts, case["eval_plan"])


def check_features(case: Case) -> None:
    """Compare plans, logits, the loss, and its gradients by all features."""
    images, texts = (jnp.asarray(case[f"{name}_features"]) for name in ("local", "text"))
    check_plans(case, images, texts, case["plan"])
    space: Any = clip_package.FeatureSpace(images.shape[-1], case.meta["logit_scale"])
    embedded, tokenizer = clip_package.load("tiny")
    settings = {
        "prompts": len(texts),
        "global_logits": case.meta["add_global_logits"],
        "stop_together": True,
    }
    names = tuple(f"class {label}" for label in range(texts.shape[1]))
    method = create("plot", embedded, tokenizer, names, settings)

    def loss(local: Any, text: Any, whole: Any) -> tuple[Any, Any]:
        logits = method.logits(space, text, Images(patches=local, features=whole))
        labels = jnp.asarray(case["labels"])
        return cross_entropy(logits, labels, jnp.ones(len(labels))), logits

    features = images, texts, jnp.asarray(case["image_feature"])
    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, logits), gradients = compute(*features)
    np.testing.assert_allclose(value, case["loss"][0], rtol=CLOSE)
    assert relative(logits, case["eval_logits"]) < 3e-5
    names = ("local_features", "text_features", "image_feature")
    for name, gradient in zip(names, gradients, strict=True):
        expected = case[f"grad_{name}"]
        np.testing.assert_allclose(
            gradient, expected, atol=3e-5 * max(np.abs(expected).max(), 1e-9), err_msg=name
        )


PLOT_PLUS_PLUS = {"ctx": Parameter("context"), "ctx_vision": Parameter("image_context")}


def phrase_of(case: Case, prompts: np.ndarray) -> str:
    """Return the words in front of the class names, behind which are a full stop and the end."""
    words, name = case.tokenizer.words(), case.meta["classnames"][0].replace("_", " ")
    before = int(prompts[0].argmax()) - 1 - len(case.tokenizer.ids(name))
    pieces = [words[token] for token in prompts[0, 1:before]]
    return "".join(piece.removesuffix("-") + " " * (piece[-1] != "-") for piece in pieces).strip()


def stage_of(case: Case, number: int) -> Case:
    """Return a stage of a case, counted from 1, as a case of its own."""
    part, before = copy.copy(case), len(case["order_stage1"]) * (number - 1)
    steps = len(case[f"order_stage{number}"])
    part.arrays = {"images": case["images"], "labels": case["labels"]}
    part.arrays |= case.under(f"stage{number}")
    part.arrays |= {f"init/{name}": a for name, a in case.under("init").items() if number == 1}
    part.arrays["lr"] = case["lr"][before : before + steps]
    for name in ("order", "loss"):
        part.arrays[name] = case[f"{name}_stage{number}"]
    part.arrays["eval_logits"] = case["eval_logits" if number == 2 else "eval_logits_stage1"]
    return part


@checks("plotpp")
def check_plot_plus_plus(case: Case) -> None:
    """Compare phrases, tokens, both stages, and the features of both towers in the end."""
    check_sinkhorn(case)
    meta, count = case.meta, len(case.meta["classnames"])
    assert meta["ctx_init"] and not meta["csc"] and meta["class_token_position"] == "end"
    tokens = case["tokenized_prompts"].reshape(meta["n_prompts"], count, -1)
    method = case.create(
        "plot_plus_plus",
        context_inits=tuple(phrase_of(case, prompts) for prompts in tokens),
        image_prompts=meta["n_vision_prompts"],
        n_image_ctx=meta["n_ctx_vision"],
        stop_together=True,
    )
    np.testing.assert_array_equal(method.context[...], case["init/ctx"])
    for prompts, places in zip(method.prompts, method.alike, strict=True):
        for place in places:
            case.arrays["tokenized_prompts"] = tokens[place]
            check_tokens(case, SimpleNamespace(prompts=prompts, context=method.context))

    images, data = Images(pixels=case.pixels()), Data(split(case["labels"], Images()))
    config = recipe("plot_plus_plus") | {"batch_size": meta["batch_size"], "optimizer": {}}
    for number, described in enumerate(method.stages(config), start=1):
        part = stage_of(case, number)
        method.prepare(case.clip, number - 1, data)
        stage = dataclasses.replace(described, optimizer=optimizer(part))
        epochs = meta["epochs"][number - 1]
        compare_training(part, method, PLOT_PLUS_PLUS, stage, images, epochs=epochs)
    for name, expected in case.under("final").items():
        assert relative(value(method, PLOT_PLUS_PLUS[name]), expected) < 1e-4, name
    features = method.encode(case.clip, jnp.asarray(images.pixels))
    assert relative(jnp.moveaxis(features, 1, 0), case["image_features"]) < 3e-5
    texts = method.texts(case.clip, None)
    assert relative(unit(texts), unit(jnp.asarray(case["final_text_features"]))) < 3e-5
