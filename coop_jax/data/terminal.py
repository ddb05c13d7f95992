"""What this folder's commands share: messages, a progress bar, and how they end."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from coop_jax.errors import InputError

USER_ERROR = 2
"""Exit code when the input was wrong."""


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} images/s" if task.speed else "")


@contextlib.contextmanager
def progress(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left; nothing where that is no terminal.

    Args:
        total: number of images.
        doing: what is done with them.

    Yields:
        A function that is told how many more images are done; any thread may call it.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=total)
        yield lambda images: bar.update(task, advance=images)


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def command(run: Callable[[], int]) -> int:
    """Run a command; warnings and bad input go to standard error, in one line each.

    Returns:
        The exit code: what `run` returns, or `USER_ERROR` for bad input.
    """
    package = logging.getLogger("coop_jax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package.addHandler(handler)
    level = package.level
    package.setLevel(logging.INFO)
    try:
        return run()
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
