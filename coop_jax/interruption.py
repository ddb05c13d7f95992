"""Ctrl-C: one line and the end of the process, whatever libraries make of the exception."""

import _thread
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

AGAIN = 0.05
"""Seconds after which an exception is raised again that could not be raised where it came."""

STANDARD_ERROR = 2
SHOW_CURSOR = b"\x1b[?25h\n"


@contextlib.contextmanager
def interruptible(say: Callable[[], object]) -> Iterator[None]:
    """Raise KeyboardInterrupt in what is inside at Ctrl-C, and call `say` once.

    A second Ctrl-C, or `PATIENCE` seconds, end the process at once with `CODE`, and so does the
    first one during an import: there are places in libraries where an exception is passed over, and
    what is kept on disk does not mind. In threads other than the first nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interruption = _Interruption(say)
    before = signal.signal(signal.SIGINT, interruption.come)
    try:
        yield
    except BaseException as error:
        # Python itself makes another exception of one that comes while a class is made.
        if not (interruption.has_come or isinstance(error, KeyboardInterrupt)):
            raise
        interruption.tell()
        raise KeyboardInterrupt from None
    finally:
        if not interruption.has_come:
            signal.signal(signal.SIGINT, before)


class _Interruption:
    """The events from the first Ctrl-C on; the process does not live for long then."""

    def __init__(self, say: Callable[[], object]):
        self._say, self._errors = say, -1
        self.has_come, self._is_told, self._is_raised_again = False, False, False

    def come(self, _: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self._is_raised_again:
            self._is_raised_again = False
            if self._is_told:
                return
        elif self.has_come:
            self._end()
        else:
            self.has_come = True
            sys.unraisablehook = self._not_raised
            self._silence()
            if _is_importing(frame):
                self._end()
            _in(PATIENCE, self._end)
        raise KeyboardInterrupt

    def tell(self) -> None:
        """Say it, unless it has been said."""
        if self._is_told:
            return
        self._is_told = True
        if self._errors >= 0:
            os.dup2(self._errors, STANDARD_ERROR)
            if os.isatty(STANDARD_ERROR):  # a progress bar may have been there
                os.write(STANDARD_ERROR, SHOW_CURSOR)
        self._say()
        if self._errors >= 0:
            self._silence()

    def _silence(self) -> None:
        """Let nothing more be seen: what libraries say of this exception helps nobody."""
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            self._errors = os.dup(STANDARD_ERROR)
            os.dup2(os.open(os.devnull, os.O_WRONLY), STANDARD_ERROR)

    def _not_raised(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise it again soon where it came in a callback that can raise nothing."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._is_raised_again = True
            _in(AGAIN, _thread.interrupt_main)

    def _end(self) -> None:
        self.tell()
        with contextlib.suppress(OSError, RuntimeError):  # while something is being printed
            sys.stdout.flush()
        os._exit(CODE)


def _is_importing(frame: FrameType | None) -> bool:
    """Tell whether a module is being imported; some abort the process where an exception comes."""
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _in(seconds: float, do: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
