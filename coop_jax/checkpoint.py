"""Orbax checkpoints of what is learned, the optimizer state and the step: nothing frozen."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from coop_jax import finite, parallel
from coop_jax.errors import InputError


def _named(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves by their paths, so that a checkpoint is independent of Python classes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


COMPLETE = "complete"
"""The file that says that the latest checkpoint is the last."""


def _varying(state: dict[str, Any]) -> list[str]:
    """Return the names of variables the length of whose first axis is not known before."""
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    named = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_variable)
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='.')}.value"
        for path, leaf in named
        if is_variable(leaf) and leaf.get_metadata().get("varying")
    ]


class Checkpoints:
    """The checkpoints of one stage of a run, the latest kept; saved in the background."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).absolute()
        latest = ocp.checkpoint_managers.LatestN(1)
        handler, registry = (
            ocp.StandardCheckpointHandler(),
            ocp.handlers.DefaultCheckpointHandlerRegistry(),
        )
        for arguments in (ocp.args.StandardSave, ocp.args.StandardRestore):
            registry.add("default", arguments, handler)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=latest, create=True),
            handler_registry=registry,
        )

    def latest_step(self) -> int | None:
        """Return the number of steps done at the latest checkpoint; None without one."""
        return self._manager.latest_step()

    @property
    def is_complete(self) -> bool:
        """True if the latest checkpoint is the last one that there will be."""
        return (self.folder / COMPLETE).exists()

    def save(self, state: dict[str, Any], *, last: bool = False) -> None:
        """Save the state under its step; wait for the file only if it is the last one."""
        step = int(state["step"])
        self._manager.save(step, args=ocp.args.StandardSave(_named(state)))
        if last:
            self.complete()

    def complete(self) -> None:
        """Say, once it is written, that the latest checkpoint is the last one."""
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            (self.folder / COMPLETE).touch()

    def restore(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the latest checkpoint, placed as `state` is; `state` itself if there is none.

        The number and kind of devices may differ from those that saved it.

        Raises:
            InputError: the checkpoint holds other variables or shapes than `state`, or numbers that
                are not finite.
        """
        step = self.latest_step()
        if step is None:
            return state
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(state))
        saved: Any = self._manager.metadata(step).item_metadata
        got = {name: tuple(leaf.shape) for name, leaf in dict(saved).items()}
        for name in _varying(state):
            if got.get(name, ())[1:] == target[name].shape[1:]:
                target[name] = target[name].update(shape=got[name])
        expected = {name: leaf.shape for name, leaf in target.items()}
        if got != expected:
            raise InputError(
                f"{self.folder}: expected a checkpoint of {expected}, got {got}; restore with the"
                " method, settings and (if class-specific) classes it was trained with"
            )
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        advice = "; it cannot be gone on from: run it again in another --workdir"
        finite.check(parallel.fetch(restored), f"in the checkpoint {self.folder}/{step}", advice)
        return jax.tree.unflatten(jax.tree.structure(state), [restored[name] for name in target])

    def close(self) -> None:
        """Wait for pending saves and release the folder."""
        self._manager.close()
