"""Training: the compiled, sharded step and the loop around it, for one run or several at once."""

import contextlib
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
from jaxtyping import Float, Int, UInt32

from coop_jax import finite, interruption, optim, parallel
from coop_jax.chunks import IMAGES_AT_ONCE, Batches, Piece, ahead
from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.finite import Sizes
from coop_jax.methods import Batch, Images, Stage
from coop_jax.states import STAYS, State, checked, initial_state, moves_in, resumed, save, update

if TYPE_CHECKING:
    from coop_jax.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """One of the runs that are trained together.

    Attributes:
        method: from `coop_jax.methods`; after each chunk it holds the new values, of the
            optimizer's dtype.
        batches: which examples each step sees.
        images_of: from (epoch, example) pairs to what the method takes of the images.
        checkpoints: where to save after each chunk (once the caller asks for the next) and resume
            from.
        seed: of the steps' random keys.
        begins: is told, before the first chunk, how many steps an earlier process has done.
    """

    method: Any
    batches: Batches
    images_of: Callable[[Int[np.ndarray, "images 2"]], Images]
    checkpoints: "Checkpoints | None" = None
    seed: int = 0
    begins: Callable[[int], None] = lambda done: None


class Progress(NamedTuple):
    """The number of steps that a run has done, and the terms of the losses of the last chunk."""

    run: int
    done: int
    terms: dict[str, Float[np.ndarray, " steps"]]

    @property
    def losses(self) -> Float[np.ndarray, " steps"]:
        """The sum of the terms."""
        return functools.reduce(np.add, self.terms.values())


def step_keys(seed: int, steps: int) -> UInt32[np.ndarray, "steps 2"]:
    """Return the random key of every step, a function of the seed and the step's number."""
    sequence = np.random.SeedSequence((seed, 0x57E9))
    return np.random.Generator(np.random.Philox(sequence)).integers(
        2**32, size=(steps, 2), dtype=np.uint32
    )


def keys_of(words: UInt32[jax.Array, "2"]) -> jax.Array:
    """Return the keys of a step that `adapt`, `texts` and `losses` get."""
    return jax.random.split(jax.random.wrap_key_data(words, impl="threefry2x32"), 3)


@functools.lru_cache(maxsize=32)
def compile_steps(
    method_graph: Any,
    clip_graph: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    learns: tuple[str, ...],
    mesh: Mesh,
    *,
    averages: bool,
    texts_per_image: bool,
) -> Callable[..., tuple[list[State], dict[str, Float[jax.Array, "runs steps"]], Sizes]]:
    """Return a jitted `steps(states, fixed, frozen, data) -> (states, terms, sizes)`.

    It takes a state for each of several runs of the same method on the same classes, and trains
    them side by side. Data are (images, labels, weights, rates, shares, keys): images are `Images`
    of arrays `[runs, steps, batch, ...]`, labels and weights `[runs, steps, batch]`, rates and
    shares in the average `[runs, steps]`, keys `[runs, steps, 2]`: it scans over steps, whose
    batches are split over the mesh. So are the classes, where `fixed` says so, and what is computed
    for them is gathered once a step. The states are donated. The frozen CLIP is an argument: it
    gets no gradient and comes back from no step. The sizes are the largest magnitudes, `[runs,
    steps]`, of what is learned before and after a step, and of its gradient.
    """
    whole = parallel.replicated(mesh)
    split = whole if texts_per_image else parallel.over_data(mesh, 2)
    moves = moves_in(learns)

    def steps(states, fixed, frozen, data):
        def step(state, batch):
            images, labels, weights, rate, share, words = batch
            keys = keys_of(words)

            def terms(learned):
                # Copied, since `losses` may set what is kept, in this trace alone.
                method = nnx.merge(method_graph, learned, state["kept"], fixed, copy=True)
                clip = method.adapt(nnx.merge(clip_graph, frozen), keys[0])
                texts = jax.lax.with_sharding_constraint(method.texts(clip, keys[1]), whole)
                values = method.losses(clip, texts, Batch(images, labels, weights, keys[2]))
                return values, nnx.state(method, moves, STAYS, ...)[1]

            method = nnx.merge(method_graph, state["learned"], state["kept"], fixed)
            values, kept, gradient = method.gradient(terms, state["learned"])
            gradients: Any = {"learned": gradient, "frozen": None}
            parameters: Any = {"learned": state["learned"], "frozen": frozen}
            updates: Any
            updates, optimizer_state = optimizer.update(
                gradients, state["optimizer"], parameters, learning_rate=rate
            )
            learned = optax.apply_updates(state["learned"], updates["learned"])
            new = {
                "learned": learned,
                "kept": kept,
                "optimizer": optimizer_state,
                "step": state["step"] + 1,
            }
            if averages:
                add = lambda total, value: total + share * value  # noqa: E731
                new["average"] = jax.tree.map(add, state["average"], learned)
            sizes = Sizes(*map(finite.magnitude, (state["learned"], gradient, learned)))
            return parallel.constrain(new, mesh), (values, sizes)

        def run(state, data):
            return jax.lax.scan(step, state, data)

        states, (terms, sizes) = _side_by_side(run, states, data)
        return [parallel.constrain(state, mesh) for state in states], terms, sizes

    return jax.jit(
        steps,
        in_shardings=(None, None, whole, (split, split, split, whole, whole, whole)),
        out_shardings=(None, whole, whole),
        donate_argnums=0,
    )


