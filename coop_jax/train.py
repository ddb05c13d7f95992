"""Training: the compiled, sharded step and the loop around it."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from coop_jax import optim, parallel
from coop_jax.checkpoint import Checkpoints
from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods.base import Learned, cross_entropy, has_texts_per_image

IMAGES_PER_CHUNK = 4096
"""Image features made ahead of the steps that use them."""

State = dict[str, Any]
"""What changes while training: "learned" variables, "optimizer" state and "step" (int32)."""


@dataclasses.dataclass(frozen=True)
class Batches:
    """Which examples every step sees.

    `order[s]` holds the example indices of step s, `epoch[s]` its epoch; `labels` is indexed by
    example.
    """

    order: Int[np.ndarray, "steps batch"]
    epoch: Int[np.ndarray, " steps"]
    labels: Int[np.ndarray, " examples"]

    def requests(self, start: int, stop: int) -> Int[np.ndarray, "images 2"]:
        """The (epoch, example) pairs of steps `start` to `stop`, in order."""
        order = self.order[start:stop]
        epochs = np.broadcast_to(self.epoch[start:stop, None], order.shape)
        return np.stack([epochs.ravel(), order.ravel()], axis=1)


def initial_state(method: nnx.Module, clip: CLIP, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step; what is learned has the optimizer's dtype."""
    dtype = optim.dtype_of(optimizer)
    learned = jax.tree.map(lambda leaf: leaf.astype(dtype), nnx.state(method, Learned))
    parameters: Any = {"learned": learned, "frozen": nnx.state(clip)}
    return {"learned": learned, "optimizer": optimizer.init(parameters), "step": jnp.int32(0)}


@functools.lru_cache(maxsize=32)
def compile_steps(
    method_graph: Any,
    clip_graph: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    has_texts_per_image: bool,
) -> Callable[..., tuple[State, Float[jax.Array, " steps"]]]:
    """A jitted `steps(state, derived, frozen, features, labels, weights) -> (state, losses)`.

    It scans over the leading axis of `features [steps, batch, embedding]`, `labels` and `weights`
    `[steps, batch]`, whose batches are split over the mesh. So are the classes, where `derived`
    says so, and what is computed for them is gathered once a step. The state is donated. The frozen
    CLIP is an argument: it gets no gradient and comes back from no step.
    """
    whole = parallel.replicated(mesh)
    split = whole if has_texts_per_image else parallel.over_data(mesh, 1)

    def steps(state, derived, frozen, features, labels, weights):
        clip = nnx.merge(clip_graph, frozen)

        def loss_of(learned, batch):
            features, labels, weights = batch
            method = nnx.merge(method_graph, learned, derived)
            classes = jax.lax.with_sharding_constraint(method.encode_classes(clip), whole)
            logits = method.logits(clip, classes, features)
            return cross_entropy(logits, labels, weights)

        def step(state, batch):
            loss, gradient = jax.value_and_grad(loss_of)(state["learned"], batch)
            gradients: Any = {"learned": gradient, "frozen": None}
            parameters: Any = {"learned": state["learned"], "frozen": frozen}
            updates: Any
            updates, optimizer_state = optimizer.update(gradients, state["optimizer"], parameters)
            learned = optax.apply_updates(state["learned"], updates["learned"])
            state = {
                "learned": learned,
                "optimizer": optimizer_state,
                "step": state["step"] + 1,
            }
            return state, loss

        return jax.lax.scan(step, state, (features, labels, weights))

    return jax.jit(
        steps,
        in_shardings=(whole, None, whole, split, split, split),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )


