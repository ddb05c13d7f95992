"""Commands of the package in processes of their own: forked from this one, or started anew.

A process that has imported everything, and has neither a JAX backend nor a second thread, is forked
for a trial in no time. `faults.c`, loaded before everything else, lets it die or fail at a chosen
event of the file system.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import os
import pkgutil
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = Path(__file__).with_name("launch.py")
FAULTS = Path(__file__).with_name("faults.c")

IMAGES_AT_ONCE = 400
"""Images made ahead in a trial: small runs then have several checkpoints."""

READ = "read /"
"""How a line begins that is no event: a file was opened to be read."""

LONGEST = 240.0
"""Seconds after which a process counts as one that never ends."""


IMPORTS = 3.0
"""About the seconds that a new process takes until it does anything."""


class Fault(NamedTuple):
    """What befalls the events `first` to `last` of the file system, counted from 1.

    `action` is "none", "kill", "tear", "short" or the number of an error, as in `faults.c`.
    """

    action: str = "none"
    first: int = 0
    last: int = 0


NO_FAULT = Fault()


class Ended(NamedTuple):
    """How a process ended: exit code (minus the signal's number), its lines, seconds.

    The code is None where it had to be killed after `LONGEST`.
    """

    code: int | None
    out: list[str]
    errors: list[str]
    seconds: float


def compile_faults(folder: Path) -> Path:
    """Compile `faults.c` into a folder, with `cc` or the compiler of the package ziglang.

    Raises:
        SystemExit: there is no compiler, or it fails.
    """
    library = folder / "faults.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None and importlib.util.find_spec("ziglang") is None:
        raise SystemExit(
            "expected a C compiler, cc or the package ziglang, got neither; pip install ziglang"
        )
    words = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    made = subprocess.run(
        [*words, "-O1", "-shared", "-fPIC", "-o", library, FAULTS, "-ldl"], check=False
    )
    if made.returncode:
        raise SystemExit(
            f"expected {FAULTS} to compile, got exit code {made.returncode}; see above"
        )
    return library


def environment(work: Path) -> dict[str, str]:
    """Return the environment of the processes that trials are forked from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COOP_JAX")}
    return {
        **kept,
        "LD_PRELOAD": str(work / "faults.so"),
        "XDG_CACHE_HOME": str(work / "caches"),
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",  # else NumPy starts threads, and forking is unsound
        "JAX_PLATFORMS": "cpu",
    }


def ready() -> None:
    """Import all that runs need, and see that this process can be forked.

    Raises:
        RuntimeError: an import has started a thread.
    """
    from coop_jax import compilation_cache

    compilation_cache.keep()
    import PIL.Image

    import coop_jax

    names = [f"coop_jax.{name}" for name in ("main", "protocols", "checkpoint", "report.__main__")]
    for package in ("coop_jax", "coop_jax.methods", "coop_jax.data", "coop_jax.commands"):
        searched = importlib.import_module(package).__path__
        names += [f"{package}.{module.name}" for module in pkgutil.iter_modules(searched)]
    others = (
        "matplotlib.pyplot",
        "matplotlib.backends.backend_agg",
        "ml_collections.config_flags",
        "orbax.checkpoint",
        "rich.progress",
        "safetensors.numpy",
        "sklearn.datasets",
        "tensorboard.summary.writer.event_file_writer",
        "tensorflow_datasets",
        "tokenizers",
        "wcwidth",
    )
    for name in [*names, *others]:
        if not name.endswith("__main__") or name == "coop_jax.report.__main__":
            with contextlib.suppress(ImportError):  # of an extra
                importlib.import_module(name)
    PIL.Image.init()
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise RuntimeError(f"expected imports that start no thread, got {threads} threads")
    warnings.filterwarnings("ignore", message=".*fork.*")
    assert coop_jax.__name__
    gc.freeze()


def arm(fault: Fault, folder: Path, log: Path) -> str:
    """Return what `faults.c` is told for the events below a folder."""
    return "\n".join([str(folder), str(fault.first), str(fault.last), fault.action, str(log)])


class Process:
    """A command of the package that runs in `folder/files`, where what it writes is watched.

    Its output is kept in `folder`.

    Args:
        words: the command line behind `coop_jax`.
        folder: of the trial.
        fault: what befalls it.
        fresh: whether it is started anew, not forked.
        name: what the files of its output begin with.
        variables: added to the environment.
        limit: the largest file, in bytes, that it may write.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        fault: Fault = NO_FAULT,
        *,
        fresh: bool = False,
        name: str = "run",
        variables: dict[str, str] | None = None,
        limit: int | None = None,
        before: Sequence[str] = (),
    ):
        self.folder, self.name = folder, name
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.events_path = folder / f"{name}.events"
        self.events_path.unlink(missing_ok=True)
        told = arm(fault, self.files.resolve(), self.events_path)
        variables = variables or {}
        self._out = [open(self._path(end), "wb") for end in ("out", "err")]  # noqa: SIM115
        self.began = time.monotonic()
        if fresh or before:
            self.pid = subprocess.Popen(
                [*before, sys.executable, LAUNCH, *words],
                cwd=self.files,
                env={**os.environ, **variables, "FAULTS": told},
                stdin=subprocess.DEVNULL,
                stdout=self._out[0],
                stderr=self._out[1],
                preexec_fn=None if limit is None else lambda: _limit(limit),
            ).pid
        else:
            sys.stdout.flush()
            sys.stderr.flush()
            self.pid = os.fork()
            if self.pid == 0:
                self._be(words, told, variables, limit)
        for file in self._out:
            file.close()
        self._descriptor = os.pidfd_open(self.pid)

    def _path(self, end: str) -> Path:
        return self.folder / f"{self.name}.{end}"

    def _be(
        self, words: Sequence[str], told: str, variables: dict[str, str], limit: int | None
    ) -> None:
        """Be the command, in the child."""
        code = 70
        try:
            os.chdir(self.files)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, file in enumerate(self._out, start=1):
                os.dup2(file.fileno(), number)
            os.environ.update(variables)
            if limit is not None:
                _limit(limit)
            code = launch(words, told)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def is_running(self, seconds: float = 0.0) -> bool:
        """Tell whether it still runs after so many seconds, or less if it ends before."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(max(seconds, 0) * 1000)

    def send(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def end(self, limit: float = LONGEST) -> Ended:
        """Wait until it has ended; kill it after so many seconds."""
        too_long = self.is_running(limit)
        if too_long:
            self.send(signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.began
        os.close(self._descriptor)
        code = None if too_long else os.waitstatus_to_exitcode(status)
        out, errors = (
            self._path(end).read_text(errors="replace").splitlines() for end in ("out", "err")
        )
        return Ended(code, out, errors, seconds)

    def _lines(self) -> list[str]:
        return self.events_path.read_text().splitlines() if self.events_path.exists() else []

    def events(self) -> list[str]:
        """Return the events of the file system so far: the call and the path."""
        return [line for line in self._lines() if not line.startswith(READ)]

    def reads(self) -> set[str]:
        """Return the files in `files` that were opened to be read so far, and are still there."""
        paths = {line.removeprefix(READ) for line in self._lines() if line.startswith(READ)}
        return {path for path in paths if (self.files / path).is_file()}


def _limit(size: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as Python has it


def launch(words: Sequence[str], told: str | None = None) -> int:
    """Run a command with small chunks in this process; its exit code."""
    images: Any = importlib.import_module("coop_jax.images")
    images.IMAGES_AT_ONCE = IMAGES_AT_ONCE
    main: Any = importlib.import_module("coop_jax.__main__")
    if told is not None:
        ctypes.CDLL(None).faults_arm(told.encode())
    return main.main(list(words))
