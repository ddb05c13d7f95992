"""Bad inputs of every kind, each with how a command must refuse it; usable without pytest.

`cases()` are all of them, `run(case, folder)` tries one, and `problem(case, outcome)` says what is
wrong with how it ended.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from coop_jax import __main__ as command
from coop_jax.saved import use

KINDS = (
    "settings",
    "config_files",
    "clips",
    "weights",
    "tokenizers",
    "datasets",
    "images",
    "saved",
    "archives",
    "features",
    "workdirs",
    "words",
    "environment",
)
"""The modules here; each has `cases()`."""

SECONDS = 30
"""The time that a command may take to refuse."""

MEMORY = 2**30
"""Bytes that a process may grow by."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: the name of its module.
        name: what is bad, in words; unique in its kind.
        make: writes the input into an empty folder and returns the words of a command.
        says: a regular expression that the line on standard error has.
        codes: the exit codes that are right: 1 too where a file of our own is damaged.
        needs: a module that must be installed.
        environment: variables of a process of its own; None to run in this process.
    """

    kind: str
    name: str
    make: Callable[[Path], Sequence[str | Path]]
    says: str
    codes: tuple[int, ...] = (2,)
    needs: str = ""
    environment: Mapping[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"

    @property
    def can_run(self) -> bool:
        """Whether this machine has what it needs."""
        return not self.needs or importlib.util.find_spec(self.needs) is not None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: the exit code; None where an exception came through, or time was up.
        lines: on standard error.
        seconds: that it took.
        memory: bytes by which the process grew at its largest; 0 where that is not known.
        changed: what is new, gone or other in the folder.
        error: the end of the traceback, if there is one.
    """

    code: int | None
    lines: list[str]
    seconds: float
    memory: int
    changed: list[str]
    error: str = ""


def cases() -> Iterator[Case]:
    """Yield all bad inputs, kind by kind."""
    for kind in KINDS:
        yield from importlib.import_module(f"{__name__}.{kind}").cases()


def run(case: Case, folder: Path) -> Outcome:
    """Write a bad input into an empty folder and let a command read it there."""
    words = [str(word) for word in case.make(folder)]
    with _captured():
        use._warn_of_embedded_clip()  # once in a process, which has nothing to do with the input
    before, code, error = _listing(folder), None, ""
    start = time.monotonic()
    with grown() as memory, _captured() as lines, contextlib.chdir(folder):
        try:
            with _alarm():
                code = _apart(words, case.environment) if case.environment else _here(words)
        except BaseException:  # an exit or an interruption is wrong, too
            error = "".join(traceback.format_exc(limit=-6))
    seconds = time.monotonic() - start
    changed = sorted(set(before.items()) ^ set(_listing(folder).items()))
    return Outcome(code, lines, seconds, memory(), [path for path, _ in changed], error)


def problem(case: Case, outcome: Outcome) -> str:
    """Say what is wrong with how a command ended; "" where nothing is."""
    if outcome.error:
        return outcome.error
    if outcome.code not in case.codes:
        return f"expected exit code {case.codes}, got {outcome.code}: {outcome.lines}"
    if len(outcome.lines) != 1:
        return f"expected one line, got {len(outcome.lines)}: {outcome.lines}"
    (line,) = outcome.lines
    if not re.fullmatch(r"error: .*expected .+, (got|but) .*; .+", line):
        return f"expected a line that says what was expected, what was got and what to do: {line}"
    if not re.search(case.says, line):
        return f"expected a line that says {case.says!r}, got {line}"
    if outcome.changed:
        return f"expected nothing written, got {outcome.changed}"
    if outcome.memory > MEMORY:
        return f"expected at most {MEMORY >> 20} MiB, got {outcome.memory >> 20}"
    return ""


def _here(words: Sequence[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="(?!coop_jax).*")
        return command.main(words)


def _apart(words: Sequence[str], environment: Mapping[str, str]) -> int:
    python = [
        sys.executable,
        "-c",
        "import sys; from coop_jax.__main__ import main; sys.exit(main())",
    ]
    values = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    return subprocess.run([*python, *words], env=values, stdin=subprocess.DEVNULL).returncode


def _listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder, with what changes as it is written to; links are not followed."""
    listed = {}
    for above, folders, files in os.walk(folder):
        for path in (os.path.join(above, name) for name in (*folders, *files)):
            status = os.lstat(path)
            listed[path] = status.st_mode, status.st_size, status.st_mtime_ns
    return listed


class _TimeIsUpError(BaseException):
    """A command has not ended."""


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    """Raise `_TimeIsUpError` after `SECONDS`; end the process where nothing hears that."""

    def ring(*_: object) -> None:
        raise _TimeIsUpError(f"not ended after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(4 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Keep what is written to standard error, by libraries in other languages too."""
    lines: list[str] = []
    streams, descriptors = (sys.stdout, sys.stderr), (os.dup(1), os.dup(2))
    kept = functools.partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
    with kept() as out, kept() as err:
        for stream in streams:
            stream.flush()
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = out, err
        try:
            yield lines
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = streams
            for number, descriptor in zip((1, 2), descriptors, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
            err.seek(0)
            lines += err.read().splitlines()


@contextlib.contextmanager
def grown() -> Iterator[Callable[[], int]]:
    """Yield what tells by how many bytes this process has grown at its largest, from Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
        return 1024 * int(found[1]) if found else 0

    try:
        reset.write_text("5")
        before = read("VmRSS")
    except OSError:
        yield lambda: 0
        return
    yield lambda: read("VmHWM") - before
