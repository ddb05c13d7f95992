"""What the commands share: messages, a progress bar, and how they end."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from coop_jax.errors import InputError

USER_ERROR = 2
"""Exit code when the input was wrong."""


@contextlib.contextmanager
def progress_bar(unit: str) -> Iterator[Progress | None]:
    """A bar on standard error that counts `unit`, with the time left; None if it is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield bar


@contextlib.contextmanager
def count_images(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """A progress bar for `total` images; yields what is told how many more are done.

    Any thread may call it.
    """
    with progress_bar("images") as bar:
        if bar is None:
            yield lambda images: None
            return
        task = bar.add_task(doing, total=total)
        yield lambda images: bar.update(task, advance=images)


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def refuse(error: BaseException) -> int:
    """Say in one line what was wrong; the exit code."""
    print(f"error: {one_line(error)}", file=sys.stderr)
    return USER_ERROR


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """What this package logs goes to standard error, a line each."""
    package = logging.getLogger("coop_jax")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate


def command(run: Callable[[], int], traceback: bool = False) -> int:
    """Run a command; the exit code: what `run` returns, or `USER_ERROR` for bad input.

    Raises:
        InputError: bad input, if a traceback is wanted.
    """
    with messages():
        try:
            return run()
        except InputError as error:
            if traceback:
                raise
            return refuse(error)
