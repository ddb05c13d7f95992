"""Metrics of a training run, step by step: JSONL, TensorBoard's event files, Weights & Biases."""

import contextlib
import functools
import importlib.metadata
import io
import json
import logging
import os
import socket
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from coop_jax import parallel
from coop_jax.errors import InputError
from coop_jax.printing import one_line
from coop_jax.writing import append_whole, said, write_whole

logger = logging.getLogger(__name__)

LOGGERS = ("tensorboard", "wandb")
"""Readers of metrics besides the JSONL file's; each is also the name of its library."""

Values = Mapping[str, float]


def require(loggers: Iterable[str]) -> None:
    """Make sure that the libraries of these loggers are installed.

    Raises:
        InputError: one is not.
    """
    for name in loggers:
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise InputError.of_setting(
                "config.loggers",
                f"expected the library {name}, got an installation without; pip install {name}, or"
                f" leave {name!r} out",
            ) from error


class _Logger:
    def log(self, steps: Sequence[tuple[int, Values]]) -> None:
        """Add the metrics of numbered steps."""
        raise NotImplementedError

    def restart(self, first: int) -> None:
        """Steps from `first` on, which have been logged, will be taken again."""

    def conclude(self, steps: int, values: Values) -> None:
        """Add what was found after so many steps."""
        self.log([(steps, values)])

    def close(self) -> None:
        """Nothing more will come."""


class Writer:
    """The metrics of one run of a workdir; only the first of several processes writes.

    The metrics of every step go to `metrics/<run>.jsonl`, a line each that ends with its checksum
    `crc32`: that of the JSON of all other keys, in hexadecimal. Loggers are given the same metrics,
    and the test accuracies at the end: "tensorboard" writes event files into `tensorboard/<run>/`,
    "wandb" sends them to Weights & Biases, or keeps them in `wandb/` with WANDB_MODE=offline.

    Args:
        workdir: exists when the first metrics are written.
        run: its name in the workdir.
        loggers: some of `LOGGERS`.
        described: what Weights & Biases is to show as the run's config.
    """

    def __init__(
        self, workdir: Path, run: str, loggers: Iterable[str], described: Mapping[str, Any]
    ):
        self.path = workdir / "metrics" / f"{run}.jsonl"
        self._loggers: list[_Logger] = []
        if parallel.is_first() and "tensorboard" in loggers:
            self._loggers.append(_EventFiles(workdir / "tensorboard" / run))
        if parallel.is_first() and "wandb" in loggers:
            self._loggers.append(_WeightsAndBiases(workdir, run, described))

    def resume(self, first: int) -> None:
        """Go on with step `first`: drop what an earlier process wrote of the steps from there on.

        A line that a crash cut short, or that is not as it was written, and what follows it, are
        dropped too; the log says how many steps before `first` have no metrics. Event files only
        grow: a mark says that later steps are void, and TensorBoard hides them. Of Weights & Biases
        the metrics that came first stay.

        Raises:
            MachineError: the file cannot be read or written.
        """
        parallel.first_does(lambda: self._resume(first), "resume metrics")

    def _resume(self, first: int) -> None:
        with said("resume metrics", self.path):
            content = self.path.read_bytes() if self.path.exists() else b""
            kept = _lines_before(first, content)
            if len(kept) < first:
                logger.warning(
                    "%s: the metrics of %d of the first %d steps are lost; the training goes on",
                    *(self.path, first - len(kept), first),
                )
            size = sum(map(len, kept))
            if size < len(content):
                for other in self._loggers:
                    other.restart(first)
                os.truncate(self.path, size)

    def write(self, first: int, steps: Sequence[Values]) -> None:
        """Add the metrics of some steps in a row, the first of which has this number.

        Raises:
            MachineError: they cannot be written.
        """
        numbered = list(enumerate(steps, start=first))
        parallel.first_does(lambda: self._write(numbered), "write metrics")

    def _write(self, numbered: Sequence[tuple[int, Values]]) -> None:
        lines = [_line({"step": step, **values}) for step, values in numbered]
        # The loggers come last: then what they have is in the file, whenever the process ends.
        with said("write metrics", self.path):
            self.path.parent.mkdir(exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                append_whole(file, "".join(lines).encode())
            for other in self._loggers:
                other.log(numbered)

    def evaluated(self, steps: int, target: str, accuracy: float) -> None:
        """Log a test accuracy (%) after so many steps; `results.jsonl` has it anyway.

        Raises:
            MachineError: the loggers cannot write.
        """
        parallel.first_does(lambda: self._conclude(steps, target, accuracy), "log an accuracy")

    def _conclude(self, steps: int, target: str, accuracy: float) -> None:
        with said("log an accuracy", self.path):
            for other in self._loggers:
                other.conclude(steps, {f"accuracy/{target}": accuracy})

    def close(self) -> None:
        """Nothing more will come."""
        for other in self._loggers:
            with said("end metrics", self.path):
                other.close()


def _line(values: Mapping[str, Any]) -> str:
    """Return a line of JSON, with its checksum."""
    crc32 = zlib.crc32(json.dumps(values, allow_nan=False).encode())
    return json.dumps({**values, "crc32": f"{crc32:08x}"}) + "\n"


def _step(line: bytes) -> int:
    """Return the step of a line; -1 of one that is not as it was written."""
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        values = json.loads(line)
        del values["crc32"]
        return int(values["step"]) if _line(values).encode() == line else -1
    return -1


def _lines_before(first: int, content: bytes) -> list[bytes]:
    """Return the lines of steps before `first`, up to one that is damaged or out of order."""
    kept, latest = [], -1
    for line in content.splitlines(keepends=True):
        step = _step(line)
        if not latest < step < first:
            break
        kept.append(line)
        latest = step
    return kept


class _EventFiles(_Logger):
    """TensorBoard's event files in a folder: one of this process, beside those of earlier ones.

    They are written with the parts of tensorboard that do not look for TensorFlow.
    """

    def __init__(self, folder: Path):
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name

    def log(self, steps: Sequence[tuple[int, Values]]) -> None:
        shown = [
            (step, [{"tag": tag, "simple_value": value} for tag, value in values.items()])
            for step, values in steps
        ]
        self._append([{"step": step, "summary": {"value": values}} for step, values in shown])

    def restart(self, first: int) -> None:
        self._append([{"step": first, "session_log": {"status": "START"}}])

    def _append(self, events: Sequence[Mapping[str, Any]]) -> None:
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue] - made at import
        )
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._path.parent.mkdir(parents=True, exist_ok=True)
        records = io.BytesIO()
        writer = RecordWriter(records)
        with self._path.open("ab", buffering=0) as file:
            if not file.tell():
                version = Event(wall_time=time.time(), file_version="brain.Event:2")
                writer.write(version.SerializeToString())
            for event in events:
                writer.write(Event(wall_time=time.time(), **event).SerializeToString())
            append_whole(file, records.getvalue())


