"""The features of a dataset's images: the pipeline's pixels through the frozen image tower."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from PIL import Image

from coop_jax import features
from coop_jax.clip import CLIP, preprocess
from coop_jax.data import pipeline
from coop_jax.data.examples import Examples
from coop_jax.provenance import digest


def encode(
    clip: CLIP,
    examples: Examples,
    transform: pipeline.Transform,
    requests: Int[np.ndarray, "images 2"],
    mesh: Mesh,
    *,
    seed: int,
    batch_size: int,
    cache: features.Cache | None = None,
    weights: Sequence[str] = (),
    described: Any = None,
) -> Float[np.ndarray, "images embedding"]:
    """Unnormalised float32 features of the requested (epoch, example) pairs.

    Args:
        clip: the frozen CLIP.
        examples: the images.
        transform: what makes pixels of an image, as `test_transform` or `training_transform` do.
        requests: rows of (epoch, example index).
        mesh: the devices.
        seed: of the augmentation.
        batch_size: images at once, over all devices.
        cache: where features are kept and sought.
        weights: with a cache, what tells the CLIP from others: a hash of its files, its dtype.
        described: with a cache, what tells the transform from others, as JSON takes it.

    Raises:
        InputError: an image cannot be decoded, or the cache's folder cannot be written.
    """

    def pixels_of(numbers: Int[np.ndarray, " images"], size: int) -> Iterator[np.ndarray]:
        return pipeline.pixels(examples, transform, requests[numbers], seed=seed, batch_size=size)

    def make() -> Float[np.ndarray, "images embedding"]:
        return features.encode(clip, pixels_of, len(requests), mesh, batch_size=batch_size)

    if cache is None:
        return make()
    images = examples.content, examples.indices.tolist(), *orientation_settings(examples)
    wanted = described, seed, requests.tolist()
    return cache.get(digest([*images, *weights, *pixel_settings(clip), *wanted]), make)


def pixel_settings(clip: CLIP) -> tuple[Any, ...]:
    """What a CLIP's pixels depend on besides the images and the transform."""
    return clip.config.vision.image_size, clip.config.mean, clip.config.std, preprocess.PILLOW


def orientation_settings(*splits: Examples) -> tuple[str, ...]:
    """What pixels depend on besides where images of a split are turned upright."""
    return ("upright",) if any(examples.upright for examples in splits) else ()


def once(count: int) -> Int[np.ndarray, "images 2"]:
    """Requests of every image once, in order."""
    return np.stack([np.zeros(count, int), np.arange(count)], axis=1)


def test_transform(clip: CLIP) -> pipeline.Transform:
    """The official test transform (coop_protocol section 3)."""
    size = clip.config.vision.image_size

    def transform(image: Image.Image, _: np.random.Generator) -> np.ndarray:
        return preprocess.resize_and_center_crop(image, size)

    return transform


def training_transform(clip: CLIP, augmentation: Mapping[str, Any]) -> pipeline.Transform:
    """The training transform with these settings of `preprocess.augment`."""
    size = clip.config.vision.image_size

    def transform(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return preprocess.augment(image, size, rng, **augmentation)

    return transform
