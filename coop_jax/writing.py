"""Write files that are there as a whole or not at all, and say in one line why that fails."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from coop_jax.errors import InputError, MachineError
from coop_jax.holding import NO_LOCKS, check_held

UNFINISHED = ".unfinished"
"""The end of the name of a file or folder that is being written."""

_LEFT = re.compile(rf".+\.[0-9a-f]{{32}}{re.escape(UNFINISHED)}")
"""The names of what is being written."""

_DEAD = 3600.0
"""Seconds after which what nobody has touched is what a killed process left."""

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), "bring its folder back"),
}


_OF_NAMES = (
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)
"""Errors of names: a folder in a file's place, a file in a folder's, no name of a file at all."""


def is_of_disk(error: BaseException) -> bool:
    """Tell whether an error says that a disk takes no more, or is not there."""
    of_disk = _ADVICE.keys() | {errno.EIO, errno.ENODEV, errno.ENXIO}
    return isinstance(error, OSError) and error.errno in of_disk


def raise_if_of_disk(error: BaseException, what: str) -> None:
    """Raise one line where an error, or one that it was made of, is of a disk (`is_of_disk`).

    Args:
        error: a library's.
        what: was to be done, e.g. "fetch weights".

    Raises:
        MachineError: it is.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        if isinstance(cause, OSError) and is_of_disk(cause):
            path = None if cause.filename is None else str(cause.filename)
            raise MachineError(failure(what, cause, path)) from error
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__


def reason(error: OSError) -> str:
    """Return why the file system refused, in its words."""
    return error.strerror or str(error) or type(error).__name__


def failure(what: str, error: OSError, path: str | os.PathLike[str] | None) -> str:
    """Return one line that says what was to be done, why not, and what to do.

    Args:
        what: was to be done, e.g. "write results".
        error: why not.
        path: of which file or folder, if that is known.
    """
    advice = _ADVICE.get(error.errno or 0, "see to the disk")
    of = "" if path is None else f" ({os.fspath(path)})"
    return f"expected to {what}, got {reason(error)}{of}; {advice}, and the same command goes on"


@contextlib.contextmanager
def said(what: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the file system refuses inside into one line.

    Args:
        what: is done, e.g. "write results".
        path: the file or folder.

    Raises:
        InputError: a file is where a folder has to be, or a folder where a file has to be.
        MachineError: the file system refused, or a folder that this process holds and the path lies
            in is no longer the one that it was.
    """
    check_held(path)
    try:
        yield
    except OSError as error:
        check_held(path)
        if error.errno in _OF_NAMES:
            raise InputError(
                f"expected to {what}, got {reason(error)} ({os.fspath(path)}); move what is there"
                " away, or name another"
            ) from error
        raise MachineError(failure(what, error, path)) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, on disk when this returns.

    It is written beside its place, as `NAME.<random>.unfinished`, and renamed over what was there;
    where that fails, nothing of it stays. It has an flock meanwhile: what a killed process left has
    none.

    Raises:
        OSError: the file system refused.
    """
    write_all({path: content})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files as `write_whole` does, all of them before one is there under its name.

    Raises:
        OSError: the file system refused; none of those that were not there before is there.
    """
    unfinished: dict[Path, Path] = {}
    made: list[Path] = []
    with contextlib.ExitStack() as opened:
        try:
            for path, content in contents.items():
                file = opened.enter_context(_open_unfinished(path))
                unfinished[path] = Path(file.name)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            for path in contents:
                is_new = not path.exists()
                unfinished[path].replace(path)
                if is_new:
                    made.append(path)
            for folder in {path.parent for path in contents}:
                sync_folder(folder)
            made = []
        finally:
            for path in (*made, *unfinished.values()):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _open_unfinished(path: Path) -> BinaryIO:
    """Open the file that takes the place of another, with an flock where there are any."""
    while True:
        name = unfinished_name(path)
        file = name.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return file
        if name.exists():
            return file
        file.close()  # another process took it for what a killed one left


def append_whole(file: BinaryIO, content: bytes, *, sync: bool = False) -> None:
    """Add all of some bytes to the end of an unbuffered file or, where that fails, none of them.

    Args:
        file: opened to append.
        content: the bytes.
        sync: whether they are on disk when this returns.

    Raises:
        OSError: the file system refused.
    """
    end = file.seek(0, os.SEEK_END)
    try:
        while content:
            content = content[file.write(content) :]
        if sync:
            os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def unfinished_name(path: Path) -> Path:
    """Return a name beside a path, for what takes its place when it is whole."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")


def remove_unfinished(folder: Path, *, of: str = "", shared: bool = False) -> None:
    """Remove what processes that were killed have left in a folder of files being written.

    Args:
        folder: where; nothing is removed below it but with what is.
        of: the name that the files were to have; any by default.
        shared: whether others may be writing here. A file stays then while it has an flock; a
            folder, and a file where there are no locks, until nobody has touched it for an hour.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if _LEFT.fullmatch(entry.name) and entry.name.lstrip(".").startswith(of):
                with contextlib.suppress(OSError):
                    _remove_left(entry, shared)


def _remove_left(entry: os.DirEntry[str], shared: bool) -> None:
    is_old = time.time() - entry.stat().st_mtime > _DEAD
    if entry.is_dir(follow_symlinks=False):
        if is_old or not shared:
            shutil.rmtree(entry, ignore_errors=True)
        return
    with contextlib.ExitStack() as opened:
        if shared:
            file = opened.enter_context(open(entry, "rb+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS or not is_old:
                    return
        os.unlink(entry)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
