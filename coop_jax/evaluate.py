"""Evaluation: logits of batches or of a stream, and what is counted over them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int, Real

from coop_jax import finite, parallel
from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods import Images, Kept, Learned, Method


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Over a whole split: micro top-1 accuracy and macro F1 in percent, unrounded."""

    accuracy: float
    macro_f1: float
    n_examples: int
    n_classes: int


ImagesOf = Callable[[Int[np.ndarray, " images"]], Images]
"""From places among the test images to what the method takes of them."""

STREAM_SEED = 1
"""Of the order in which a method that remembers test images sees them."""


def in_memory(images: Images) -> ImagesOf:
    """Return a function that picks from images that are all there."""
    return lambda places: jax.tree.map(lambda array: array[places], images)


@functools.lru_cache(maxsize=32)
def compile_texts(method_graph: Any, clip_graph: Any, whole: NamedSharding) -> Callable[..., Any]:
    """Return a jitted `texts(state, frozen)`: all that does not depend on images."""

    def texts(state, frozen):
        method = nnx.merge(method_graph, state)
        return method.texts(method.adapt(nnx.merge(clip_graph, frozen), None), None)

    return jax.jit(texts, out_shardings=whole)


@functools.lru_cache(maxsize=32)
def compile_logits(
    method_graph: Any, clip_graph: Any, whole: NamedSharding, split: NamedSharding
) -> Callable[..., Any]:
    """Return a jitted `logits(state, frozen, texts, images)` of a batch laid out as `split`."""

    def logits(state, frozen, texts, images):
        method = nnx.merge(method_graph, state)
        return method.logits(method.adapt(nnx.merge(clip_graph, frozen), None), texts, images)

    return jax.jit(logits, in_shardings=(None, None, None, split), out_shardings=whole)


@functools.lru_cache(maxsize=32)
def compile_stream(method_graph: Any, clip_graph: Any, whole: NamedSharding) -> Callable[..., Any]:
    """Return a jitted `stream(state, frozen, texts, images, memory) -> (logits, memory)`."""

    def stream(state, frozen, texts, images, memory):
        method = nnx.merge(method_graph, state)
        clip = method.adapt(nnx.merge(clip_graph, frozen), None)

        def see(memory, image):
            logits, memory = method.stream(clip, texts, image, memory)
            return memory, logits[0]

        one_by_one = jax.tree.map(lambda array: array[:, None], images)
        memory, logits = jax.lax.scan(see, memory, one_by_one)
        return logits, memory

    return jax.jit(stream, out_shardings=whole)


class Scorer:
    """A method on the devices, with all that does not depend on images computed once.

    A method that remembers test images does so from call to call, in `memory`, until `forget`.
    """

    def __init__(self, method: Method, clip: CLIP, mesh: Mesh):
        self._method = method
        method_graph, state = nnx.split(method)
        clip_graph, frozen = nnx.split(clip)
        self.mesh, whole = mesh, parallel.replicated(mesh)
        state, frozen = parallel.place(state, mesh), parallel.put(frozen, whole)
        with jax.threefry_partitionable(True):
            texts = compile_texts(method_graph, clip_graph, whole)(state, frozen)
        self._constant, self._clip = (state, frozen, texts), clip
        self._start = self.memory = parallel.put(method.start_stream(), whole)
        self.remembers = bool(jax.tree.leaves(self.memory))
        per_image = method.texts_per_image or self.remembers
        self._split = whole if per_image else parallel.over_data(mesh, 0)
        self._logits = (
            compile_stream(method_graph, clip_graph, whole)
            if self.remembers
            else compile_logits(method_graph, clip_graph, whole, self._split)
        )

    def forget(self) -> None:
        """Begin a new stream of test images."""
        self.memory = self._start

    def order(self, count: int) -> Int[np.ndarray, " images"]:
        """Return in which order the images of a split are seen: drawn, where that matters."""
        order = np.arange(count)
        return np.random.default_rng(STREAM_SEED).permutation(order) if self.remembers else order

    def logits(self, images: Images) -> Float[np.ndarray, "images classes"]:
        """Return the float32 logits of images."""
        if self.remembers:
            images = parallel.put(images, self._split)
            logits, self.memory = self._logits(*self._constant, images, self.memory)
            return np.asarray(logits)
        count = len(jax.tree.leaves(images)[0])
        more = parallel.padding(count, self.mesh)

        def pad(array: np.ndarray) -> np.ndarray:
            return np.pad(array, ((0, more), *((0, 0),) * (array.ndim - 1)), mode="edge")

        padded = parallel.put(jax.tree.map(pad, images), self._split)
        with jax.threefry_partitionable(True):
            return np.asarray(self._logits(*self._constant, padded))[:count]

    def check(
        self, logits: Float[np.ndarray, "images classes"], images: Images, names: Sequence[str]
    ) -> None:
        """Refuse logits that are not finite.

        Args:
            logits: of the images.
            images: as many, or more.
            names: of as many images as there are logits.

        Raises:
            InputError: the line names the first such image, and why.
        """
        faulty = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(faulty):
            first = int(faulty[0])
            more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
            image = jax.tree.map(lambda array: array[first], images)
            learned = nnx.to_pure_dict(nnx.state(self._method, nnx.Any(Learned, Kept)))
            raise InputError(
                f"{names[first]}{more}: expected finite logits, got"
                f" {logits[first][~np.isfinite(logits[first])][0]}:"
                f" {finite.cause(self._clip, image, learned)}"
            )


