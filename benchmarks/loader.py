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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import measure
import models
import numpy as np
from PIL import Image

from coop_jax import images, parallel
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
    parser.add_argument("--steps", type=int, default=9, help="measurements of each")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--encode", type=int, default=128, help="images of the end-to-end run")
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


def alternately(
    calls: Mapping[str, Callable[[], None]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds on the clock and of the processor of each call, in rounds, after one to warm up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(repeats + 1):
        for name, call in calls.items():
            processor = time.process_time()
            clock = measure.seconds(call)
            if number:
                found[name].append((clock, time.process_time() - processor))
    return found


def compare(
    calls: Mapping[str, Callable[[], None]], images: int, repeats: int
) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Rows for the table, and the record, of calls that read so many images; the first is ours.

    Per core means per second of the processor, whatever else runs on the machine. Ratios of the
    first to each are medians of the rounds' own, with the smallest and the largest.
    """
    found = alternately(calls, repeats)
    first = np.array(next(iter(found.values())))
    rows, record = [], {}
    for name, seconds in found.items():
        clock, processor = images / np.median(seconds, axis=0)
        ratios = (np.array(seconds) / first)[:, 1]
        low, middle, high = ratios.min(), np.median(ratios), ratios.max()
        rows.append((name, float(clock), float(processor), f"{middle:.2f} ({low:.2f}-{high:.2f})"))
        record[name] = {
            "images_per_second": clock,
            "images_per_second_per_core": processor,
            "ratio_of_ours": [low, middle, high],
        }
    return rows, record


class Timed:
    """An iterator that measures how long its caller waits for it, and the devices with the caller.

    Attributes:
        first: seconds until the first batch.
        blocked: seconds that the caller waited for the others.
        idle: seconds of those in which no device had anything to do.
        begun: when the first batch was there.
    """

    def __init__(self, batches: Iterator[np.ndarray]):
        self._batches, self._executor = batches, ThreadPoolExecutor(1)
        self.first = self.blocked = self.idle = self.begun = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        unfinished = [array for array in jax.live_arrays() if not array.is_ready()]
        start = time.perf_counter()
        finished = self._executor.submit(finish, unfinished)
        batch = next(self._batches)
        end = time.perf_counter()
        if not self.begun:
            self.first, self.begun = end - start, end
            return batch
        self.blocked += end - start
        if finished.done():
            self.idle += end - max(start, finished.result())
        return batch


def finish(arrays: Sequence[jax.Array]) -> float:
    """Wait for the arrays; when they were there."""
    jax.block_until_ready(arrays)
    return time.perf_counter()


def waiting(chosen: argparse.Namespace, examples: Examples) -> dict[str, float]:
    """An end-to-end run of the image tower: images per second, and who waits for the pixels.

    The shares are of the time from the first batch to the end. `blocked`: the host waits for
    pixels, while the device may still work on the batches before. `device_waits`: the host waits
    for pixels and the device has nothing left to do. `slower`: by how much the run takes longer
    than on pixels that are in memory already.
    """
    clip = models.create_clip(chosen.backbone, chosen.dtype)
    mesh = parallel.create_mesh(jax.devices()[:1])
    some = examples.subset(np.arange(min(chosen.encode, len(examples))))
    size = clip.config.vision.image_size

    def load() -> Iterator[np.ndarray]:
        transform = lambda image, rng: preprocess.augment(image, size, rng)  # noqa: E731
        return ours(some, chosen.batch, chosen.threads, transform)

    ready = list(load())

    def encode(batches: Iterable[np.ndarray], count: int = len(some)) -> float:
        return measure.seconds(
            lambda: images.encode(clip, lambda *_: batches, count, mesh, batch_size=chosen.batch)
        )

    encode(ready, min(chosen.batch, len(some)))
    computing = encode(ready)
    timed = Timed(load())
    total = encode(timed)
    steady = time.perf_counter() - timed.begun
    return {
        "images_per_second": len(some) / total,
        "first_batch_seconds": timed.first,
        "blocked": timed.blocked / steady,
        "device_waits": timed.idle / steady,
        "slower": total / computing - 1,
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the tables and the record; the record."""
    chosen = parse(arguments)
    device = models.choose_device(chosen.device or "gpu")
    name, transform = official_transform()
    with tempfile.TemporaryDirectory() as folder:
        examples = write_images(Path(folder), chosen.images)
        calls = {
            "ours, no thread": lambda: drain(ours(examples, 256, 0)),
            f"official ({name})": lambda: official(examples, transform),
            f"ours, {chosen.threads} threads": lambda: drain(ours(examples, 256, chosen.threads)),
        }
        rows, loading = compare(calls, chosen.images, chosen.steps)
        waited = waiting(chosen, examples)
    columns = ("side", "images/s", "images/s per core", "of ours to it, per core")
    measure.show("JPEG to augmented pixels", columns, rows)
    end = (chosen.backbone, device, *waited.values())
    measure.show("end to end, image tower", ("backbone", "device", *waited), [end])
    record = {
        "loading": loading,
        "end_to_end": {"backbone": chosen.backbone, "device": device, **waited},
    }
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
