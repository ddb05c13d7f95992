"""Hold a folder against other processes, and notice where it is no longer what was held.

The lock is an flock on the file `lock`. Network file systems pass that on to their hosts (NFS
does). Where there are no locks, the file itself is one: whoever makes it holds the folder, and says
so anew every `BEAT` seconds by the file's time; after `STALE` seconds without, it holds nothing.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from coop_jax.errors import InputError, MachineError

LOCK_FILE = "lock"

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""Errors of a file system that knows no locks."""

BEAT, STALE = 10.0, 60.0
"""Seconds between two signs of life of a holder without flock; after which it is taken for dead."""

_held: dict[Path, int] = {}
"""The open lock files of the folders that this process holds."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes for as long as this one lives or is inside.

    The folder is made for that, and goes again if nothing has come into it. A process may hold a
    folder more than once.

    Raises:
        InputError: another process holds it, as the message says.
        OSError: it cannot be made or written.
    """
    names = {_absolute(folder), folder.resolve()}
    if any(name in _held for name in names):
        yield
        return
    new = [above for above in (folder.resolve(), *folder.resolve().parents) if not above.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, new)
        descriptor = stack.enter_context(_locked(folder))
        _held.update(dict.fromkeys(names, descriptor))
        try:
            yield
        finally:
            for name in names:
                del _held[name]


def check_held(path: str | os.PathLike[str]) -> None:
    """See that the folders held by this process, at a path or above it, are still the same.

    Nothing is asked of a path that lies in none.

    Raises:
        MachineError: one was moved, deleted or replaced, or its lock was.
    """
    place = _absolute(path)
    for folder in (place, *place.parents):
        if folder in _held and (got := _other(folder / LOCK_FILE, _held[folder])):
            raise MachineError(
                f"expected the folder that this process holds, {folder}, got {got}: it, or the"
                f" file {LOCK_FILE} in it, was moved, deleted or replaced meanwhile; bring it back,"
                " and the same command goes on"
            )


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))


def is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open file is the one at a path."""
    return not _other(path, descriptor)


def _other(path: Path, descriptor: int) -> str:
    """Say what is at a path instead of an open file; nothing if that is there."""
    try:
        return "" if os.path.samestat(path.stat(), os.fstat(descriptor)) else "another"
    except FileNotFoundError:
        return "none"
    except OSError as error:
        return error.strerror or str(error)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock a folder, a new one if need be; yield the open file."""
    path = folder / LOCK_FILE
    descriptor, has_flock = _lock(folder)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        stack.callback(_remove_own, path, descriptor)
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {now},"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        if not has_flock:
            stack.enter_context(_beating(descriptor))
        yield descriptor


def _lock(folder: Path) -> tuple[int, bool]:
    """Return the open lock file, and whether it has an flock."""
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, is_new = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise _refused(folder, descriptor) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(descriptor)
                raise
            if is_new:
                return descriptor, False
            if _age(path, descriptor) < STALE:
                raise _refused(
                    folder, descriptor, f" (where it was killed, {STALE:.0f} seconds)"
                ) from error
            _take_away(path, descriptor)
        else:
            # Whoever held it may have removed the file between opening and locking it.
            if is_at(path, descriptor):
                return descriptor, True
        os.close(descriptor)


def _open(path: Path) -> tuple[int, bool]:
    """Return the open lock file, and whether it is new."""
    while True:
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _refused(folder: Path, descriptor: int, until: str = "") -> InputError:
    """Say who holds a folder; closes the lock file."""
    holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another"
    os.close(descriptor)
    return InputError(
        f"expected a --workdir that no other process writes to, got {folder}, to which {holder}"
        f" writes; wait until that ends{until}, or name another"
    )


def _age(path: Path, descriptor: int) -> float:
    """Return the seconds since the last sign of life, by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    probe.touch()
    try:
        return probe.stat().st_mtime - os.fstat(descriptor).st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _take_away(path: Path, descriptor: int) -> None:
    """Remove the lock of a dead holder, but not the one that a new holder has made meanwhile."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _other(aside, descriptor):
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink()


@contextlib.contextmanager
def _beating(descriptor: int) -> Iterator[None]:
    """Give signs of life from a thread."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with contextlib.suppress(OSError):  # the disk may come back
                os.utime(descriptor)

    thread = threading.Thread(target=beat, name="holding", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _remove_own(path: Path, descriptor: int) -> None:
    if is_at(path, descriptor):
        with contextlib.suppress(OSError):
            path.unlink()


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
