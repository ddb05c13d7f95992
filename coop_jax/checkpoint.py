"""Orbax checkpoints of what is learned, the optimizer state and the step: nothing frozen."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from coop_jax import finite, parallel, writing
from coop_jax.errors import InputError, MachineError
from coop_jax.holding import check_held
from coop_jax.printing import one_line

logger = logging.getLogger(__name__)


def _is_of_another(record: logging.LogRecord) -> bool:
    """Tell whether a record of a log is not of Orbax: what fails there is an exception, too."""
    return "orbax" not in f"{record.pathname} {record.getMessage()}"


# Of tasks that fail asyncio complains where Orbax asks for the first alone.
for _log in ("absl", "asyncio"):
    logging.getLogger(_log).addFilter(_is_of_another)


def _pass_over(unraisable: Any, otherwise: Any = sys.unraisablehook) -> None:
    if "Event loop is closed" not in str(unraisable.exc_value):
        otherwise(unraisable)


# Of several writes that fail Orbax waits for the first, and TensorStore complains of the others.
sys.unraisablehook = _pass_over

KEPT = 2
"""Checkpoints of a stage that are kept: where one is damaged, a run goes on from the other."""

RECORD = "record.json"
"""The file of a checkpoint that is written when all others are on disk."""

TIME = "_CHECKPOINT_METADATA"
"""The file that Orbax writes last, with the time; nothing is read from it."""

UNFINISHED = ".orbax-checkpoint-tmp"
"""The name of a checkpoint that is being written has this behind the step."""


def _named(tree: Any) -> dict[str, jax.Array]:
    """Return the leaves by their paths, so that a checkpoint is independent of Python classes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _shapes(named: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in named.items()}


def _digest(named: Mapping[str, jax.Array]) -> str:
    """Return SHA-256, hexadecimal, of arrays with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, value in sorted(parallel.fetch(dict(named)).items()):
        array = np.asarray(value)
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _signature(record: Mapping[str, Any]) -> str:
    """Return SHA-256, hexadecimal, of a record without its own."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> dict[str, str]:
    """Return SHA-256, hexadecimal, of every file below a folder but its record and its time."""
    others = RECORD, TIME
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in others)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _varying(state: dict[str, Any]) -> list[str]:
    """Return the names of variables the length of whose first axis is not known before."""
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    named = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_variable)
    return [
        f"{jax.tree_util.keystr(path, simple=True, separator='.')}.value"
        for path, leaf in named
        if is_variable(leaf) and leaf.get_metadata().get("varying")
    ]


def _is_of_others(error: Exception) -> bool:
    """Tell whether an operation of all processes failed as another one is gone."""
    return "gloo" in str(error).lower()