def logits(
    method: Method, clip: CLIP, images: Images, mesh: Mesh
) -> Float[np.ndarray, "images classes"]:
    """Return the method's float32 logits of these images."""
    return Scorer(method, clip, mesh).logits(images)


def evaluate(
    method: Method,
    clip: CLIP,
    images_of: ImagesOf,
    labels: Int[np.ndarray, " images"],
    mesh: Mesh,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = 1024,
) -> Metrics:
    """Return the accuracy as the official evaluator computes it (coop_protocol section 7).

    Args:
        method: what is evaluated.
        clip: the frozen CLIP.
        images_of: the test images.
        labels: of every test image.
        mesh: the devices.
        names: of the test images, for errors.
        batch_size: images at once at most; it changes nothing.

    Raises:
        InputError: a logit is not finite.
    """
    names = [f"test image {index}" for index in range(len(labels))] if names is None else names
    return measure(*classify(method, clip, images_of, names, mesh, batch_size=batch_size), labels)


def classify(
    method: Method,
    clip: CLIP,
    images_of: ImagesOf,
    names: Sequence[str],
    mesh: Mesh,
    *,
    batch_size: int = 1024,
) -> tuple[Int[np.ndarray, " images"], int]:
    """Return the likeliest class of every test image, and the number of classes.

    Ties go to the lowest label. A method that remembers test images sees them in an order that
    depends on nothing but their number. The arguments are those of `evaluate`.

    Raises:
        InputError: a logit is not finite.
    """
    scorer, count = Scorer(method, clip, mesh), len(names)
    order = scorer.order(count)
    batches = max(-(-count // batch_size), 1)
    batch_size = -(-count // batches)
    predicted, classes = np.empty(count, np.int64), 0
    for start in range(0, count, batch_size):
        places = order[start : start + batch_size]
        # The last batch is filled up, so that one size is compiled.
        filled = np.resize(places, batch_size) if not scorer.remembers else places
        images = images_of(filled)
        logits = scorer.logits(images)[: len(places)]
        scorer.check(logits, images, [names[int(place)] for place in places])
        predicted[places], classes = logits.argmax(axis=1), logits.shape[1]
    return predicted, classes


def measure(
    predicted: Int[np.ndarray, " images"], classes: int, labels: Int[np.ndarray, " images"]
) -> Metrics:
    """Return what is counted over predictions; macro F1 is `macro_f1`."""
    count = functools.partial(np.bincount, minlength=classes)
    return Metrics(
        accuracy=100 * float(np.mean(predicted == labels)),
        macro_f1=macro_f1(count(labels[predicted == labels]), count(labels), count(predicted)),
        n_examples=len(labels),
        n_classes=classes,
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
