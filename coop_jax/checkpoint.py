"""Orbax checkpoints of what is learned, the optimizer state and the step: nothing frozen."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from coop_jax import finite, parallel
from coop_jax.errors import InputError
from coop_jax.printing import one_line


def _named(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves by their paths, so that a checkpoint is independent of Python classes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


COMPLETE = "complete"
"""The file that says that the latest checkpoint is the last."""


def _digest(named: Mapping[str, jax.Array]) -> str:
    """Return SHA-256, hexadecimal, of arrays with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, value in sorted(parallel.fetch(dict(named)).items()):
        array = np.asarray(value)
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


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
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(preservation_policy=latest, create=True),
            item_handlers={
                "default": ocp.StandardCheckpointHandler(),
                "digest": ocp.JsonCheckpointHandler(),
            },
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
        named = _named(state)
        items = {
            "default": ocp.args.StandardSave(named),
            "digest": ocp.args.JsonSave({"sha256": _digest(named)}),
        }
        self._manager.save(int(state["step"]), args=ocp.args.Composite(**items))
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
                are not those that were saved, or not finite.
        """
        step = self.latest_step()
        if step is None:
            return state
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(state))
        with self._whole(step):
            items: Any = self._manager.metadata(step).item_metadata
            saved = dict(items["default"])
        got = {name: tuple(leaf.shape) for name, leaf in saved.items()}
        for name in _varying(state):
            if got.get(name, ())[1:] == target[name].shape[1:]:
                target[name] = target[name].update(shape=got[name])
        expected = {name: leaf.shape for name, leaf in target.items()}
        if got != expected:
            raise InputError(
                f"{self.folder}: expected a checkpoint of {expected}, got {got}; restore with the"
                " method, settings and (if class-specific) classes it was trained with"
            )
        wanted = {"default": ocp.args.StandardRestore(target), "digest": ocp.args.JsonRestore()}
        with self._whole(step):
            both = self._manager.restore(step, args=ocp.args.Composite(**wanted))
            restored = both["default"]
            if both["digest"] != {"sha256": _digest(restored)}:
                raise ValueError("a digest of other numbers")
        advice = "; it cannot be gone on from: run it again in another --workdir"
        finite.check(parallel.fetch(restored), f"in the checkpoint {self.folder}/{step}", advice)
        return jax.tree.unflatten(jax.tree.structure(state), [restored[name] for name in target])

    @contextlib.contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        """Turn whatever a damaged checkpoint leads to into one line."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._damaged(step, error) from error
        except (OSError, MemoryError):
            raise  # of the disk or the machine: the checkpoint may be as it was
        except Exception as error:  # Orbax and TensorStore have no exception of their own for it
            raise self._damaged(step, error) from error

    def _damaged(self, step: int, error: Exception) -> InputError:
        return InputError(
            f"{self.folder / str(step)}: expected a checkpoint as it was saved, got a damaged one"
            f" ({one_line(error)}); delete {self.folder}, and the same command trains from the"
            " start"
        )

    def close(self) -> None:
        """Wait for pending saves and release the folder."""
        self._manager.close()
