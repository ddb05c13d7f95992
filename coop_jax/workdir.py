"""The folder of a run: whose it is, what may be added to it, and that one process writes it."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coop_jax import config as config_module
from coop_jax import methods, parallel, results
from coop_jax.errors import InputError
from coop_jax.reading import read_json
from coop_jax.terminal import check_name

logger = logging.getLogger(__name__)

CONFIG_FILE, UNFINISHED_FILE, LOCK_FILE = "config.json", "config.unfinished", "lock"

GROWING = ("shots", "seeds")
"""Settings whose values may become more in a workdir."""

_held: set[Path] = set()
"""The folders that this process holds."""


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """Make sure that a workdir is new, empty, or an earlier run's whose config this one continues.

    Raises:
        InputError: the workdir belongs to another config or to something else.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        found = {entry.name for entry in workdir.iterdir()} if workdir.is_dir() else set()
        # Of several processes that train together the first may write its config in between.
        others = found - {CONFIG_FILE, UNFINISHED_FILE, LOCK_FILE}
        if others or (workdir.exists() and not workdir.is_dir()):
            raise InputError(
                f"{workdir}: expected a new folder or an earlier run's, but it is a file or has"
                f" files and no {CONFIG_FILE}; name another --workdir"
            )
        return
    earlier, now = config_module.flat(read_json(path)), config_module.flat(_recorded(config))
    different = sorted(
        key
        for key in {*earlier, *now}
        if not (earlier.get(key) == now.get(key) or _grows(key, earlier.get(key), now.get(key)))
    )
    if different:
        raise InputError(
            f"{workdir}: expected a new folder or a run of the same config, got another config's"
            f" (different: {', '.join(different):.300}); name another --workdir, or run with the"
            f" config in its {CONFIG_FILE} to resume it"
            f" ({' and '.join(GROWING)} may be added to)"
        )


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as it is read from its file, with a digest of a method's own file."""
    code = methods.code_of(config["method"]["name"])
    recorded = {**config, **({"method_code": code} if code else {})}
    return json.loads(json.dumps(recorded, allow_nan=False))


def _grows(key: str, earlier: Any, now: Any) -> bool:
    """Tell whether a setting has all its earlier values, and may have others."""
    return key in GROWING and isinstance(earlier, list) and all(value in now for value in earlier)


def claim(config: Mapping[str, Any], workdir: Path) -> None:
    """Write the config into a workdir, after `check`."""
    check(config, workdir)
    path = workdir / CONFIG_FILE
    recorded = _recorded(config)
    if path.is_file() and read_json(path) == recorded:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        unfinished = workdir / UNFINISHED_FILE
        unfinished.write_text(json.dumps(recorded, indent=2, allow_nan=False))
        unfinished.replace(path)
    except OSError as error:
        raise _not_writable(workdir, error) from error


@contextlib.contextmanager
def held(config: Mapping[str, Any], workdir: Path) -> Iterator[None]:
    """Hold the workdir of a config that can run, by the first process for all that train together.

    Raises:
        InputError: the config cannot run, or the workdir is another's.
    """
    config_module.check(config)
    check_name(workdir)
    check(config, workdir)
    parallel.devices()
    problem = None
    with contextlib.ExitStack() as stack:
        if parallel.is_first():
            try:
                stack.enter_context(locked(workdir))
            except InputError as error:
                problem = error
        if not parallel.all_agree(problem is None):
            raise problem or InputError(
                f"expected a --workdir that the first process can hold, got {workdir}; see what it"
                " says"
            )
        yield


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a workdir against other processes for as long as this one lives or is inside.

    The folder is made for that, and goes again if nothing has come into it. A process may hold a
    workdir more than once. Network file systems pass the lock on to all their hosts (NFS does);
    where one has no locks, that is said and nothing is held.

    Raises:
        InputError: another process holds it, as the message says, or it cannot be written.
    """
    place = workdir.resolve()
    if place in _held:
        yield
        return
    new = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        descriptor = _lock(place)
    except OSError as error:
        raise _not_writable(workdir, error) from error
    _held.add(place)
    try:
        yield
    finally:
        _held.remove(place)
        with contextlib.suppress(OSError):
            (place / LOCK_FILE).unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()


def _lock(workdir: Path) -> int:
    """The open file that holds the lock."""
    path = workdir / LOCK_FILE
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another"
            os.close(descriptor)
            raise InputError(
                f"expected a --workdir that no other process writes to, got {workdir}, to which"
                f" {holder} writes; wait until that ends, or name another"
            ) from error
        except OSError as error:
            if error.errno not in results.NO_LOCKS:
                os.close(descriptor)
                raise
            logger.warning(
                "%s: its file system has no locks (%s); let no other process write there",
                *(workdir, error.strerror),
            )
            return descriptor
        # Whoever held it may have removed the file between opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
        os.close(descriptor)
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {now},".encode())
    return descriptor


def _not_writable(workdir: Path, error: OSError) -> InputError:
    return InputError(
        f"expected a --workdir to write to, got {workdir} ({error.strerror}); name another"
    )
