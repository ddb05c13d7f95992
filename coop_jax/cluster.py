"""Several processes that train together: they come together, and end together.

Where a process dies or stops answering, JAX ends the others from a thread of C++ that no Python can
hold: depending on its version by an abort with a hundred lines of log, or at once with exit code 1.
All that is sure is a line that it writes to standard error first. So what libraries write there
goes through a process of its own, `coop_jax.cluster_log`, which outlives this one, says in its
place why it ends, and wakes a thread here that ends it with exit code 1 while the abort is held up.
No connections or beats are added to JAX's own, of which every process sends one in ten seconds.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

from coop_jax import cluster_log, compilation_cache
from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line

HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as gone."""

TIMEOUT = 300
"""Seconds, by default, in which all processes have to come."""

PATIENCE = 5
"""Seconds that a process which ends early waits for the others to end with it."""

FAILED = 1
STANDARD_ERROR = 2

GONE = (
    "expected all processes to go on, got one that has ended or does not answer; see what it said:"
    " the same commands go on where they stopped"
)


class _Member:
    """One of several processes, from before they come together until it ends."""

    def __init__(self, missing: str):
        self.code = FAILED
        self._leave_standard_error()
        self.tell(cluster_log.SAY, missing)
        threading.Thread(target=self._end_when_told, daemon=True).start()
        _hold_up_aborts()

    def _leave_standard_error(self) -> None:
        """Leave file descriptor 2 to libraries; Python itself writes on to what it was."""
        sys.stderr.flush()
        before = sys.stderr
        with contextlib.suppress(OSError):  # a stream of no file
            if before.fileno() == STANDARD_ERROR:
                copy = os.dup(STANDARD_ERROR)
                sys.stderr = open(  # noqa: SIM115 - for as long as the process lives
                    copy, "w", encoding=before.encoding, errors=before.errors, buffering=1
                )
        for handler in logging.getLogger("coop_jax").handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(sys.stderr)
        self._log = subprocess.Popen(
            [sys.executable, "-I", "-S", cluster_log.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for it
        )
        assert self._log.stdin is not None
        os.dup2(self._log.stdin.fileno(), STANDARD_ERROR)
        self._log.stdin.close()

    def tell(self, mark: bytes, text: str) -> None:
        """Tell the process that reads the log."""
        with contextlib.suppress(OSError):  # it is gone
            os.write(STANDARD_ERROR, b"%s%s\n" % (mark, one_line(text).encode()))

    def _end_when_told(self) -> None:
        assert self._log.stdout is not None
        if self._log.stdout.read(1):
            os._exit(self.code)

    def judge(self, error: Exception) -> int:
        """Return the exit code of an error that may come from the end of another process."""
        if isinstance(error, InputError | MachineError):  # whose traceback is asked for
            traceback.print_exception(error)
            return 2 if isinstance(error, InputError) else FAILED
        if "gloo" in str(error).lower():
            self.tell(cluster_log.GONE, one_line(error))
        time.sleep(HEARTBEAT + PATIENCE)  # the thread ends this process if another is gone
        traceback.print_exception(error)
        return FAILED

    def leave(self, code: int) -> None:
        """End with the others; where that is early, wait for them no longer than `PATIENCE`."""
        if code:
            self.code = code
            self.tell(cluster_log.SAY, "")  # it has been said why
        leaving = threading.Thread(target=_shut_down, daemon=True)
        leaving.start()
        leaving.join(PATIENCE if code else None)
        if leaving.is_alive():
            os._exit(code)


_member: _Member | None = None


def join(
    coordinator: str | None, processes: int | None, process: int | None, timeout: int = TIMEOUT
) -> None:
    """Make this process one of several that train together; before anything else uses JAX.

    A process that does not come, or another failure of the cluster, ends this one: with one line
    and exit code 1, by `end`'s means.

    Args:
        coordinator: host:port of the first process; None where the cluster says it (a TPU pod
            slice, SLURM, Open MPI).
        processes: how many there are.
        process: which of them this is, from 0.
        timeout: seconds in which all have to come.

    Raises:
        InputError: the cluster does not say it, or there is no such host.
    """
    if coordinator is not None:
        _check_host(coordinator.rpartition(":")[0])
    compilation_cache.leave()
    import jax

    global _member
    count = "all" if processes is None else f"all {processes}"
    _member = _Member(
        f"expected {count} processes within {timeout} seconds, each with another number of the same"
        f" count, got others; start the first one too, on {coordinator or 'its host'}, or raise"
        " --timeout"
    )
    failures: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=timeout,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except Exception as error:
            failures.append(error)

    # In a thread, as it does not return for Ctrl-C.
    coming = threading.Thread(target=initialize, daemon=True)
    coming.start()
    while coming.is_alive():
        coming.join(0.1)
    if failures:
        raise InputError(
            "expected a cluster that JAX knows or --coordinator, --processes and --process, got"
            f" {one_line(failures[0]):.300}; start one process per host, and the first one too"
        ) from failures[0]
    if threading.current_thread() is threading.main_thread():  # JAX has taken SIGTERM for itself
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    _member.tell(cluster_log.SAY, GONE)


def end(run: Callable[[], int]) -> int:
    """Run a command to its exit code; one of several processes ends with the others.

    None is left waiting: those that have come to their end wait for the others, one that ends early
    does so alone after `PATIENCE` seconds, which the others notice within `HEARTBEAT`. An error of
    an operation of all processes waits that long for its reason.
    """
    try:
        code = run()
    except Exception as error:
        if _member is None:
            raise
        code = _member.judge(error)
    if _member is not None:
        _member.leave(code)
    return code


def _check_host(host: str) -> None:
    try:
        socket.getaddrinfo(host.strip("[]"), None)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a host"
        raise InputError(
            f"--coordinator: expected a host that this one knows, got {host!r:.80} ({reason});"
            " correct its name, or give its address"
        ) from error


def _shut_down() -> None:
    import jax

    with contextlib.suppress(Exception):  # the process that reads the log says why
        jax.distributed.shutdown()


def _hold_up_aborts() -> None:
    """Let an abort wait for six seconds, in the thread that it comes from: SIGABRT is number 6.

    The handler is the C library's `sleep`, which may be called there, whatever that thread holds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    library.signal.restype = ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
