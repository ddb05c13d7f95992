"""PLOT and PLOT++ (reference methods_text.md)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import clip as clip_package
from coop_jax.clip import unit
from coop_jax.methods import Images, Stage, create, cross_entropy, transport
from recorded.case import Case, checks, relative
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


def check_plans(images: Any, texts: Any, expected: np.ndarray) -> None:
    """Compare the plans of all images and classes, image by image."""
    cosines = jnp.einsum("bre,nce->bcrn", unit(images), unit(texts), precision="highest")
    plans = np.asarray(transport.plans(cosines, stop_together=True))
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
    check_plans(jnp.asarray(patches), texts, case["eval_plan"])


def check_features(case: Case) -> None:
    """Compare plans, logits, the loss, and its gradients by all features."""
    images, texts = (jnp.asarray(case[f"{name}_features"]) for name in ("local", "text"))
    check_plans(images, texts, case["plan"])
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
