"""Learned texts (reference methods_text.md)."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax import states, train
from coop_jax.methods import Batch, Data, Images, Learned, Stage, gallop
from coop_jax.methods.upl import most_confident
from coop_jax.optim import OptimizerConfig
from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    relative,
    split,
    trajectory,
    value,
)

CONTEXT = {"ctx": Parameter("context")}


def optimizer(case: Case) -> OptimizerConfig:
    """Return what the case was trained with.

    Right after the warm-up the learning rate is highest: all others follow from it.
    """
    settings = dict(re.findall(r"(\w+)=([\d.]+(?:e-?\d+)?)", case.meta["optimizer"]))
    return OptimizerConfig(
        learning_rate=float(case["lr"].max()),
        momentum=float(settings["momentum"]),
        weight_decay=float(settings["weight_decay"]),
        warmup_epochs=case.meta.get("warmup_epochs", 1),
    )


def frozen_images(case: Case) -> Images:
    """Return the features of the case's images, which agree with the recorded ones."""
    features = case.features()
    assert relative(features, case["image_features"]) < 1e-5
    return Images(features=features)


def check_tokens(case: Case, method: Any) -> None:
    """Compare the tokens of every class's prompt, where no context vector stands.

    The recorded ones are in the order in which the context is in front of the class name; where it
    is elsewhere, they are compared in any order.
    """
    prompts, n_ctx = method.prompts, method.context.shape[-2]
    packing, inserted = prompts.packed.packing, prompts.inserted
    for label, tokens in enumerate(case["tokenized_prompts"]):
        [at] = np.argwhere(np.asarray(packing.label) == label)
        places, within = (
            np.asarray(array)[*at]
            for array in (
                packing.parts.places,
                packing.parts.within,
            )
        )
        laid = (*at[:2], places[within])
        got = np.asarray(prompts.packed.tokens[...])[laid]
        if inserted is not None:
            got = got[np.asarray(inserted[...])[laid] < 0]
        got = np.concatenate([prompts.common[...], got])
        expected = tokens[1 + n_ctx : tokens.argmax() + 1]
        if case.meta["class_token_position"] != "end":
            got, expected = np.sort(got), np.sort(expected)
        np.testing.assert_array_equal(got, expected)


def gradients(case: Case, method: Any, images: Images, key: Any = None) -> tuple[Any, Any]:
    """Return the step's gradient of the first batch, by parameter, and that of each term."""
    graph, learned, kept, fixed = nnx.split(method, Learned, states.STAYS, ...)
    first = case["order"][0]
    labels, weights = jnp.asarray(case["labels"][first]), jnp.ones(len(first))
    batch = Batch(jax.tree.map(lambda array: array[first], images), labels, weights, key)

    def terms(learned: Any) -> tuple[Any, Any]:
        merged = nnx.merge(graph, learned, kept, fixed)
        return merged.losses(case.clip, merged.texts(case.clip, None), batch), kept

    _, _, gradient = jax.jit(lambda learned: method.gradient(terms, learned))(learned)
    return gradient, jax.jit(jax.jacrev(lambda learned: terms(learned)[0]))(learned)


def check_first_gradient(
    case: Case, method: Any, parameters: dict[str, Parameter], gradient: Any
) -> None:
    """Compare the step's gradient of the first batch with what the optimizer was handed."""
    for name, expected in case.under("grad0").items():
        assert relative(value(gradient, parameters[name]), expected) < 3e-5, name


def check_prompts(case: Case, method: Any, images: Images, **options: Any) -> None:
    """Compare tokens, the trajectory of the context, and the last logits."""
    check_tokens(case, method)
    images_of = lambda wanted: jax.tree.map(lambda array: array[wanted[:, 1]], images)  # noqa: E731
    stage = Stage(optimizer=optimizer(case))
    trajectory(case, method, CONTEXT, stage, images_of, **options)
    compare_logits(case, method, images)


def start(case: Case, method: Any) -> None:
    """Set the context to the recorded first values, which words give to the bit."""
    first = case["init/ctx"]
    if case.meta["ctx_init"]:
        np.testing.assert_array_equal(method.context[...], first)
    assert method.context.shape == first.shape
    method.context[...] = jnp.asarray(first)


