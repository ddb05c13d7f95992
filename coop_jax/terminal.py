"""Messages, a progress bar and new files, which the commands share."""

import contextlib
import datetime
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column
from rich.text import Text

from coop_jax import printing
from coop_jax.errors import InputError
from coop_jax.writing import said, write_all

WIDE = 120
"""Columns of a terminal that has room for a bar."""


class TimesColumn(ProgressColumn):
    """The time that it has taken, and the time that it will take."""

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds, each with what they are."""
        return Text(times(task.finished_time or task.elapsed or 0.0, task.time_remaining))


def times(elapsed: float, left: float | None) -> str:
    """Say what has passed and what is left, in hours, minutes and seconds; None is not known."""
    words = f"{_clock(elapsed)} elapsed"
    return words if left is None else f"{words}, {_clock(left)} left"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def progress_bar(unit: str) -> Progress:
    """A line on standard error that counts `unit`, with times; nothing where that is no terminal.

    It has a bar where there is room.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        *[BarColumn(20, table_column=Column(no_wrap=True))] * (console.width >= WIDE),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit),
        TimesColumn(table_column=Column(no_wrap=True)),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


@contextlib.contextmanager
def count_images(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    """A progress bar for `total` images; yields what is told how many more are done.

    Any thread may call it.
    """
    with progress_bar("images") as bar:
        task = bar.add_task(doing, total=total)
        yield lambda images: bar.update(task, advance=images)


def check_name(path: str | os.PathLike[str]) -> None:
    """See that something of this name could be there.

    Raises:
        InputError: it is too long, has a null character, or lies where nothing can be looked up.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"expected the name of a file or folder, got {os.fspath(path)!r:.80} ({reason});"
            " correct it"
        ) from error


def check_folder(folder: Path, expected: str) -> None:
    """See that no file is where a folder, or one above it, has to be.

    Args:
        folder: its path.
        expected: what it is, e.g. "a --workdir to write to".

    Raises:
        InputError: there is one.
    """
    for above in (folder, *folder.absolute().parents):
        if os.path.exists(above) and not os.path.isdir(above):
            raise InputError(f"expected {expected}, got {folder} ({above} is a file); name another")


def why_not_made(path: Path) -> str:
    """Say why neither this nor the folders that it needs can be made; empty if they can.

    Raises:
        MachineError: the folder that they would be made in cannot be written.
    """
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        return f"{above} is a file"
    with said("write there", path):
        if os.statvfs(above).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if not os.access(above, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return ""


def check_new(paths: Iterable[Path], *, makes_folders: bool = False) -> None:
    """See that files can be written and nothing is lost, before any work is done for them.

    Args:
        paths: the files.
        makes_folders: whether whoever writes them makes the folders that they lie in.

    Raises:
        InputError: one is there already, cannot be made, or is the same as another.
        MachineError: a folder cannot be written.
    """
    paths = list(paths)
    if len({path.absolute() for path in paths}) < len(paths):
        names = ", ".join(map(str, paths))
        raise InputError(f"expected new files to write, got {names}, the same twice; name another")
    for path in paths:
        check_name(path)
        why = ""
        if path.exists():
            why = "which is there already"
        elif not makes_folders and not path.absolute().parent.is_dir():
            why = "whose folder is not there"
        elif reason := why_not_made(path):
            why = f"but {reason}"
        if why:
            raise InputError(f"expected a new file to write, got {path}, {why}; name another")


def write_new(contents: Mapping[Path, str | bytes]) -> None:
    """Write new files, all of them before one is there under its name; texts in UTF-8.

    Bytes of a file's name that are no UTF-8 are written as escapes of JSON.

    Raises:
        InputError: one is there already.
        MachineError: one cannot be written; none of them is there then.
    """
    check_new(contents)
    if contents:
        with said("write", " and ".join(map(str, contents))):
            write_all(
                {
                    path: content.encode(errors="backslashreplace")
                    if isinstance(content, str)
                    else content
                    for path, content in contents.items()
                }
            )


class _Lines(logging.Formatter):
    """Messages alone, each in one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message, whatever names are in it."""
        return printing.escaped(record.message)


class _File(logging.FileHandler):
    """Messages in a file, with the time of each."""

    def __init__(self, file: Path):
        with said("write what is logged", file):
            file.parent.mkdir(parents=True, exist_ok=True)
            super().__init__(file, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with said("write what is logged", self.baseFilename):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if isinstance(sys.exception(), OSError):
            raise
        super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written before
            super().close()


@contextlib.contextmanager
def messages(file: Path | None = None) -> Iterator[None]:
    """Send what this package logs to standard error, a line each; or to a file, besides.

    Raises:
        MachineError: the file cannot be written, when something is logged as well.
    """
    package = logging.getLogger("coop_jax")
    level, propagate = package.level, package.propagate
    if file is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Lines())
        package.propagate = False
    else:
        handler = _File(file)
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate
        if file is not None:
            handler.close()
