"""Ctrl-C: one line and the end of the process, whatever libraries make of the exception."""

import _thread
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

CODE = 130
"""Exit code after Ctrl-C."""

PATIENCE = 5.0
"""Seconds that a command has to end after Ctrl-C."""

AGAIN = 0.05
"""Seconds after which an exception is raised again that could not be raised where it came."""


@contextlib.contextmanager
def interruptible(say: Callable[[], object]) -> Iterator[None]:
    """Raise KeyboardInterrupt in what is inside at Ctrl-C, and call `say` once.

    A second Ctrl-C, or `PATIENCE` seconds, end the process at once with `CODE`: there are places in
    libraries where an exception is passed over, and what is kept on disk does not mind. In threads
    other than the first nothing is changed.
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
    """What happens from the first Ctrl-C on; the process does not live for long then."""

    def __init__(self, say: Callable[[], object]):
        self._say, self._told = say, False
        self.has_come, self._is_raised_again = False, False

    def come(self, *_: object) -> None:
        """Handle the signal."""
        if self._is_raised_again:
            self._is_raised_again = False
        elif self.has_come:
            self._end()
        else:
            self.has_come = True
            # What libraries say of an exception that they did not expect helps nobody.
            logging.disable(logging.CRITICAL)
            threading.excepthook = lambda _: None
            sys.unraisablehook = self._not_raised
            _in(PATIENCE, self._end)
        raise KeyboardInterrupt

    def tell(self) -> None:
        """Say it, unless it has been said."""
        if not self._told:
            self._told = True
            self._say()

    def _not_raised(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise it again soon where it came in a callback that can raise nothing."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._is_raised_again = True
            _in(AGAIN, _thread.interrupt_main)

    def _end(self) -> None:
        self.tell()
        os._exit(CODE)


def _in(seconds: float, do: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()