@checks("kgcoop")
def check_kgcoop(case: Case) -> None:
    """Compare a case of KgCoOp, whose official code starts from these words for any phrase."""
    meta = case.meta
    method = case.create(
        "kgcoop",
        n_ctx=meta["n_ctx"],
        context_init="a photo of a" if meta["ctx_init"] else "",
        class_specific=meta["csc"] and not meta["ctx_init"],
        weight=float(meta["kg_weight"]),
    )
    images = frozen_images(case)
    start(case, method)
    assert relative(method.bank[...], case["text_bank"]) < 1e-5
    gradient, _ = gradients(case, method, images)
    check_first_gradient(case, method, CONTEXT, gradient)
    case.arrays["loss_kg"] = meta["kg_weight"] * case["loss_kg"]
    terms = {"loss_ce": "cross_entropy", "loss_kg": "knowledge"}
    check_prompts(case, method, images, terms=terms)


@checks("prograd")
def check_prograd(case: Case) -> None:
    """Compare a case of ProGrad, whose `loss` is the cross-entropy alone."""
    meta = case.meta
    method = case.create(
        "prograd",
        n_ctx=meta["n_ctx"],
        from_template=bool(meta["ctx_init"]),
        class_specific=meta["csc"] and not meta["ctx_init"],
        projection=float(meta["lambda"]),
        temperature=float(meta["T"]),
    )
    images = frozen_images(case)
    start(case, method)
    assert relative(method.bank[...], case["text_bank"]) < 1e-5
    zero_shot = method.logits(case.clip, method.bank[...], images)
    assert relative(zero_shot, case["zeroshot_logits"]) < 3e-5
    gradient, of_terms = gradients(case, method, images)
    check_first_gradient(case, method, CONTEXT, gradient)
    of_labels, general = (
        np.asarray(of_terms[term]["context"][...], np.float64).ravel()
        for term in ("cross_entropy", "distillation")
    )
    cosine = of_labels @ general / np.linalg.norm(of_labels) / np.linalg.norm(general)
    np.testing.assert_allclose(cosine, case["cos"][0], atol=1e-4)
    check_prompts(
        case,
        method,
        images,
        terms={"loss_ce": "cross_entropy", "loss_kl": "distillation"},
        differentiated="cross_entropy",
    )


@checks("upl")
def check_upl(case: Case) -> None:
    """Compare a case of UPL: its pseudo-labels, and CoOp's training on them."""
    meta = case.meta
    method = case.create(
        "upl",
        n_ctx=meta["n_ctx"],
        class_specific=meta["csc"],
        class_token_position=meta["class_token_position"],
        pseudo_shots=meta["shots_per_pseudo_class"],
    )
    images = frozen_images(case)
    probabilities = np.asarray(method.probabilities(images))
    np.testing.assert_allclose(probabilities, case["bank_probs"][0], atol=1e-5)
    softmax = jax.nn.softmax(case["zeroshot_logits"])
    np.testing.assert_allclose(probabilities, softmax, atol=1e-5)

    together = np.mean([probabilities, *case["bank_probs"][1:]], axis=0)
    np.testing.assert_allclose(together, case["mean_probs"], atol=1e-5)
    labels, confidence = together.argmax(1), together.max(1)
    chosen = most_confident(labels, confidence, meta["shots_per_pseudo_class"])
    np.testing.assert_array_equal(chosen, case["selected"])
    np.testing.assert_array_equal(labels[chosen], case["selected_label"])
    np.testing.assert_allclose(confidence[chosen], case["selected_conf"], atol=1e-5)
    pseudo = np.full(len(labels), -1)
    pseudo[chosen] = labels[chosen]
    np.testing.assert_array_equal(pseudo, case["labels"])

    unlabeled = split(np.full(len(labels), -1), images)
    train_on = method.prepare(case.clip, 0, Data(unlabeled, unlabeled=unlabeled)).train
    alone = case["bank_probs"][0]
    own = most_confident(alone.argmax(1), alone.max(1), meta["shots_per_pseudo_class"])
    np.testing.assert_array_equal(train_on.labels, alone.argmax(1)[own])
    np.testing.assert_array_equal(train_on.images().features, images.features[own])
    start(case, method)
    gradient, _ = gradients(case, method, images)
    check_first_gradient(case, method, CONTEXT, gradient)
    check_prompts(case, method, images)


