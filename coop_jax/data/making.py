"""Make a folder of files once, whatever other processes do, and tell whether it is whole."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from coop_jax import writing
from coop_jax.holding import is_at

DIGESTS = "sha256.json"
"""The file with the digests of the others in its folder."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Hold the making of a folder: other processes wait until this one is done, or dead.

    Yields:
        False where the file system knows no locks, so that another process may be at it.

    Raises:
        OSError: the folder above cannot be made or written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        is_ours = False
        try:
            has_lock = _lock(descriptor)
            is_ours = True
            if is_at(path, descriptor):
                yield has_lock
                return
            # Whoever held it has removed it between opening and locking.
        finally:
            if is_ours and is_at(path, descriptor):
                with contextlib.suppress(OSError):
                    path.unlink()
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def sign(folder: Path) -> None:
    """Write the digests of all files in a folder into it, and all of it to the disk.

    Raises:
        OSError: the file system refused.
    """
    sync(folder)
    digests = {name: _digest(folder / name) for name in _names(folder)}
    writing.write_whole(folder / DIGESTS, json.dumps(digests, indent=2).encode())


def sync(path: Path) -> None:
    """Bring a file, or the files in a folder, to the disk.

    Raises:
        OSError: the file system refused.
    """
    for file in path.iterdir() if path.is_dir() else (path,):
        with file.open("rb") as content:
            os.fsync(content.fileno())


def damage(folder: Path) -> str:
    """Say what is not as it was signed; nothing where all is. Other files may have come since."""
    try:
        digests = json.loads((folder / DIGESTS).read_bytes())
        changed = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    except OSError as error:
        return f"{writing.reason(error)} ({error.filename})"
    except (ValueError, AttributeError, TypeError, RecursionError):
        return f"damaged digests ({folder / DIGESTS})"
    return f"another content of {', '.join(changed)}" if changed else ""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != DIGESTS)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
