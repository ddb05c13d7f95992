"""From images to a method's logits and probabilities, whatever the images are and however many."""

import contextlib
import functools
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int

from coop_jax import evaluate, parallel
from coop_jax.clip import FeatureSpace
from coop_jax.data import features, memory
from coop_jax.data.examples import Examples, ImageCache
from coop_jax.data.memory import ImagesOrFeatures
from coop_jax.errors import InputError
from coop_jax.images import BATCH_SIZE, Encoder
from coop_jax.terminal import count_images

IMAGES_AT_ONCE = 1024
"""Image features that are classified at once."""


class Predictions(NamedTuple):
    """The findings of a predictor about images, some of which may be unreadable.

    Attributes:
        kept: the places of the readable images in what was given, ascending.
        probabilities: of each of them, over the classes.
        failures: what is wrong with each of the others, a line by place.
    """

    kept: Int[np.ndarray, " kept"]
    probabilities: Float32[np.ndarray, "kept classes"]
    failures: dict[int, str]


class Predictor:
    """A method that has learned, on all devices, with the CLIP that it has learned with."""

    def __init__(self, method: Any, clip: Any, *, encode_batch_size: int = BATCH_SIZE):
        """`encode_batch_size`: images that the frozen tower takes at once, over all devices.

        Raises:
            InputError: there are several processes, as on several hosts.
        """
        check_alone()
        self._method, self._clip = method, clip
        self._batch_size = encode_batch_size

    @functools.cached_property
    def _scorer(self) -> evaluate.Scorer:
        return evaluate.Scorer(self._method, self._clip, parallel.create_mesh())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_scorer"}

    def predict(self, images: ImagesOrFeatures | Examples) -> Predictions:
        """The probabilities of the images that can be read, and what is wrong with the others.

        Args:
            images: as `examples` takes them, or a split of a dataset.

        Raises:
            InputError: what is given are no images, or a logit is not finite.
        """
        examples, failures, found = self._examine(images)
        kept = np.setdiff1d(np.arange(len(examples)), sorted(failures))
        return Predictions(kept, softmax(found), failures)

    def logits(self, images: ImagesOrFeatures) -> Float32[np.ndarray, "images classes"]:
        """The logits of all images under the test transform.

        Raises:
            InputError: what is given are no images, some cannot be read: names all of them; or a
                logit is not finite.
        """
        examples, failures, found = self._examine(images)
        if len(failures) == 1:
            raise InputError(*failures.values())
        if failures:
            names = examples.file_names[list(failures)].tolist()
            raise InputError(
                f"expected {len(examples)} readable images, got {len(names)} that are not"
                f" ({', '.join(names)}); replace them, or use predict_many"
            )
        return found

    def examples(self, images: ImagesOrFeatures, split: str = "") -> Examples:
        """Return a list of images, or an array of features `[images, embedding]`, as a split.

        Args:
            images: what the method was learned from, one or the other.
            split: what messages call it; "" where there is none.

        Raises:
            InputError: they are neither, or the other.
        """
        if isinstance(self._clip, FeatureSpace):
            return features.examples(images, embedding=self._clip.config.embedding, split=split)
        return memory.examples(images, split=split)

    def logits_of(self, examples: Examples) -> Float32[np.ndarray, "images classes"]:
        """Return the logits of a split.

        Raises:
            InputError: an image cannot be read, or a logit is not finite.
        """
        return self._classify(replace(examples, cache=ImageCache(0)), set())

    def _examine(
        self, images: ImagesOrFeatures | Examples
    ) -> tuple[Examples, dict[int, str], np.ndarray]:
        """Return the images, what is wrong with those that cannot be read, the others' logits."""
        if not isinstance(images, Examples):
            images = self.examples(images)
        examples = replace(images, cache=ImageCache(0))
        forgiving = memory.Forgiving(examples)
        logits = self._classify(forgiving, forgiving.failures)
        return examples, dict(sorted(forgiving.failures.items())), logits

    def _classify(
        self, examples: Any, failures: Collection[int]
    ) -> Float32[np.ndarray, "images classes"]:
        """Return the logits of all images but those that turn out to be failures.

        A method that remembers test images sees none of earlier calls; those of a split in the
        order in which a run's results are recorded, others as they are given.
        """
        count, logits, seen = len(examples), [], []
        self._scorer.forget()
        order = self._scorer.order(count) if examples.split else np.arange(count)
        is_short = count <= self._batch_size
        with contextlib.nullcontext(_no_bar) if is_short else count_images(count, "images") as tell:
            encoder = Encoder(
                self._clip,
                parallel.create_mesh(),
                self._method.takes,
                batch_size=batch_rows(count, self._batch_size),
                tell=tell,
            )
            for start in range(0, max(count, 1), IMAGES_AT_ONCE):
                places = order[start : start + IMAGES_AT_ONCE]
                images = encoder.test_images(examples, places, self._method.views.test)
                good = ~np.isin(places, list(failures))
                images = jax.tree.map(lambda a, good=good: a[good], images)
                seen.append(places[good])
                logits.append(self._logits(images))
                self._scorer.check(logits[-1], images, examples.file_names[seen[-1]])
        return np.concatenate(logits)[np.argsort(np.concatenate(seen))]

    def _logits(self, images: Any) -> Float32[np.ndarray, "images classes"]:
        """Return logits of at most `IMAGES_AT_ONCE` images, padded to one of few sizes.

        Nothing is padded where it would be remembered.
        """
        count = len(jax.tree.leaves(images)[0])
        rows = count if self._scorer.remembers else batch_rows(count, IMAGES_AT_ONCE)
        pad = lambda a: np.concatenate([a, np.ones((rows - count, *a.shape[1:]), a.dtype)])  # noqa: E731
        return self._scorer.logits(jax.tree.map(pad, images))[:count]


def check_alone() -> None:
    """Refuse to be one of several processes, as on several hosts, or without a device.

    Raises:
        InputError: this is one of them, or JAX finds no device.
    """
    parallel.devices()
    if (processes := jax.process_count()) > 1:
        raise InputError(
            f"expected one process to learn or classify in, got {processes}; start it on one"
            " host, or train with coop_jax run --distributed"
        )


def _no_bar(images: int) -> None:
    del images


def batch_rows(count: int, most: int) -> int:
    """A batch for `count` images, `most` at once: one of few sizes, so that few are compiled."""
    return min(1 << max(count - 1, 0).bit_length(), most)


def softmax(logits: Float32[np.ndarray, "images classes"]) -> Float32[np.ndarray, "images classes"]:
    """Probabilities of the classes."""
    return np.asarray(_softmax(logits))


_softmax = jax.jit(functools.partial(jax.nn.softmax, axis=1))
