"""Ctrl-C and SIGTERM: one line and the end of the process, whatever libraries make of it."""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from coop_jax.errors import InputError, MachineError

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes after Ctrl-C and after SIGTERM, as shells have them."""

_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}

PATIENCE = 9.0
"""Seconds that a command has to end after a signal."""

STANDARD_ERROR = 2
SHOW_CURSOR = b"\x1b[?25h\n"


class Stopped(KeyboardInterrupt):
    """The process was told to end and what was learned so far is saved; the message says what."""


class _Signals:
    """The signal that has come, if one has, and whether something that is being done goes first."""

    wanted: signal.Signals | None = None
    is_patient = False


def is_wanted() -> bool:
    """Tell whether the process has been told to end, within `patiently`."""
    return _Signals.wanted is not None


def code() -> int:
    """Return the exit code after the signal that has come."""
    return CODES[_Signals.wanted or signal.SIGINT]


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """Let what is inside go on after a signal until it asks `is_wanted` and raises `Stopped`.

    It has `PATIENCE` seconds.
    """
    before, _Signals.is_patient = _Signals.is_patient, True
    try:
        yield
    finally:
        _Signals.is_patient = before
    if is_wanted():
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(say: Callable[[object], object]) -> Iterator[None]:
    """Call `say` once at Ctrl-C or SIGTERM, and raise KeyboardInterrupt in what is inside.

    Within `patiently` nothing is raised. A second signal, or `PATIENCE` seconds, end the process at
    once with the code of the first, and so does the first one during an import: there are places in
    libraries where an exception is passed over, and what is kept on disk does not mind. In threads
    other than the first nothing is changed.

    Args:
        say: is called with what has come, or with the message of `Stopped`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = threading.Event()

    def tell(what: object = "") -> None:
        if not told.is_set():
            told.set()
            if os.isatty(STANDARD_ERROR):  # a progress bar may have been there
                os.write(STANDARD_ERROR, SHOW_CURSOR)
            name = _NAMES[_Signals.wanted or signal.SIGINT]
            if isinstance(what, Stopped) and not is_wanted():
                name, _Signals.wanted = "stopped with another process", signal.SIGTERM
            say(f"{name}, {what}" if str(what) else name)
            if is_wanted():
                _silence()

    def end() -> None:
        tell()
        with contextlib.suppress(OSError, RuntimeError):  # while something is being printed
            sys.stdout.flush()
        os._exit(code())

    def come(number: int, frame: FrameType | None) -> None:
        if _Signals.wanted is None:
            _Signals.wanted = signal.Signals(number)
        if _Signals.is_patient:
            return
        tell()
        if _is_importing(frame):
            end()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, come) for number in CODES}
    with _watched(end):
        try:
            yield
        except BaseException as error:
            # Python itself makes another exception of one that comes while a class is made.
            if is_wanted() or isinstance(error, KeyboardInterrupt):
                if isinstance(error, InputError | MachineError):
                    tell(f"but {error}")
                tell(error if isinstance(error, Stopped) else "")
                raise KeyboardInterrupt from None
            raise
        finally:
            if not is_wanted():
                for number, handler in before.items():
                    signal.signal(number, handler)


@contextlib.contextmanager
def _watched(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` in a thread at a second signal, or `PATIENCE` seconds after the first.

    Python calls handlers between two of its own steps alone, which a program of XLA may keep it
    from for minutes; the number of a signal comes through a pipe at once.
    """
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    earlier = signal.set_wakeup_fd(sender, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(receiver, 1):
            if number[0] in CODES:
                _Signals.wanted = _Signals.wanted or signal.Signals(number[0])
                select.select([receiver], [], [], PATIENCE)
                end()
        os.close(receiver)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        if not is_wanted():
            signal.set_wakeup_fd(earlier)
            os.close(sender)


def _silence() -> None:
    """Let nothing more be seen: what libraries say of this exception helps nobody."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in {STANDARD_ERROR, sys.stderr.fileno()}:
            os.dup2(nowhere, descriptor)


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported; some abort the process where an exception comes."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None
