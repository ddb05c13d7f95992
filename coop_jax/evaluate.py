"""Evaluation: pad and mask, return sums, divide once."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int

from coop_jax import parallel
from coop_jax.clip import CLIP
from coop_jax.methods import Method, has_texts_per_image


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Over a whole split: micro top-1 accuracy and macro F1 in percent, unrounded."""

    accuracy: float
    macro_f1: float
    n_examples: int
    n_classes: int


@functools.lru_cache(maxsize=32)
def _compiled(method_graph: Any, clip_graph: Any, whole: NamedSharding, split: NamedSharding):
    def classes(state, frozen):
        return nnx.merge(method_graph, state).encode_classes(nnx.merge(clip_graph, frozen))

    def logits(state, frozen, classes, features):
        return nnx.merge(method_graph, state).logits(
            nnx.merge(clip_graph, frozen), classes, features
        )

    def sums(state, frozen, classes, features, labels, weights):
        scores = logits(state, frozen, classes, features)
        predicted = jnp.argmax(scores, axis=-1)
        correct = weights * (predicted == labels)
        zeros = jnp.zeros(scores.shape[-1])
        return {
            "correct": zeros.at[labels].add(correct),
            "labelled": zeros.at[labels].add(weights),
            "predicted": zeros.at[predicted].add(weights),
        }

    return (
        jax.jit(classes, out_shardings=whole),
        jax.jit(logits, in_shardings=(None, None, None, split), out_shardings=whole),
        jax.jit(sums, in_shardings=(None, None, None, split, split, split), out_shardings=whole),
    )


def _prepare(method: Any, clip: CLIP, mesh: Mesh):
    method_graph, state = nnx.split(method)
    clip_graph, frozen = nnx.split(clip)
    state = parallel.place(state, mesh)
    frozen = parallel.put(frozen, parallel.replicated(mesh))
    whole = parallel.replicated(mesh)
    split = whole if has_texts_per_image(method, clip) else parallel.over_data(mesh, 0)
    encode_classes, logits, sums = _compiled(method_graph, clip_graph, whole, split)
    return (state, frozen, encode_classes(state, frozen)), logits, sums, split


def logits(
    method: Method, clip: CLIP, features: Float[np.ndarray, "images embedding"], mesh: Mesh
) -> Float[np.ndarray, "images classes"]:
    """The method's float32 logits of these image features."""
    fixed, logits, _, split = _prepare(method, clip, mesh)
    padded = np.pad(features, ((0, parallel.padding(len(features), mesh)), (0, 0)), mode="edge")
    return np.asarray(logits(*fixed, parallel.put(padded, split)))[: len(features)]


def evaluate(
    method: Method,
    clip: CLIP,
    features: Float[np.ndarray, "images embedding"],
    labels: Int[np.ndarray, " images"],
    mesh: Mesh,
    *,
    batch_size: int = 1024,
) -> Metrics:
    """Accuracy as the official evaluator computes it (coop_protocol section 7).

    Ties go to the lowest label; macro F1 is the mean over the classes that the labels contain.
    Batches are padded with weight zero, so that the batch size (at most `batch_size`) changes
    nothing.
    """
    fixed, _, sums, split = _prepare(method, clip, mesh)
    batches = max(-(-len(labels) // batch_size), 1)
    batch_size = -(-len(labels) // batches)
    batch_size += parallel.padding(batch_size, mesh)
    totals = None
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        count = len(labels[part])
        pad = (0, batch_size - count)
        data = (
            np.pad(features[part], (pad, (0, 0)), mode="edge"),
            np.pad(labels[part], pad),
            np.pad(np.ones(count, np.float32), pad),
        )
        batch = sums(*fixed, *parallel.put(data, split))
        batch = {name: np.asarray(value, np.float64) for name, value in batch.items()}
        totals = batch if totals is None else {k: totals[k] + batch[k] for k in totals}
    assert totals is not None, "an empty split is refused where it is loaded"
    present = totals["labelled"] > 0
    f1 = 2 * totals["correct"] / np.maximum(totals["labelled"] + totals["predicted"], 1)
    return Metrics(
        accuracy=100 * float(totals["correct"].sum() / len(labels)),
        macro_f1=100 * float(f1[present].mean()),
        n_examples=len(labels),
        n_classes=len(present),
    )