def _side_by_side(
    run: Callable[[State, Any], tuple[State, Any]], states: Sequence[State], data: Any
) -> tuple[list[State], Any]:
    """Return what a function makes of each state and its data; several are one mapped call."""
    if len(states) == 1:
        state, terms = run(states[0], jax.tree.map(lambda array: array[0], data))
        return [state], jax.tree.map(lambda values: values[None], terms)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, terms = jax.vmap(run)(together, data)
    apart = [jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(len(states))]
    return apart, terms


def fit(
    runs: Sequence[Run],
    clip: CLIP,
    stage: Stage,
    mesh: Mesh,
    *,
    images_per_chunk: int = IMAGES_AT_ONCE,
) -> Iterator[list[Progress]]:
    """Train the methods' Learned variables in place, resuming where the checkpoints end.

    Images are made a chunk of steps ahead, while the steps of the chunk before run in one compiled
    scan. Several runs are one program, in which each of them computes what it would alone; one that
    ends before the others drops out. Those whose variables have other shapes (`varying`) follow in
    a program of their own. Of a stage without steps, what `prepare` has done is kept.

    Runs that were stopped go on from the latest chunk that all of them have a checkpoint of, in the
    same chunks and programs: they end with the same bits as if they had not been stopped.

    Args:
        runs: of one method with the same settings on the same classes; images, their order,
            learning rates and number of steps may differ.
        clip: the frozen CLIP.
        stage: what moves, and by which optimizer.
        mesh: the devices; a batch they cannot split evenly is padded with weight zero.
        images_per_chunk: about how many images to make at a time, for all runs together.

    Yields:
        After every chunk, what its runs have done.

    Raises:
        InputError: a loss or what is learned is not finite, or what the runs share differs.
        MachineError: a checkpoint cannot be written or read.
        Stopped: the process was told to end, and what was learned so far is saved.
    """
    alike: dict[Any, list[int]] = {}
    for place, run in enumerate(runs):
        if stage.epochs == 0:
            state = initial_state(run.method, clip, stage)
            checked(state, "once the stage is prepared")
            run.begins(0)
            if run.checkpoints is not None:
                run.checkpoints.forget(after=-1)
                run.checkpoints.save(state, last=True)
            yield [Progress(place, 1, {})]
            continue
        leaves = jax.tree.leaves(nnx.state(run.method, STAYS))
        alike.setdefault(tuple(leaf.shape for leaf in leaves), []).append(place)
    for places in alike.values():
        together = [runs[place] for place in places]
        for done in _fit_together(together, clip, stage, mesh, images_per_chunk):
            yield [progress._replace(run=places[progress.run]) for progress in done]


