"""Write files that are there as a whole or not at all, and say in one line why that fails."""

import contextlib
import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from coop_jax.errors import MachineError
from coop_jax.holding import check_held

UNFINISHED = ".unfinished"
"""The end of the name of a file that is being written."""

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "bring its folder back"),
}


def reason(error: OSError) -> str:
    """Return why the file system refused, in its words."""
    return error.strerror or str(error) or type(error).__name__


@contextlib.contextmanager
def said(what: str, path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the file system refuses inside into one line.

    Args:
        what: is done, e.g. "write results".
        path: the file or folder.

    Raises:
        MachineError: the file system refused, or a folder that this process holds and the path lies
            in is no longer the one that it was.
    """
    check_held(path)
    try:
        yield
    except OSError as error:
        check_held(path)
        advice = _ADVICE.get(error.errno or 0, "see to the disk")
        raise MachineError(
            f"expected to {what}, got {reason(error)} ({os.fspath(path)}); {advice}, and the same"
            " command goes on"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, on disk when this returns.

    It is written beside its place, as `NAME.<random>.unfinished`, and renamed over what was there;
    where that fails, nothing of it stays.

    Raises:
        OSError: the file system refused.
    """
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
