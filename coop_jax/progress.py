"""The progress of a run and the time it will take: a bar on a terminal, log lines elsewhere."""

import contextlib
import logging
import time
from collections.abc import Iterator

from rich.progress import Progress

from coop_jax import printing
from coop_jax.terminal import progress_bar, times

logger = logging.getLogger(__name__)


class Tracker:
    """Counts training steps of a whole protocol."""

    def __init__(self, total: int, bar: Progress):
        self._total = total
        self._done = 0
        self._began = time.monotonic()
        self._bar = bar
        self._task = bar.add_task("starting", total=total)

    def start(self) -> None:
        """Training starts: the time left is estimated from here on."""
        self._began = time.monotonic()

    def skip(self, steps: int) -> None:
        """Count steps that an earlier process had done."""
        self._total -= steps
        self._bar.update(self._task, total=self._total)

    def advance(self, steps: int, doing: str) -> None:
        """Count steps just done, and say what they were for."""
        self._done += steps
        self._bar.update(self._task, advance=steps, description=doing)

    def say(self, what: str) -> None:
        """One line about a finished piece of work, with the time left where there is no bar."""
        if not self._bar.disable:
            self._bar.console.print(printing.cell(what, self._bar.console), soft_wrap=True)
            return
        if not self._done:
            logger.info("%s", what)
            return
        elapsed = time.monotonic() - self._began
        left = elapsed * (self._total - self._done) / self._done
        logger.info("%s  [%s]", what, times(elapsed, left))


@contextlib.contextmanager
def track(total: int) -> Iterator[Tracker]:
    """Track `total` training steps."""
    with progress_bar("steps") as bar:
        yield Tracker(total, bar)