def _fit_together(
    runs: Sequence[Run], clip: CLIP, stage: Stage, mesh: Mesh, images_per_chunk: int
) -> Iterator[list[Progress]]:
    """Train runs whose variables have the same shapes."""
    method_graph, fixed = _shared(runs, stage)
    clip_graph, frozen = nnx.split(clip)
    per_image = runs[0].method.texts_per_image
    steps = compile_steps(
        method_graph,
        clip_graph,
        optim.create(stage.optimizer),
        stage.learns,
        mesh,
        averages=stage.average is not None,
        texts_per_image=per_image,
    )
    fixed, frozen = parallel.place(fixed, mesh), parallel.put(frozen, parallel.replicated(mesh))
    states, chunks = resumed(runs, clip, stage, mesh, images_per_chunk)
    for run, state in zip(runs, states, strict=True):
        run.begins(done := int(state["step"]))
        update(run.method, state, ends=done == run.batches.steps, when="before the first step")
    batch = max(run.batches.order.shape[1] for run in runs)
    batch += 0 if per_image else parallel.padding(batch, mesh)
    place = _placing(mesh, per_image)
    load = lambda chunk: place([_data(runs[p.run], p, batch, stage) for p in chunk])  # noqa: E731
    saves = any(run.checkpoints is not None for run in runs)
    with interruption.patiently() if saves else contextlib.nullcontext():
        for chunk, data in zip(chunks, ahead(load, chunks), strict=True):
            with jax.threefry_partitionable(True):
                begun = [states[piece.run] for piece in chunk]
                active, terms, sizes = steps(begun, fixed, frozen, data)
            terms = {name: np.asarray(values) for name, values in terms.items()}
            done = [
                Progress(piece.run, piece.stop, {name: rows[lane] for name, rows in terms.items()})
                for lane, piece in enumerate(chunk)
            ]
            _check_steps(chunk, done, sizes, clip, data[0])
            for piece, state in zip(chunk, active, strict=True):
                states[piece.run] = state
                run, when = runs[piece.run], f"after step {piece.stop - 1}"
                update(run.method, state, ends=piece.stop == run.batches.steps, when=when)
            yield done
            save([runs[piece.run] for piece in chunk], [states[piece.run] for piece in chunk])


def _shared(runs: Sequence[Run], stage: Stage) -> tuple[Any, Any]:
    """Return the graph and the Fixed variables of the runs, which must be the same for all."""
    parts = [nnx.split(run.method, moves_in(stage.learns), STAYS, ...) for run in runs]
    graph, _, _, fixed = parts[0]
    for number, (other_graph, _, _, other) in enumerate(parts[1:], start=2):
        same = other_graph == graph and jax.tree.structure(other) == jax.tree.structure(fixed)
        leaves = zip(jax.tree.leaves(fixed), jax.tree.leaves(other), strict=True) if same else ()
        if not same or not all(one is two or np.array_equal(one, two) for one, two in leaves):
            raise InputError(
                "expected runs that differ in nothing but what is learned or kept, got another"
                f" {'Fixed variable' if same else 'structure'} in run {number} than in run 1;"
                " make what depends on the seed or the images Kept, or set runs_at_once=1"
            )
    return graph, fixed


def _placing(mesh: Mesh, texts_per_image: bool) -> Callable[[list[tuple[Any, ...]]], Any]:
    """Return a function that stacks the data of several runs and puts them on the devices."""
    whole = parallel.replicated(mesh)
    split = whole if texts_per_image else parallel.over_data(mesh, 2)

    def place(loaded: list[tuple[Any, ...]]) -> tuple[Any, ...]:
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *loaded)
        return *parallel.put(stacked[:3], split), *parallel.put(stacked[3:], whole)

    return place


def _data(run: Run, piece: Piece, batch: int, stage: Stage) -> tuple[Any, ...]:
    """Return images, labels, weights, rates, shares in the average and keys of some steps."""
    batches, chosen = run.batches, slice(piece.start, piece.stop)
    order = batches.order[chosen]
    images = run.images_of(batches.requests(piece.start, piece.stop))
    pad = ((0, 0), (0, batch - order.shape[1]))

    def in_steps(images: np.ndarray) -> np.ndarray:
        steps = images.reshape(*order.shape, *images.shape[1:])
        return np.pad(steps, (*pad, *((0, 0),) * (steps.ndim - 2)), mode="edge")

    return (
        jax.tree.map(in_steps, images),
        np.pad(batches.labels[np.maximum(order, 0)], pad, mode="edge"),
        np.pad((order >= 0).astype(np.float32), pad),
        batches.rate[chosen].astype(np.float32),
        batches.shares(stage.average)[chosen].astype(np.float32),
        step_keys(run.seed, batches.steps)[chosen],
    )


def _check_steps(
    chunk: list[Piece], done: list[Progress], sizes: Sizes, clip: CLIP, images: Images
) -> None:
    """Refuse steps of a chunk that are not finite; `images` are `[runs, steps, batch, ...]`."""
    for place, (piece, progress) in enumerate(zip(chunk, done, strict=True)):
        which = f" of run {piece.run + 1}" if len(chunk) > 1 else ""
        finite.check_steps(
            progress.losses,
            Sizes(*(np.asarray(magnitudes)[place] for magnitudes in sizes)),
            called=lambda step, first=piece.start, which=which: f"step {first + step}{which}",
            clip=clip,
            images=lambda step, place=place: parallel.fetch(
                jax.tree.map(lambda array: array[place, step], images)
            ),
        )
