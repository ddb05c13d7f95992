"""MoCoOp (reference methods_text.md)."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax.clip import unit
from coop_jax.methods import Batch, Images, Learned, Stage, mocoop
from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    relative,
    set_value,
    trajectory,
    value,
)
from recorded.learned_texts import moved
from recorded.texts import check_first_gradient, optimizer

NORM = "image_encoder.transformer.resblocks.{}.ln_{}.{}"


def parameters_of(case: Case) -> dict[str, Parameter]:
    """Return where what MoCoOp learns is here."""
    places = {
        "prompt_learner.w": Parameter("correction", None),
        "prompt_learner.gate.weight": Parameter("gate_kernel", transposed=True),
        "prompt_learner.gate.bias": Parameter("gate_bias"),
    }
    for number, before in enumerate(case.meta["n_ctx_before"]):
        path = f"experts.{number}.context"
        places[f"prompt_learner.ctx_before_{number}"] = Parameter(path, slice(0, before))
        places[f"prompt_learner.ctx_after_{number}"] = Parameter(path, slice(before, None))
    for layer in range(100):
        for number, norm in ((1, "attention"), (2, "mlp")):
            for name, part in (("weight", "scale"), ("bias", "bias")):
                recorded = NORM.format(layer, number, name)
                if f"init/{recorded}" in case:
                    places[recorded] = Parameter(f"norms.{norm}_{part}", layer)
    return places


def clip_norm(case: Case) -> float:
    """Return the norm to which the gradients of a case are clipped; 0 if they are not."""
    found = re.search(r"clipped to total norm (\d+(?:\.\d+)?)", case.meta["optimizer"])
    assert found or "clipped" not in case.meta["optimizer"]
    return float(found[1]) if found else 0.0


def first_gradient(case: Case, method: Any, pixels: np.ndarray) -> tuple[float, Any]:
    """Return the norm of the first batch's gradient, and a method that holds it, clipped."""
    first = case["order"][0]
    labels, weights = jnp.asarray(case["labels"][first]), jnp.ones(len(first))
    batch = Batch(Images(pixels=pixels[first]), labels, weights, jax.random.key(0))
    graph, learned, rest = nnx.split(method, Learned, ...)
    clip_graph, frozen = nnx.split(case.clip)

    def total(learned: Any) -> jax.Array:
        merged = nnx.merge(graph, learned, rest)
        clip = merged.adapt(nnx.merge(clip_graph, frozen), None)
        return sum(merged.losses(clip, merged.texts(clip, None), batch).values())

    gradient = jax.jit(jax.grad(total))(learned)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient)))
    factor = min(1, (clip_norm(case) or np.inf) / (norm + 1e-6))
    clipped = jax.tree.map(lambda leaf: leaf * factor, gradient)
    return norm, nnx.merge(graph, clipped, rest)


def check_tokens(case: Case, method: Any) -> None:
    """Compare where the feature of every prompt is read, and how many tokens are before it."""
    for expert, of_images, of_texts in zip(
        method.experts,
        case["tokenized_prompts"],
        case["tokenized_prompts_all_classes"],
        strict=True,
    ):
        for prompts, tokens in ((expert.of_images, of_images), (expert.of_texts, of_texts)):
            packing = prompts.packed.packing
            before = len(prompts.start) + prompts.shared_context + len(prompts.common)
            for label, row in enumerate(tokens):
                [at] = np.argwhere(np.asarray(packing.label) == label)
                places, end = np.asarray(packing.parts.places)[*at], packing.parts.end[*at]
                assert before + places.tolist().index(int(end)) == row.argmax()


@checks("mocoop")
def check_mocoop(case: Case) -> None:
    """Compare prototypes, the first gradient, the trajectory, router and logits, also of new."""
    meta = case.meta
    assert (meta["top_k"], meta["top2_increment"]) == (mocoop.CHOSEN, mocoop.TARGET)
    settings = {
        "groups": tuple(meta["groups"]),
        "prompts": tuple(meta["prompts"]),
        "text_weight": float(meta["text_loss_weight"]),
        "gate_weight": float(meta["gate_loss_weight"]),
        "other_names": tuple(meta["new_classnames"]),
        "chosen_alone": meta["batch_size"] < 4,
        "as_released": True,
    }
    method, pixels = case.create("mocoop", **settings), case.pixels()
    assert relative(method.prototypes[...], case["grouped_prototypes"]) < 1e-5
    for name in [name for name, array in case.arrays.items() if not array.size]:
        del case.arrays[name]
    parameters = parameters_of(case)
    for name, first in case.under("init").items():
        if "gate" not in name:
            np.testing.assert_array_equal(value(method, parameters[name]), first, err_msg=name)
        set_value(method, parameters[name], first)
    check_tokens(case, method)

    images = Images(pixels=pixels)
    norm, clipped = first_gradient(case, method, pixels)
    np.testing.assert_allclose(norm, case["grad_norm"][0], rtol=3e-5)
    check_first_gradient(case, method, parameters, clipped)

    norms, prompts = case["lr_groups"].T
    warm = meta["warmup_epochs"] * meta["steps_per_epoch"]
    np.testing.assert_allclose(norms[warm:], 0.1 * prompts[warm:], rtol=1e-6)
    config = dataclasses.replace(optimizer(case), clip_norm=clip_norm(case))
    for name, weight in (("text", "text_weight"), ("gate", "gate_weight")):
        case.arrays[f"loss_{name}"] = settings[weight] * case[f"loss_{name}"]
    terms = {"loss_ce": "cross_entropy", "loss_text": "texts", "loss_gate": "gate"}
    images_of = lambda wanted: Images(pixels=pixels[wanted[:, 1]])  # noqa: E731
    trajectory(case, method, parameters, Stage(optimizer=config), images_of, terms=terms)
    compare_logits(case, method, images)
    clip = method.adapt(case.clip, None)
    features = clip.encode_image(jnp.asarray(pixels))
    assert relative(features, case["image_features"]) < 1e-4
    assert relative(method.gate(unit(features))[0], case["eval_gate_logits"]) < 1e-4
    case._clip = None
    new = moved(case, "mocoop", method, **settings | {"other_names": ()})
    compare_logits(case, new, images, "new_logits")
