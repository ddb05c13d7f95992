"""Evaluation: pad and mask, return sums, divide once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int, Real

from coop_jax import parallel
from coop_jax.clip import CLIP
from coop_jax.methods import Method


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Over a whole split: micro top-1 accuracy and macro F1 in percent, unrounded."""

    accuracy: float
    macro_f1: float
    n_examples: int
    n_classes: int


@functools.lru_cache(maxsize=32)
def compile_classes(method_graph: Any, clip_graph: Any, whole: NamedSharding) -> Callable[..., Any]:
    """A jitted `classes(state, frozen)`: all that does not depend on images."""

    def classes(state, frozen):
        return nnx.merge(method_graph, state).encode_classes(nnx.merge(clip_graph, frozen))

    return jax.jit(classes, out_shardings=whole)


@functools.lru_cache(maxsize=32)
def compile_evaluation(
    method_graph: Any, clip_graph: Any, whole: NamedSharding, split: NamedSharding
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Jitted functions of what `compile_classes` gives: `logits` and `sums`.

    `logits(state, frozen, classes, features)` and `sums(..., labels, weights)` take a batch that is
    laid out as `split`; sums are of the correct, the labelled and the predicted, class by class.
    """

    def logits(state, frozen, classes, features):
        return nnx.merge(method_graph, state).logits(
            nnx.merge(clip_graph, frozen), classes, features
        )

    def sums(state, frozen, classes, features, labels, weights):
        scores = logits(state, frozen, classes, features)
        predicted = jnp.argmax(scores, axis=-1)
        correct = jnp.where(predicted == labels, weights, 0)
        zeros = jnp.zeros(scores.shape[-1], jnp.float32)
        return {
            "correct": zeros.at[labels].add(correct),
            "labelled": zeros.at[labels].add(weights),
            "predicted": zeros.at[predicted].add(weights),
        }

    return (
        jax.jit(logits, in_shardings=(None, None, None, split), out_shardings=whole),
        jax.jit(sums, in_shardings=(None, None, None, split, split, split), out_shardings=whole),
    )


class Scorer:
    """A method on the devices, with all that does not depend on images computed once."""

    def __init__(self, method: Method, clip: CLIP, mesh: Mesh):
        method_graph, state = nnx.split(method)
        clip_graph, frozen = nnx.split(clip)
        whole = parallel.replicated(mesh)
        state, frozen = parallel.place(state, mesh), parallel.put(frozen, whole)
        classes = compile_classes(method_graph, clip_graph, whole)(state, frozen)
        self._fixed = state, frozen, classes
        per_image = not jax.tree.leaves(classes)
        self.mesh, self._split = mesh, whole if per_image else parallel.over_data(mesh, 0)
        self._logits, self._sums = compile_evaluation(method_graph, clip_graph, whole, self._split)

    def logits(
        self, features: Float[np.ndarray, "images embedding"]
    ) -> Float[np.ndarray, "images classes"]:
        """Float32 logits of image features."""
        padding = ((0, parallel.padding(len(features), self.mesh)), (0, 0))
        padded = parallel.put(np.pad(features, padding, mode="edge"), self._split)
        return np.asarray(self._logits(*self._fixed, padded))[: len(features)]

    def sums(
        self,
        features: Float[np.ndarray, "images embedding"],
        labels: Int[np.ndarray, " images"],
        weights: Float[np.ndarray, " images"],
    ) -> dict[str, Float[np.ndarray, " classes"]]:
        """What of a batch that the devices can split evenly is correct, labelled and predicted."""
        data = parallel.put((features, labels, weights), self._split)
        sums = self._sums(*self._fixed, *data)
        return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def logits(
    method: Method, clip: CLIP, features: Float[np.ndarray, "images embedding"], mesh: Mesh
) -> Float[np.ndarray, "images classes"]:
    """The method's float32 logits of these image features."""
    return Scorer(method, clip, mesh).logits(features)


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

    Ties go to the lowest label; macro F1 is `macro_f1`.
    Batches are padded with weight zero, so that the batch size (at most `batch_size`) changes
    nothing.
    """
    scorer = Scorer(method, clip, mesh)
    batches = max(-(-len(labels) // batch_size), 1)
    batch_size = -(-len(labels) // batches)
    batch_size += parallel.padding(batch_size, mesh)
    totals = None
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        count = len(labels[part])
        pad = (0, batch_size - count)
        batch = scorer.sums(
            np.pad(features[part], (pad, (0, 0)), mode="edge"),
            np.pad(labels[part], pad),
            np.pad(np.ones(count, np.float32), pad),
        )
        totals = batch if totals is None else {k: totals[k] + batch[k] for k in totals}
    assert totals is not None, "an empty split is refused where it is loaded"
    return Metrics(
        accuracy=100 * float(totals["correct"].sum() / len(labels)),
        macro_f1=macro_f1(**totals),
        n_examples=len(labels),
        n_classes=len(totals["labelled"]),
    )


def macro_f1(
    correct: Real[np.ndarray, " classes"],
    labelled: Real[np.ndarray, " classes"],
    predicted: Real[np.ndarray, " classes"],
) -> float:
    """The mean F1 of the classes that have labels, in percent (coop_protocol section 7).

    Args:
        correct: images of each class that are predicted rightly.
        labelled: images of each class.
        predicted: images that are taken for each class.
    """
    f1 = 2 * correct / np.maximum(labelled + predicted, 1)
    return float(100 * f1[labelled > 0].mean())
