"""Training: the compiled, sharded step and the loop around it, for one run or several at once."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int

from coop_jax import optim, parallel
from coop_jax.chunks import Batches, Piece, ahead, plan
from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods.base import Learned, cross_entropy, has_texts_per_image

if TYPE_CHECKING:
    from coop_jax.checkpoint import Checkpoints

IMAGES_PER_CHUNK = 4096
"""Image features made ahead of the steps that use them."""

State = dict[str, Any]
"""What changes while training: "learned" variables, "optimizer" state and "step" (int32)."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs that are trained together.

    Attributes:
        method: an NNX module of `coop_jax.methods`; after each chunk it holds the new values, of
            the optimizer's dtype.
        batches: which examples each step sees.
        features_of: from (epoch, example) pairs to unnormalised image features.
        checkpoints: where to save after each chunk (once the caller asks for the next) and resume
            from.
    """

    method: Any
    batches: Batches
    features_of: Callable[[Int[np.ndarray, "images 2"]], Float[np.ndarray, "images embedding"]]
    checkpoints: "Checkpoints | None" = None


class Progress(NamedTuple):
    """The number of steps that a run has done, and the losses of those of the last chunk."""

    run: int
    done: int
    losses: Float[np.ndarray, " steps"]


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
) -> Callable[..., tuple[list[State], Float[jax.Array, "runs steps"]]]:
    """A jitted `steps(states, derived, frozen, data) -> (states, losses)`.

    It takes a state for each of several runs of the same method on the same classes, and trains
    them side by side. The arrays of data are features `[runs, steps, batch, embedding]`, labels
    and weights `[runs, steps, batch]`, and learning rates `[runs, steps]`: it scans over steps,
    whose batches are split over the mesh. So are the classes, where `derived` says so, and what is
    computed for them is gathered once a step. The states are donated. The frozen CLIP is an
    argument: it gets no gradient and comes back from no step.
    """
    whole = parallel.replicated(mesh)
    split = whole if has_texts_per_image else parallel.over_data(mesh, 2)

    def steps(states, derived, frozen, data):
        clip = nnx.merge(clip_graph, frozen)

        def loss_of(learned, features, labels, weights):
            method = nnx.merge(method_graph, learned, derived)
            classes = jax.lax.with_sharding_constraint(method.encode_classes(clip), whole)
            logits = method.logits(clip, classes, features)
            return cross_entropy(logits, labels, weights)

        def step(state, batch):
            *examples, rate = batch
            loss, gradient = jax.value_and_grad(loss_of)(state["learned"], *examples)
            gradients: Any = {"learned": gradient, "frozen": None}
            parameters: Any = {"learned": state["learned"], "frozen": frozen}
            updates: Any
            updates, optimizer_state = optimizer.update(
                gradients, state["optimizer"], parameters, learning_rate=rate
            )
            learned = optax.apply_updates(state["learned"], updates["learned"])
            new = {"learned": learned, "optimizer": optimizer_state, "step": state["step"] + 1}
            return parallel.constrain(new, mesh), loss

        def run(state, data):
            return jax.lax.scan(step, state, data)

        if len(states) == 1:
            state, losses = run(states[0], jax.tree.map(lambda array: array[0], data))
            return [state], losses[None]
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        together, losses = jax.vmap(run)(together, data)
        apart = [jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(len(states))]
        return [parallel.constrain(state, mesh) for state in apart], losses

    return jax.jit(
        steps,
        in_shardings=(None, None, whole, (split, split, split, whole)),
        out_shardings=(None, whole),
        donate_argnums=0,
    )


def fit(
    runs: Sequence[Run],
    clip: CLIP,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    *,
    images_per_chunk: int = IMAGES_PER_CHUNK,
) -> Iterator[list[Progress]]:
    """Train the methods' Learned variables in place, resuming where the checkpoints end.

    Image features are made a chunk of epochs ahead, while the steps of the chunk before run in
    one compiled scan. Several runs are one program, in which each of them computes what it would
    alone; one that ends before the others drops out.

    Args:
        runs: of one method with the same settings on the same classes; images, their order,
            learning rates and number of steps may differ.
        clip: the frozen CLIP.
        optimizer: from `optim.create`.
        mesh: the devices; a batch they cannot split evenly is padded with weight zero.
        images_per_chunk: about how many image features to make at a time, for all runs together.

    Yields:
        After every chunk, what its runs have done.

    Raises:
        InputError: a loss is not finite.
    """
    method_graph, _, derived = nnx.split(runs[0].method, Learned, ...)
    clip_graph, frozen = nnx.split(clip)
    per_image = has_texts_per_image(runs[0].method, clip)
    steps = compile_steps(method_graph, clip_graph, optimizer, mesh, per_image)
    derived, frozen = (
        parallel.place(derived, mesh),
        parallel.put(frozen, parallel.replicated(mesh)),
    )
    states = [_first_state(run, clip, optimizer, mesh) for run in runs]
    batch = max(run.batches.order.shape[1] for run in runs)
    batch += 0 if per_image else parallel.padding(batch, mesh)
    split = parallel.replicated(mesh) if per_image else parallel.over_data(mesh, 2)
    chunks = plan(
        [run.batches for run in runs], [int(state["step"]) for state in states], images_per_chunk
    )

    def load(chunk: list[Piece]) -> list[tuple[np.ndarray, ...]]:
        return [_data(runs[piece.run], piece, batch) for piece in chunk]

    for chunk, loaded in zip(chunks, ahead(load, chunks), strict=True):
        *examples, rates = (np.stack(arrays) for arrays in zip(*loaded, strict=True))
        data = *parallel.put(examples, split), parallel.put(rates, parallel.replicated(mesh))
        active = [states[piece.run] for piece in chunk]
        active, losses = steps(active, derived, frozen, data)
        losses = np.asarray(losses)
        _check_finite(chunk, losses)
        for piece, state in zip(chunk, active, strict=True):
            states[piece.run] = state
            nnx.update(runs[piece.run].method, parallel.fetch(state["learned"]))
        yield [
            Progress(piece.run, piece.stop, row) for piece, row in zip(chunk, losses, strict=True)
        ]
        for index, _, stop in chunk:
            run = runs[index]
            if run.checkpoints is not None:
                run.checkpoints.save(states[index], last=stop == run.batches.steps)


def _first_state(
    run: Run, clip: CLIP, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh
) -> State:
    """The state that a run begins or goes on with, placed on the devices."""
    # The steps donate the state, so it must not share memory with the method.
    state = jax.tree.map(np.array, initial_state(run.method, clip, optimizer))
    state = parallel.place(state, mesh)
    if run.checkpoints is not None:
        state = run.checkpoints.restore(state)
        nnx.update(run.method, parallel.fetch(state["learned"]))
    return state


def _data(run: Run, piece: Piece, batch: int) -> tuple[np.ndarray, ...]:
    """Features, labels, weights and learning rates of some steps, in batches of `batch`."""
    batches, chosen = run.batches, slice(piece.start, piece.stop)
    order = batches.order[chosen]
    features = run.features_of(batches.requests(piece.start, piece.stop))
    pad = ((0, 0), (0, batch - order.shape[1]))
    return (
        np.pad(features.reshape(*order.shape, -1), (*pad, (0, 0)), mode="edge"),
        np.pad(batches.labels[order], pad, mode="edge"),
        np.pad(np.ones(order.shape, np.float32), pad),
        batches.rate[chosen].astype(np.float32),
    )


def _check_finite(chunk: list[Piece], losses: Float[np.ndarray, "runs steps"]) -> None:
    for piece, row in zip(chunk, losses, strict=True):
        if not np.isfinite(row).all():
            first = int(np.argmin(np.isfinite(row)))
            which = f" of run {piece.run + 1}" if len(chunk) > 1 else ""
            raise InputError(
                f"the loss of step {piece.start + first}{which} is {row[first]}: expected a finite"
                " number; lower the learning rate or use float32"
            )