def _of_disk(error: BaseException) -> OSError | None:
    """Return the error of the disk that an error is, or that TensorStore made it of."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"\[os_error_code='(\d+)'\]|\[OS error (\d+):", str(error))
    number = int(code[1] or code[2]) if code else 0
    return OSError(number, os.strerror(number)) if code else None


def _failure(what: str, error: BaseException, folder: Path) -> MachineError:
    """Return the line that says why a disk refused."""
    if refused := _of_disk(error):
        return MachineError(writing.failure(what, refused, folder))
    got = f"{type(error).__name__}: {one_line(error):.300}"
    return MachineError(f"expected to {what}, got {got} ({folder}); the same command goes on")


class DamagedError(Exception):
    """A checkpoint is not as it was saved; says in which way."""


def _read_record(checkpoint: Path) -> dict[str, Any]:
    """Return the record of a checkpoint; raise ValueError, TypeError or KeyError if damaged."""
    record = json.loads((checkpoint / RECORD).read_bytes())
    if record.pop("sha256") != _signature(record):
        raise ValueError(f"{RECORD} is another")
    return record


def together(folder: Path) -> list[str]:
    """Return the names of the runs that the latest readable checkpoint was trained beside.

    Args:
        folder: that of a stage of a run; [] where it has no checkpoint.
    """
    steps = [path for path in folder.glob("*") if path.name.isdecimal()]
    for checkpoint in sorted(steps, key=lambda path: int(path.name), reverse=True):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            return [str(name) for name in _read_record(checkpoint)["together"]]
    return []


class Checkpoints:
    """The checkpoints of one stage of a run, the latest two kept; saved in the background.

    Each has a record: whether it is the last of its stage, the runs that were trained side by side,
    the shapes, and digests of all numbers, of all files and of itself. They are checked when it is
    read, before Orbax reads any file.

    Args:
        folder: where they lie; is made.
        together: names of the runs that are trained side by side, this one among them.

    Raises:
        MachineError: the folder cannot be read or written.
    """

    def __init__(self, folder: str | Path, together: Sequence[str] = ()):
        self.folder = Path(folder).absolute()
        self._together = list(together)
        self._records: dict[int, dict[str, Any]] = {}
        self._damaged: set[int] = set()
        with writing.said("keep checkpoints", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=ocp.checkpoint_managers.LatestN(KEPT),
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._write_record),
                    # Runs side by side save at the same time; several processes wait for each.
                    multiprocessing_options=ocp.options.MultiprocessingOptions(
                        barrier_sync_key_prefix="_".join(self.folder.parts[-2:])
                    ),
                ),
                item_handlers=ocp.StandardCheckpointHandler(),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Wait for pending saves and release the folder; one error is enough."""
        if not kind:
            self.close()
            return
        with contextlib.suppress(MachineError):
            self.close()
        self._remove_unfinished()

    def steps(self) -> list[int]:
        """Return the numbers of steps done at the checkpoints, the latest first."""
        there = lambda: sorted(self._manager.all_steps(), reverse=True)  # noqa: E731
        return parallel.first_says(there, "list checkpoints")

    def save(self, state: dict[str, Any], *, last: bool = False) -> None:
        """Save the state under its step; wait for the file only if it is the last of the stage.

        Raises:
            MachineError: this or an earlier one could not be written.
        """
        named, step = _named(state), int(state["step"])
        self._damaged.discard(step)
        self._records[step] = {
            "last": last,
            "together": self._together,
            "shapes": _shapes(named),
            "numbers": _digest(named),
        }
        with self._written():
            self._manager.save(step, args=ocp.args.StandardSave(named))
        if last:
            self.wait()

    def _write_record(self) -> None:
        """Add the record to what Orbax has written and is about to give its name."""
        for step in list(self._records):
            for folder in self.folder.glob(f"{step}{UNFINISHED}*"):
                record = self._records.pop(step)
                if parallel.is_first():
                    record["files"] = _files(folder)
                    content = json.dumps({**record, "sha256": _signature(record)})
                    writing.write_whole(folder / RECORD, content.encode())

    def wait(self) -> None:
        """Return when all that was saved is on disk.

        Raises:
            MachineError: it could not be written.
        """
        with self._written():
            self._manager.wait_until_finished()

    def forget(self, after: int) -> None:
        """Remove the checkpoints of more steps than these."""
        for step in self.steps():
            if step > after:
                with self._written():
                    self._manager.delete(step)

    def ended(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state at the end of the stage, as `restore`; None if it is not there.

        Where it is damaged, that is logged.
        """
        for step in self.steps()[:1]:
            with self._said_damaged(step):
                restored, record = self._read(state, step)
                return restored if record["last"] else None
        return None

    def restore(self, state: dict[str, Any], step: int) -> dict[str, Any] | None:
        """Return a checkpoint, placed as `state` is; None where it is damaged, which is logged.

        The number and kind of devices may differ from those that saved it.

        Raises:
            InputError: the checkpoint holds other variables or shapes than `state`, or numbers that
                are not finite.
            MachineError: it cannot be read.
        """
        with self._said_damaged(step):
            return self._read(state, step)[0]
        return None

    def _record(self, step: int) -> dict[str, Any]:
        """Return the record of a checkpoint all files of which are as they were written."""

        def read() -> dict[str, Any]:
            folder = self.folder / str(step)
            try:
                with self._whole(step):
                    record = _read_record(folder)
                    now = _files(folder)
                    other = [name for name, sha in record["files"].items() if now.get(name) != sha]
                    if other:
                        raise ValueError(f"{', '.join(other[:3])} missing or not as it was written")
                    return record
            except DamagedError as error:
                return {"damaged": str(error)}

        record = parallel.first_says(read, "read a checkpoint")
        if "damaged" in record:
            raise DamagedError(record["damaged"])
        return record

    def _read(self, state: dict[str, Any], step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a checkpoint and its record; raise DamagedError if it is."""
        record = self._record(step)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(state))
        saved = record["shapes"]
        for name in _varying(state):
            if saved.get(name, ())[1:] == list(target[name].shape[1:]):
                target[name] = target[name].update(shape=tuple(saved[name]))
        if saved != (expected := _shapes(target)):
            raise InputError(
                f"{self.folder}: expected a checkpoint of {expected}, got {saved}; restore with the"
                " method, settings and (if class-specific) classes it was trained with"
            )
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:  # all files are as they were written
            if _is_of_others(error):
                raise
            raise self._unreadable(step, error) from error
        if not parallel.all_agree(record["numbers"] == _digest(restored)):
            raise DamagedError("other numbers than were saved")
        advice = "; it cannot be gone on from: run it again in another --workdir"
        finite.check(parallel.fetch(restored), f"in the checkpoint {self.folder}/{step}", advice)
        leaves = [restored[name] for name in target]
        return jax.tree.unflatten(jax.tree.structure(state), leaves), record

    @contextlib.contextmanager
    def _whole(self, step: int) -> Iterator[None]:
        """Tell what a damaged record or file leads to from what a disk that fails leads to."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise DamagedError(one_line(error)) from error
        except (OSError, MemoryError) as error:
            raise self._unreadable(step, error) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedError(one_line(error)) from error

    def _unreadable(self, step: int, error: BaseException) -> MachineError:
        return _failure("read a checkpoint", error, self.folder / str(step))

    @contextlib.contextmanager
    def _said_damaged(self, step: int) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            if step not in self._damaged:
                self._damaged.add(step)
                place = self.folder / str(step)
                logger.warning("%s: is damaged (%.200s): its steps are taken again", place, error)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """Turn what a disk that fails leads to into one line, and leave nothing half-written."""
        check_held(self.folder)
        try:
            yield
        except Exception as error:  # OSError, or what TensorStore makes of it
            if _is_of_others(error):
                raise
            self._remove_unfinished()
            check_held(self.folder)
            raise _failure("write a checkpoint", error, self.folder) from error

    def _remove_unfinished(self) -> None:
        """Remove what a process that ended while it saved has left.

        Orbax would do it in a thread that a manager which saves nothing does not wait for.
        """
        if parallel.is_first():
            for unfinished in self.folder.glob(f"*{UNFINISHED}*"):
                shutil.rmtree(unfinished, ignore_errors=True)

    def close(self) -> None:
        """Wait for pending saves and release the folder."""
        with self._written():
            self._manager.close()
