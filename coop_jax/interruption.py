"""Ctrl-C: one line and the end of the process, whatever libraries make of the exception."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

CODE = 130
"""Exit code after Ctrl-C."""

PATIENCE = 5.0
"""Seconds that a command has to end after Ctrl-C."""

STANDARD_ERROR = 2
SHOW_CURSOR = b"\x1b[?25h\n"


@contextlib.contextmanager
def interruptible(say: Callable[[], object]) -> Iterator[None]:
    """Call `say` at Ctrl-C, and raise KeyboardInterrupt in what is inside.

    A second Ctrl-C, or `PATIENCE` seconds, end the process at once with `CODE`, and so does the
    first one during an import: there are places in libraries where an exception is passed over, and
    what is kept on disk does not mind. In threads other than the first nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came = threading.Event()

    def come(_: int, frame: FrameType | None) -> None:
        if came.is_set():
            _end()
        came.set()
        if os.isatty(STANDARD_ERROR):  # a progress bar may have been there
            os.write(STANDARD_ERROR, SHOW_CURSOR)
        say()
        _silence()
        if _is_importing(frame):
            _end()
        timer = threading.Timer(PATIENCE, _end)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, come)
    try:
        yield
    except BaseException as error:
        # Python itself makes another exception of one that comes while a class is made.
        if came.is_set():
            raise KeyboardInterrupt from None
        if isinstance(error, KeyboardInterrupt):
            say()
        raise
    finally:
        if not came.is_set():
            signal.signal(signal.SIGINT, before)


def _silence() -> None:
    """Let nothing more be seen: what libraries say of this exception helps nobody."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_ERROR)


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported; some abort the process where an exception comes."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _end() -> None:
    with contextlib.suppress(OSError, RuntimeError):  # while something is being printed
        sys.stdout.flush()
    os._exit(CODE)
