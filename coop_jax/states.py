"""The variables that change while training: how they begin, are saved, and go on."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from coop_jax import finite, interruption, optim, parallel
from coop_jax.chunks import Piece, left, plan, resumable
from coop_jax.clip import CLIP
from coop_jax.methods import Kept, Learned, Stage

if TYPE_CHECKING:
    from coop_jax.checkpoint import Checkpoints
    from coop_jax.train import Run

State = dict[str, Any]
"""The variables that change while training.

"learned" are the Learned variables that move in this stage, "kept" the others that are saved,
"optimizer" its state, "step" (int32) the steps done, "average" the average so far where the stage
ends with one.
"""

STAYS = nnx.Any(Kept, Learned)
"""The filter of "kept", once the Learned variables that move are taken out."""


def moves_in(learns: Sequence[str]) -> Callable[[Any, Any], bool]:
    """Return a filter for the Learned variables that a stage moves (`Stage.learns`)."""
    is_learned = nnx.filterlib.to_predicate(Learned)

    def moves(path: tuple[Any, ...], value: Any) -> bool:
        name = ".".join(map(str, path)) + "."
        named = not learns or any(name.startswith(f"{start}.") for start in learns)
        return named and is_learned(path, value)

    return moves


def initial_state(method: nnx.Module, clip: CLIP, stage: Stage) -> State:
    """Return the state before the first step; what is learned has the optimizer's dtype."""
    optimizer = optim.create(stage.optimizer)
    dtype = optim.dtype_of(optimizer)
    learned, kept, _ = nnx.state(method, moves_in(stage.learns), STAYS, ...)
    learned = jax.tree.map(lambda leaf: leaf.astype(dtype), learned)
    parameters: Any = {"learned": learned, "frozen": nnx.state(clip)}
    state = {
        "learned": learned,
        "kept": kept,
        "optimizer": optimizer.init(parameters),
        "step": jnp.int32(0),
    }
    if stage.average is not None:
        state["average"] = jax.tree.map(jnp.zeros_like, learned)
    return state


def update(method: Any, state: State, *, ends: bool, when: str) -> None:
    """Give a method the state's values; at the end of the stage the average, if there is one."""
    state = checked(state, when)
    nnx.update(method, state["average" if ends and "average" in state else "learned"])
    nnx.update(method, state["kept"])


def checked(state: State, when: str) -> State:
    """Return a state in this process, all of it finite."""
    state = parallel.fetch(state)
    advice = "; lower the learning rate, or look at what the method computes"
    finite.check(state["learned"] | state["kept"], when, advice)
    others = state.keys() - {"learned", "kept", "step"}
    finite.check({name: state[name] for name in others}, when, advice)
    return state


def ended(
    methods: Sequence[Any], clip: CLIP, stage: Stage, checkpoints: Sequence["Checkpoints | None"]
) -> bool:
    """Give methods the values at the end of a stage, if there are checkpoints of that for all.

    Raises:
        InputError: a checkpoint holds other variables or shapes than its method has.
        MachineError: one cannot be read.
    """
    states = []
    for method, saved in zip(methods, checkpoints, strict=True):
        state = None if saved is None else saved.ended(initial_state(method, clip, stage))
        if state is None:
            return False
        states.append(state)
    for method, state in zip(methods, states, strict=True):
        update(method, state, ends=True, when="in the checkpoint")
    return True


def resumed(
    runs: "Sequence[Run]", clip: CLIP, stage: Stage, mesh: Mesh, images_per_chunk: int
) -> tuple[list[State], list[list[Piece]]]:
    """Return the states that runs begin or go on with, on the devices, and the chunks left.

    That is after the latest chunk that all of them have a whole checkpoint of. A run alone goes on
    from any of its checkpoints.
    """
    # The steps donate the state, so it must not share memory with the method.
    states = [jax.tree.map(np.array, initial_state(run.method, clip, stage)) for run in runs]
    states = [parallel.place(state, mesh) for state in states]
    chunks = plan([run.batches for run in runs], images_per_chunk)
    checkpoints = [run.checkpoints for run in runs if run.checkpoints is not None]
    if len(checkpoints) < len(runs):
        return states, chunks
    for done in resumable([saved.steps() for saved in checkpoints], chunks):
        restored = []
        for saved, step, state in zip(checkpoints, done, states, strict=True):
            restored.append(saved.restore(state, step) if step else state)
            if restored[-1] is None:
                break
        else:
            for saved, step in zip(checkpoints, done, strict=True):
                saved.forget(after=step or -1)
            return restored, left(chunks, done)
    raise AssertionError("a run can begin")


def save(runs: "Sequence[Run]", states: Sequence[State]) -> None:
    """Save runs that have come to the end of a chunk; stop where the process is told to.

    None is saved before all are on disk as they were at the end of the chunk before: whenever the
    process ends, there is a chunk that all have a checkpoint of.

    Raises:
        Stopped: the process was told to end.
    """
    pairs = [
        (run, run.checkpoints, state)
        for run, state in zip(runs, states, strict=True)
        if run.checkpoints is not None
    ]
    for _, checkpoints, _ in pairs:
        checkpoints.wait()
    for run, checkpoints, state in pairs:
        checkpoints.save(state, last=int(state["step"]) == run.batches.steps)
    if pairs and not parallel.all_agree(not interruption.is_wanted()):
        for _, checkpoints, _ in pairs:
            checkpoints.wait()
        run, _, state = pairs[0]
        others = f" of each of {len(pairs)} runs" if len(pairs) > 1 else ""
        raise interruption.Stopped(
            f"saved after step {int(state['step'])} of {run.batches.steps}{others}"
        )