def chunks(
    epoch: Int[np.ndarray, " steps"], start: int, images_per_step: int, images: int
) -> list[tuple[int, int]]:
    """Cut the steps from `start` on into equal ranges of whole epochs, about `images` each."""
    per_epoch = int(np.sum(epoch == epoch[0]))
    left = -(-(len(epoch) - start) // per_epoch)
    count = max(round(left * per_epoch * images_per_step / images), 1)
    size = per_epoch * max(-(-left // count), 1)
    return [(first, min(first + size, len(epoch))) for first in range(start, len(epoch), size)]


def ahead(make: Callable[[Any], Any], inputs: Iterable[Any]) -> Iterator[Any]:
    """What `make` makes of each input, the next one in the background while one is used.

    Not so with several processes, which must start the same programs in the same order.
    """
    if jax.process_count() > 1:
        yield from map(make, inputs)
        return
    with ThreadPoolExecutor(1) as pool:
        try:
            waiting: collections.deque[Future] = collections.deque()
            for given in inputs:
                waiting.append(pool.submit(make, given))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def fit(
    method: Any,
    clip: CLIP,
    optimizer: optax.GradientTransformationExtraArgs,
    batches: Batches,
    features_of: Callable[[Int[np.ndarray, "images 2"]], Float[np.ndarray, "images embedding"]],
    mesh: Mesh,
    *,
    checkpoints: Checkpoints | None = None,
    images_per_chunk: int = IMAGES_PER_CHUNK,
) -> Iterator[tuple[int, Float[np.ndarray, " steps"]]]:
    """Train the method's Learned variables in place, resuming where the checkpoints end.

    Image features are made a chunk of epochs ahead, while the steps of the chunk before run in
    one compiled scan.

    Args:
        method: an NNX module of `coop_jax.methods`; after each chunk it holds the new values, of
            the optimizer's dtype.
        clip: the frozen CLIP.
        optimizer: from `optim.create`.
        batches: which examples each step sees.
        features_of: from (epoch, example) pairs to unnormalised image features.
        mesh: the devices; a batch they cannot split evenly is padded with weight zero.
        checkpoints: where to save after each chunk (once the caller asks for the next) and resume
            from.
        images_per_chunk: about how many image features to make at a time.

    Yields:
        The number of steps done, and the losses of those steps that this chunk took.

    Raises:
        InputError: the loss is not finite.
    """
    method_graph, learned, derived = nnx.split(method, Learned, ...)
    clip_graph, frozen = nnx.split(clip)
    del learned
    per_image = has_texts_per_image(method, clip)
    steps = compile_steps(method_graph, clip_graph, optimizer, mesh, per_image)
    whole = parallel.replicated(mesh)
    derived, frozen = parallel.place(derived, mesh), parallel.put(frozen, whole)
    # The steps donate the state, so it must not share memory with the method.
    state = parallel.put(jax.tree.map(np.array, initial_state(method, clip, optimizer)), whole)
    if checkpoints is not None:
        state = checkpoints.restore(state)
        nnx.update(method, parallel.fetch(state["learned"]))
    total, batch = batches.order.shape
    pad = ((0, 0), (0, 0 if per_image else parallel.padding(batch, mesh)))
    split = whole if per_image else parallel.over_data(mesh, 1)
    ranges = chunks(batches.epoch, int(state["step"]), batch, images_per_chunk)
    requests = (batches.requests(start, stop) for start, stop in ranges)
    made = ahead(features_of, requests)
    for (start, stop), features in zip(ranges, made, strict=True):
        order = batches.order[start:stop]
        data = (
            np.pad(features.reshape(*order.shape, -1), (*pad, (0, 0)), mode="edge"),
            np.pad(batches.labels[order], pad, mode="edge"),
            np.pad(np.ones(order.shape, np.float32), pad),
        )
        state, losses = steps(state, derived, frozen, *parallel.put(data, split))
        losses = np.asarray(losses)
        if not np.isfinite(losses).all():
            step = start + int(np.argmin(np.isfinite(losses)))
            raise InputError(
                f"the loss of step {step} is {losses[step - start]}: expected a finite number;"
                " lower the learning rate or use float32"
            )
        nnx.update(method, parallel.fetch(state["learned"]))
        yield stop, losses
        if checkpoints is not None:
            checkpoints.save(state, last=stop == total)
