"""Images decoded and augmented per second and core, and how long the device waits; see README.md.

python benchmarks/loader.py
"""

import argparse
import io
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import measure
import models
import numpy as np
from PIL import Image

from coop_jax import features, parallel
from coop_jax.clip import preprocess
from coop_jax.clip.config import OPENAI_MEAN, OPENAI_STD
from coop_jax.data import pipeline
from coop_jax.data.examples import Examples, FileSource, ImageCache

SIZE = 224
BICUBIC = Image.Resampling.BICUBIC


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="JPEG files to make and read")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of our pipeline")
    parser.add_argument("--steps", type=int, default=3, help="measurements of each")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--encode", type=int, default=64, help="images of the end-to-end run")
    parser.add_argument("--batch", type=int, default=16, help="images of a batch of that run")
    return parser.parse_args(arguments)


def write_images(folder: Path, count: int) -> Examples:
    """JPEG files of about 500 x 375 pixels and 50 kB, smooth shapes with some grain."""
    rng, names = np.random.default_rng(0), []
    for number in range(count):
        width, height = 500 + int(rng.integers(-40, 41)), 375 + int(rng.integers(-40, 41))
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), BICUBIC), np.float32)
        grain = rng.normal(scale=6, size=smooth.shape)
        pixels = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        Image.fromarray(pixels).save(folder / names[-1], quality=85)
    paths = np.array(names)
    labels = np.zeros(count, np.int32)
    # No cache: every image is decoded every time.
    return Examples(
        FileSource(folder, paths), "train", labels, paths, np.arange(count), ImageCache(0)
    )


def our_transform(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """The training transform of coop_jax."""
    return preprocess.augment(image, SIZE, rng)


def ours(
    examples: Examples,
    batch: int,
    threads: int,
    transform: pipeline.Transform = our_transform,
) -> Iterator[np.ndarray]:
    """Our pipeline over all examples."""
    requests = np.stack([np.zeros(len(examples), int), np.arange(len(examples))], axis=1)
    return pipeline.pixels(examples, transform, requests, seed=0, batch_size=batch, threads=threads)


def official_transform() -> tuple[str, Callable[[Image.Image], Any]]:
    """The official one, by torchvision where it can be imported, and what it is called."""
    try:
        from torchvision import transforms  # pyright: ignore
        from torchvision.transforms import InterpolationMode  # pyright: ignore
    except (ImportError, RuntimeError):
        return "Pillow and NumPy, as torchvision", plain_transform
    chain = (
        transforms.RandomResizedCrop(SIZE, interpolation=InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(OPENAI_MEAN, OPENAI_STD),
    )
    return "torchvision", transforms.Compose(chain)


def plain_transform(image: Image.Image) -> np.ndarray:
    """What torchvision's transforms do to a Pillow image: float32 `[3, 224, 224]`."""
    top, left, height, width = plain_box(*image.size)
    image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scaled = np.ascontiguousarray(np.array(image).transpose(2, 0, 1)).astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.asarray(OPENAI_MEAN, np.float32)[:, None, None]
    scaled /= np.asarray(OPENAI_STD, np.float32)[:, None, None]
    return scaled


def plain_box(width: int, height: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop's top, left, height and width; the whole image after ten misses."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, height - h), random.randint(0, width - w), h, w
    return 0, 0, height, width


def official(examples: Examples, transform: Callable[[Image.Image], Any]) -> None:
    """One worker of the official loader: read, decode, transform, one image after the other."""
    for index in range(len(examples)):
        with io.BytesIO(examples.source[index]["image"]) as file:
            transform(Image.open(file).convert("RGB"))


def drain(batches: Iterable[np.ndarray]) -> None:
    """Ask for every batch."""
    for _ in batches:
        pass


class Timed:
    """An iterator that adds up the seconds that its caller waits for it."""

    def __init__(self, batches: Iterator[np.ndarray]):
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        start = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - start


def waiting(chosen: argparse.Namespace, examples: Examples) -> dict[str, float]:
    """An end-to-end run of the image tower: seconds, and the shares that nobody computes.

    `blocked` is the host's share of time in waiting for pixels, while the device may still work
    on the batches before; `device_waits` is by how much the run is longer than on pixels that are
    in memory already.
    """
    clip = models.create_clip(chosen.backbone, chosen.dtype)
    mesh = parallel.create_mesh(jax.devices()[:1])
    some = examples.subset(np.arange(min(chosen.encode, len(examples))))
    size = clip.config.vision.image_size

    def load() -> Iterator[np.ndarray]:
        transform = lambda image, rng: preprocess.augment(image, size, rng)  # noqa: E731
        return ours(some, chosen.batch, chosen.threads, transform)

    ready = list(load())

    def encode(batches: Iterable[np.ndarray]) -> float:
        return measure.seconds(
            lambda: features.encode(
                clip, lambda *_: batches, len(some), mesh, batch_size=chosen.batch
            )
        )

    encode(ready)
    computing = encode(ready)
    timed = Timed(load())
    total = encode(timed)
    return {
        "seconds": total,
        "blocked": timed.seconds / total,
        "device_waits": max(0.0, 1 - computing / total),
        "images_per_second": len(some) / total,
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; the record."""
    chosen = parse(arguments)
    device = models.choose_device(chosen.device or "gpu")
    name, transform = official_transform()
    with tempfile.TemporaryDirectory() as folder:
        examples = write_images(Path(folder), chosen.images)
        calls = {
            "ours, one core": lambda: drain(ours(examples, 256, 0)),
            f"official ({name}), one core": lambda: official(examples, transform),
            f"ours, {chosen.threads} threads": lambda: drain(ours(examples, 256, chosen.threads)),
        }
        drain(ours(examples.subset(np.arange(min(32, chosen.images))), 32, 0))
        official(examples, transform)
        seconds = measure.alternately(calls, chosen.steps)
        waited = waiting(chosen, examples)
    cores = (1, 1, min(chosen.threads, os.cpu_count() or 1))
    per_core = [chosen.images / s / n for s, n in zip(seconds.values(), cores, strict=True)]
    rows = [(call, rate * n, rate) for call, rate, n in zip(seconds, per_core, cores, strict=True)]
    measure.show("JPEG to augmented pixels", ("side", "images/s", "images/s per core"), rows)
    end = (chosen.backbone, device, *waited.values())
    measure.show("end to end, image tower", ("backbone", "device", *waited), [end])
    record = {
        "official": name,
        "images_per_second_per_core": dict(zip(seconds, per_core, strict=True)),
        "ratio": per_core[0] / per_core[1],
        "ratio_threads": per_core[2] / per_core[1],
        "end_to_end": {"backbone": chosen.backbone, "device": device, **waited},
    }
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