class _WeightsAndBiases(_Logger):
    """A run of Weights & Biases, the same one in every process that takes part.

    Its id and how many steps it has been given are kept in `metrics/<run>.wandb.json`, so that it
    is given none twice.
    """

    def __init__(self, workdir: Path, name: str, described: Mapping[str, Any]):
        self._workdir, self._name, self._described = workdir, name, described
        self._path = workdir / "metrics" / f"{name}.wandb.json"

    def log(self, steps: Sequence[tuple[int, Values]]) -> None:
        run, known = self._run, self._known()
        for step, values in steps:
            if step >= known["steps"]:
                run.log(dict(values), step=step)
        known["steps"] = max(known["steps"], *(step + 1 for step, _ in steps))
        write_whole(self._path, json.dumps(known).encode())

    def conclude(self, steps: int, values: Values) -> None:
        del steps
        self._run.summary.update(dict(values))

    def close(self) -> None:
        if "_run" in vars(self):
            self._run.finish()

    def _known(self) -> dict[str, Any]:
        """Return what is kept; where there is nothing yet, or a damaged file, a new run's."""
        if self._path.exists():
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                kept = json.loads(self._path.read_bytes())
                return {"id": str(kept["id"]), "steps": int(kept["steps"])}
            logger.warning("%s is damaged: Weights & Biases is given a new run", self._path)
        known = {"id": uuid.uuid4().hex[:8], "steps": 0}
        self._path.parent.mkdir(exist_ok=True)
        write_whole(self._path, json.dumps(known).encode())
        return known

    @functools.cached_property
    def _run(self) -> Any:
        import wandb  # pyright: ignore[reportMissingImports] - an extra

        try:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", "coop_jax"),
                group=os.environ.get("WANDB_RUN_GROUP", self._workdir.name),
                name=self._name,
                id=self._known()["id"],
                resume="allow",
                reinit="create_new",
                dir=self._workdir,
                config=dict(self._described),
                settings=wandb.Settings(console="off"),
            )
        except wandb.Error as error:
            raise InputError(
                f"expected to reach Weights & Biases, got {one_line(error)}; log in with wandb"
                " login, set WANDB_MODE=offline, or leave 'wandb' out of config.loggers in another"
                " --workdir"
            ) from error