GALLOP = {
    "global_prompt": Parameter("global_context"),
    "local_prompts": Parameter("local_context"),
    "local_proj.linear.weight": Parameter("projection", transposed=True),
}


def recorded_draws(case: Case) -> Any:
    """Return `gallop.draw` with what the official code drew at the step that a key belongs to."""
    words = jnp.asarray(train.step_keys(0, len(case["order"])))
    keys = jax.vmap(lambda words: train.keys_of(words)[2])(words)
    recorded = case["global_keep_index"]

    def draw(key: Any, images: int, keep: int, prompts: int) -> Any:
        assert recorded.shape[1:] == (images, keep) and recorded.max() < prompts
        of_step = (jax.random.key_data(keys) == jax.random.key_data(key)).all(axis=-1)
        return jnp.asarray(recorded)[jnp.argmax(of_step)]

    return draw


@contextmanager
def drawing_as_recorded(case: Case) -> Iterator[None]:
    """Train with the recorded draws; programs that draw otherwise are compiled anew."""
    train.compile_steps.cache_clear()
    with mock.patch.object(gallop, "draw", recorded_draws(case)):
        yield
    train.compile_steps.cache_clear()


@checks("gallop")
def check_gallop(case: Case) -> None:
    """Compare a case of GalLoP, with the prompts that its official code drew for each image."""
    meta, clip = case.meta, case.clip
    method = case.create(
        "gallop",
        global_prompts=meta["n_global_prompts"],
        local_prompts=meta["n_local_prompts"],
        context_init=meta["template"].replace("{}", " ").strip(),
        top_k=tuple(meta["topk"]),
        dropout=float(meta["global_dropout_p"]),
        names_as_given=True,
    )
    for name, first in case.under("init").items():
        np.testing.assert_array_equal(value(method, GALLOP[name]), first)
    local = np.asarray(clip.vision.local(jnp.asarray(case.pixels())))
    assert relative(local, case["local_features_pre"]) < 1e-5
    images = frozen_images(case)._replace(local=local)
    stage = Stage(optimizer=optimizer(case))
    assert stage.optimizer.weight_decay == gallop.recipe()["optimizer"]["weight_decay"]
    with drawing_as_recorded(case):
        key = train.keys_of(jnp.asarray(train.step_keys(0, 1)[0]))[2]
        gradient, _ = gradients(case, method, images, key)
        check_first_gradient(case, method, GALLOP, gradient)
        images_of = lambda wanted: jax.tree.map(lambda array: array[wanted[:, 1]], images)  # noqa: E731
        terms = {"loss_global": "global", "loss_local": "local"}
        trajectory(case, method, GALLOP, stage, images_of, terms=terms)
    compare_logits(case, method, images)

    texts, scale = method.texts(clip, None), np.exp(clip.logit_scale[...])
    for kind, features in (("global", texts.whole), ("local", texts.patches)):
        recorded = np.moveaxis(case[f"final_text_features_{kind}"], 1, 0)
        assert relative(features, recorded) < 3e-5, kind
    whole, patches = method.whole(texts, images), method.most_similar(clip, texts, images)
    assert relative(whole, case["eval_global_sims"]) < 3e-5
    for name, logits in {
        "eval_probs_global": scale * whole.mean(axis=-1),
        "eval_probs_local": scale * patches.mean(axis=-1),
        "eval_probs": method.logits(clip, texts, images),
    }.items():
        np.testing.assert_allclose(jax.nn.softmax(logits), case[name], atol=1e-5, err_msg=name)
    scores = gallop.gl_mcm(method, clip, texts, images)
    np.testing.assert_allclose(scores, case["gl_mcm_scores"], rtol=1e-5)
