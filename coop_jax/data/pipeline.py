"""The one way for pixels to flow: requests in, batches of pixels out, read by Grain's threads."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from coop_jax.data.examples import Examples
from coop_jax.errors import InputError

Transform = Callable[[Image.Image, np.random.Generator], UInt8[np.ndarray, "height width 3"]]

# Requests that a thread serves at a time: Grain's cost per element (about 0.2 ms) is then 1 % of
# the images' own, and all threads work on the first batch.
_CHUNK = 16


def pixels(
    examples: Examples,
    transform: Transform,
    requests: Int[np.ndarray, "requests 2"],
    *,
    seed: int,
    batch_size: int,
    threads: int | None = None,
) -> Iterator[UInt8[np.ndarray, "batch height width 3"]]:
    """Read, decode and transform the requested images, in the order of the requests.

    The transform's random numbers are keyed by (seed, epoch, the image's place in its split) alone:
    the pixels of a request are the same for every batch size, order, number of threads and subset
    that holds the image, and in every process.

    Args:
        examples: the images; an example index is a position in this object.
        transform: turns a decoded image, which it must not modify, and a generator into pixels; is
            called from several threads.
        requests: one row (epoch, example index) per wanted image.
        seed: non-negative seed of the augmentation.
        batch_size: images per batch; the last batch may have fewer.
        threads: reading threads; one per core, at most 16, by default. 0 reads in the caller's
            thread.

    Returns:
        An iterator of uint8 batches. Closing it stops the threads.

    Raises:
        InputError: at once, if a request is outside the examples or a number is negative; while
            iterating, if an image cannot be decoded (names the file and the split).
    """
    requests = np.asarray(requests)
    _check(requests, len(examples), seed, batch_size)
    if threads is None:
        threads = min(os.cpu_count() or 1, 16)
    return _batches(examples, transform, requests, seed, batch_size, threads)


def example_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one example in one epoch: a Philox stream of their own.

    Args:
        seed: non-negative seed, less than 2**64.
        epoch: non-negative epoch, counted from 0.
        index: non-negative example index.

    Returns:
        A generator whose stream depends on the three numbers only.
    """
    key = np.array((seed, epoch), np.uint64)
    # The highest word of the counter: 2**192 blocks of four numbers lie between two examples.
    counter = np.array((0, 0, 0, index), np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _batches(
    examples: Examples,
    transform: Transform,
    requests: np.ndarray,
    seed: int,
    batch_size: int,
    threads: int,
) -> Iterator[np.ndarray]:
    keys = examples.indices.tolist()
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    made: dict[int, np.ndarray] = {}

    def serve(place: tuple[int, int]) -> int:
        number, start = place
        chunk = slice(start, start + _CHUNK)
        images = [
            transform(examples.image(index), example_generator(seed, epoch, keys[index]))
            for epoch, index in batches[number][chunk].tolist()
        ]
        # Into the batch itself: to join the chunks afterwards costs 5 % of all the time.
        shape = len(batches[number]), *images[0].shape
        np.stack(images, out=made.setdefault(number, np.empty(shape, np.uint8))[chunk])
        return len(images)

    places = [(n, i) for n, batch in enumerate(batches) for i in range(0, len(batch), _CHUNK)]
    ahead = threads + -(-batch_size // _CHUNK)
    with contextlib.closing(_each(serve, places, threads, ahead)) as served:
        for number, batch in enumerate(batches):
            left = len(batch)
            while left:
                left -= next(served)
            yield made.pop(number)


def _each(
    serve: Callable[[tuple[int, int]], int],
    places: list[tuple[int, int]],
    threads: int,
    ahead: int,
) -> Generator[int, None, None]:
    """Yield serve(place) for each place in turn, made by Grain's threads unless it is one alone."""
    if len(places) <= 1:
        yield from map(serve, places)
        return
    import grain  # takes longer than one chunk

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    served = iter(grain.MapDataset.source(places).map(serve).to_iter_dataset(options))
    with contextlib.closing(served):
        yield from served


def _check(requests: np.ndarray, count: int, seed: int, batch_size: int) -> None:
    if requests.ndim != 2 or requests.shape[1] != 2 or requests.dtype.kind not in "iu":
        raise InputError(
            "expected integer requests [requests, 2] of (epoch, example index), got "
            f"{requests.dtype} {list(requests.shape)}; stack the two columns"
        )
    if requests.size and not 0 <= requests[:, 1].min() <= requests[:, 1].max() < count:
        raise InputError(
            f"expected example indices from 0 to {count - 1}, got {requests[:, 1].min()} to "
            f"{requests[:, 1].max()}; request examples that there are"
        )
    if seed < 0 or (requests.size and requests[:, 0].min() < 0):
        raise InputError(
            f"expected a seed and epochs of at least 0, got seed {seed} and epochs from "
            f"{requests[:, 0].min() if requests.size else 0}; count from 0"
        )
    if batch_size < 1:
        raise InputError(f"expected at least 1 image per batch, got {batch_size}; raise it")
