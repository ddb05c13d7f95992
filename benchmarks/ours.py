"""Our side: the training loop of `coop_jax.train` as it is, on a problem's batch."""

import functools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from models import Problem

from coop_jax import images, methods, parallel, train
from coop_jax.chunks import Batches
from coop_jax.clip import CLIP
from coop_jax.methods import Batch, Images, Stage

EPOCHS = 1000
STEPS_PER_CHUNK = 8
"""Steps whose images are encoded at once, while the steps of the chunk before run."""


class Training:
    """`train.fit` on the same batch over and over; every `run` takes `steps` steps of all `runs`.

    With an image tower a run is a training of its own, so that no image is encoded in the
    background before it starts. Features that are `cached`, or given instead of pixels, cost
    nothing to make, and there a run is the next chunk of one long training.
    """

    def __init__(self, problem: Problem, steps: int, *, cached: bool = False, runs: int = 1):
        self.problem, self.steps = problem, steps
        self.mesh = parallel.create_mesh(jax.devices()[:1])
        self._cached = cached or problem.pixels is None
        self._methods = [nnx.clone(problem.method) for _ in range(runs)]
        self._long = self._fit(EPOCHS, steps)

    def _fit(self, chunks: int, steps: int) -> Iterator[list[train.Progress]]:
        """A training of so many chunks of steps, which yields after each."""
        batch = len(self.problem.labels)
        batches = Batches(
            np.tile(np.arange(batch), (chunks * steps, 1)),
            np.repeat(np.arange(chunks), steps),
            np.full(chunks * steps, 0.002),
            self.problem.labels,
        )
        runs = [train.Run(method, batches, self._features) for method in self._methods]
        at_once = batch * steps * len(runs)
        clip = self.problem.clip
        return train.fit(runs, clip, Stage(), self.mesh, images_per_chunk=at_once)

    def _features(self, requests: np.ndarray) -> Images:
        chosen = requests[:, 1]
        if self._cached:
            return Images(features=self.problem.features[chosen])
        assert self.problem.pixels is not None
        if "pixels" in self.problem.method.takes:
            return Images(pixels=self.problem.pixels[chosen])
        return Images(features=encode(self.problem.clip, self.problem.pixels[chosen], self.mesh))

    def run(self) -> float:
        """Take the steps; the last one's loss."""
        if self._cached:
            last = next(self._long)
        else:
            chunk = min(self.steps, STEPS_PER_CHUNK)
            *_, last = self._fit(self.steps // chunk, chunk)
            assert last[0].done == self.steps, f"expected --scan to be a multiple of {chunk}"
        return float(last[0].losses[-1])


def encode(clip: CLIP, pixels: np.ndarray, mesh: Mesh, batch: int = 256) -> np.ndarray:
    """Image features of pixels in host memory."""

    def pixels_of(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(numbers), size):
            yield pixels[numbers[start : start + size]]

    batch = min(batch, len(pixels))
    return images.encode(clip, pixels_of, len(pixels), mesh, batch_size=batch)[0]


def image_features(problem: Problem) -> np.ndarray:
    """Those of the problem's pixels, or the ones given."""
    if problem.pixels is None:
        return problem.features
    return encode(problem.clip, problem.pixels, parallel.create_mesh(jax.devices()[:1]))


def compile_gradient(method: Any, clip: Any) -> tuple[Any, tuple[Any, Any, Any]]:
    """Return a jitted `gradient(*arguments, batch) -> (loss, gradient)`, and its arguments.

    As in training, what learns inside the towers has the batch's key; the texts have none.
    """
    graph, learned, rest = nnx.split(method, methods.Learned, ...)
    clip_graph, frozen = nnx.split(clip)

    def loss_of(learned: Any, rest: Any, frozen: Any, batch: Batch) -> jax.Array:
        method = nnx.merge(graph, learned, rest)
        clip = method.adapt(nnx.merge(clip_graph, frozen), batch.key)
        terms = method.losses(clip, method.texts(clip, None), batch)
        return functools.reduce(operator.add, terms.values())

    return jax.jit(jax.value_and_grad(loss_of)), (learned, rest, frozen)


def batch_of(problem: Problem) -> Batch:
    """Return the problem's batch, encoded where the method takes features; without a key."""
    pixels = "pixels" in problem.method.takes
    images = Images(
        features=None if pixels else image_features(problem),
        pixels=problem.pixels if pixels else None,
    )
    weights = np.ones(len(problem.labels), np.float32)
    return Batch(images, problem.labels, weights, None)


def loss_and_gradient(problem: Problem) -> tuple[float, Any]:
    """Return the loss before training and the gradient of what is learned, as nested dicts."""
    gradient, arguments = compile_gradient(problem.method, problem.clip)
    loss, found = gradient(*arguments, batch_of(problem))
    return float(loss), jax.tree.map(np.asarray, nnx.to_pure_dict(found))


def weight_bytes(problem: Problem) -> int:
    """Bytes of the frozen towers that the step is given."""
    towers = ("text", "vision") if problem.pixels is not None else ("text",)
    state = nnx.state(problem.clip)
    return sum(leaf.nbytes for tower in towers for leaf in jax.tree.leaves(state[tower]))


def peak_bytes() -> int | None:
    """The device's own count of its peak memory, where it has one."""
    statistics = jax.devices()[0].memory_stats()
    return statistics.get("peak_bytes_in_use") if statistics else None
