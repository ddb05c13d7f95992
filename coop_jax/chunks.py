"""The examples of every step, and the chunks that the steps of several runs are cut into."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

IMAGES_AT_ONCE = 4096
"""Images made ahead of the steps that use them, at most."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """The examples and the learning rate of every step.

    `order[s]` holds the example indices of step s, -1 where its batch is short, `epoch[s]` its
    epoch (the steps of an epoch follow each other) and `rate[s]` its learning rate; `labels` is
    indexed by example.
    """

    order: Int[np.ndarray, "steps batch"]
    epoch: Int[np.ndarray, " steps"]
    rate: Float[np.ndarray, " steps"]
    labels: Int[np.ndarray, " examples"]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.order)

    @property
    def steps_per_epoch(self) -> int:
        """The steps of the first epoch, as of every other."""
        return int(np.sum(self.epoch == self.epoch[0]))

    def requests(self, start: int, stop: int) -> Int[np.ndarray, "images 2"]:
        """The (epoch, example) pairs of steps `start` to `stop`, in order."""
        order = self.order[start:stop]
        epochs = np.broadcast_to(self.epoch[start:stop, None], order.shape)
        return np.stack([epochs.ravel(), np.maximum(order, 0).ravel()], axis=1)

    def shares(
        self, average: Callable[[int], Sequence[float]] | None
    ) -> Float[np.ndarray, " steps"]:
        """Return the weight of the values after each step in an average over epochs.

        Args:
            average: from the number of epochs to the weight of each; None for no weight at all.
        """
        shares = np.zeros(self.steps)
        if average is not None:
            ends = np.flatnonzero(np.diff(self.epoch, append=-1))
            shares[ends] = average(len(ends))
        return shares


class Piece(NamedTuple):
    """The steps from `start` to `stop` of a run."""

    run: int
    start: int
    stop: int


def plan(runs: Sequence[Batches], images: int) -> list[list[Piece]]:
    """Cut several runs into chunks: equally many steps of every unfinished run.

    Chunks are of about so many images, in whole epochs of the run with the longest ones unless one
    has more images than that, and as many as possible are equally long.
    """
    chunks: list[list[Piece]] = []
    done = [0 for _ in runs]
    while active := [i for i, run in enumerate(runs) if done[i] < run.steps]:
        left = min(runs[i].steps - done[i] for i in active)
        per_step = sum(runs[i].order.shape[1] for i in active)
        unit = max(runs[i].steps_per_epoch for i in active)
        unit = unit if unit * per_step <= images else 1
        units = -(-left // unit)
        count = max(round(units * unit * per_step / images), 1)
        size = unit * -(-units // count)
        for first in range(0, left, size):
            stop = min(first + size, left)
            chunks.append([Piece(i, done[i] + first, done[i] + stop) for i in active])
        for i in active:
            done[i] += left
    return chunks


def resumable(
    saved: Sequence[Sequence[int]], chunks: Sequence[Sequence[Piece]]
) -> list[tuple[int, ...]]:
    """Return the steps done by each run where all can go on, the latest first, the beginning last.

    Args:
        saved: the steps that each run has a checkpoint of.
        chunks: all of their chunks. Several runs go on after one of these alone; a run alone goes
            on from any of its checkpoints.
    """
    beginning = (0,) * len(saved)
    if len(saved) == 1:
        last = chunks[-1][0].stop
        return [
            *((step,) for step in sorted(saved[0], reverse=True) if 0 < step <= last),
            beginning,
        ]
    done = np.zeros(len(saved), int)
    ends = [tuple(done.tolist())]
    for chunk in chunks:
        done[[piece.run for piece in chunk]] = [piece.stop for piece in chunk]
        ends.append(tuple(done.tolist()))
    return [
        done
        for done in reversed(ends)
        if all(step == 0 or step in steps for step, steps in zip(done, saved, strict=True))
    ]


def left(chunks: Sequence[Sequence[Piece]], done: Sequence[int]) -> list[list[Piece]]:
    """Return what is left of chunks once each run has done so many steps."""
    cut = [
        [piece._replace(start=max(piece.start, done[piece.run])) for piece in chunk]
        for chunk in chunks
    ]
    return [
        kept for chunk in cut if (kept := [piece for piece in chunk if piece.stop > piece.start])
    ]


def ahead(make: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
    """Yield what `make` makes of each input, the next one in the background meanwhile.

    Not so with several processes, which must start the same programs in the same order.
    """
    if jax.process_count() > 1:
        yield from map(make, inputs)
        return
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting = collections.deque()
            for given in inputs:
                waiting.append(pool.submit(make, given))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
