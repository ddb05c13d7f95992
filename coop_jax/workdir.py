"""The folder of a run: whose it is, what may be added to it, and that one process writes it."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coop_jax import config as config_module
from coop_jax import holding, methods, parallel, results, writing
from coop_jax.errors import InputError, MachineError
from coop_jax.holding import LOCK_FILE
from coop_jax.terminal import check_folder, check_name

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"

CODE = "method_code"
"""In it, the digest of a method's own file."""

FILES = "method_files"
"""In it, the digests of the files that the method's settings name."""

GROWING = ("shots", "seeds")
"""Settings whose values may become more in a workdir."""

FREE = ("feature_cache",)
"""Settings that may be others each time: no result depends on them."""


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """Make sure that a workdir is new, empty, or an earlier run's whose config this one continues.

    Raises:
        InputError: the workdir belongs to another config or to something else, or its config is a
            folder.
        MachineError: its config is damaged and cannot be made again, or the folder not be read.
    """
    now = _recorded(config)
    recorded = _read(workdir, now)
    if recorded is None:
        return
    earlier, now = config_module.flat(recorded), config_module.flat(now)
    different = sorted(
        key
        for key in {*earlier, *now}.difference(FREE)
        if not (earlier.get(key) == now.get(key) or _grows(key, earlier.get(key), now.get(key)))
    )
    if different:
        raise InputError(
            f"{workdir}: expected a new folder or a run of the same config, got another config's"
            f" (different: {', '.join(different):.300}); name another --workdir, or run with the"
            f" config in its {CONFIG_FILE} to resume it"
            f" ({' and '.join(GROWING)} may be added to)"
        )


def _read(workdir: Path, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the config that a workdir belongs to, from its file or from its results.

    None of a workdir that belongs to none: it is new, or nothing has come of it yet.
    """
    path, made = workdir / CONFIG_FILE, workdir / results.FILE_NAME
    with writing.said("read the config", path):
        if path.is_dir():
            raise InputError(f"{path}: expected a file, got a folder; move it away")
        if path.is_file() and (recorded := _undamaged(path.read_bytes())) is not None:
            return recorded
        names = {entry.name for entry in workdir.iterdir()} if workdir.is_dir() else set()
    rows = results.read(made) if made.is_file() else []
    if rows and not {CODE, FILES} & now.keys():
        config = rows[-1].config
        # Given features come without a CLIP, whose settings are as they are then.
        return {**config, "clip": config["clip"] or now["clip"]}
    # Of several processes that train together the first may write its config in between.
    others = {
        name for name in names - {CONFIG_FILE, LOCK_FILE} if not name.endswith(writing.UNFINISHED)
    }
    if CONFIG_FILE in names and others:
        raise MachineError(
            f"{path}: expected the config as it was written, got a damaged file; restore it, or"
            " name another --workdir"
        )
    if others or (workdir.exists() and not workdir.is_dir()):
        raise InputError(
            f"{workdir}: expected a new folder or an earlier run's, but it is a file or has"
            f" files and no {CONFIG_FILE}; name another --workdir"
        )
    return None


def _undamaged(content: bytes) -> dict[str, Any] | None:
    """Return the config that a file holds; None if it is not as it was written."""
    try:
        recorded = json.loads(content)
        written = recorded.pop(results.DIGEST)
        return recorded if results.digest(recorded) == written else None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config as it is read from its file, with digests of files that it names."""
    code = methods.code_of(config["method"]["name"])
    named = methods.files_of(config["method"]["name"], config["method"])
    digests = {CODE: code, FILES: named}
    recorded = {**config, **{key: value for key, value in digests.items() if value}}
    return json.loads(json.dumps(recorded, allow_nan=False))


def _grows(key: str, earlier: Any, now: Any) -> bool:
    """Tell whether a setting has all its earlier values, and may have others."""
    return key in GROWING and isinstance(earlier, list) and all(value in now for value in earlier)


def claim(config: Mapping[str, Any], workdir: Path) -> None:
    """Write the config into a workdir, after `check`; say so where an earlier one was damaged.

    Raises:
        InputError: the workdir belongs to another config or to something else.
        MachineError: it cannot be written.
    """
    check(config, workdir)
    path, recorded = workdir / CONFIG_FILE, _recorded(config)
    with writing.said("write the config", path):
        earlier = path.read_bytes() if path.is_file() else None
        undamaged = None if earlier is None else _undamaged(earlier)
        if undamaged == recorded:
            return
        has_results = (workdir / results.FILE_NAME).is_file()
        if undamaged is None and (earlier is not None or has_results):
            logger.warning(
                "%s is %s: it is written again%s",
                path,
                "missing" if earlier is None else "damaged",
                "; the results are of the same config" if has_results else "",
            )
        workdir.mkdir(parents=True, exist_ok=True)
        digested = {**recorded, results.DIGEST: results.digest(recorded)}
        writing.write_whole(path, json.dumps(digested, indent=2, allow_nan=False).encode())


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
            except (InputError, MachineError) as error:
                problem = error
        if not parallel.all_agree(problem is None):
            raise problem or MachineError(
                f"expected a --workdir that the first process can hold, got {workdir}; see what it"
                " says"
            )
        yield


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a workdir against other processes, as `holding.held` does.

    What killed processes were writing is removed.

    Raises:
        InputError: another process holds it, as the message says, or it is a file.
        MachineError: it cannot be made or written.
    """
    check_folder(workdir, "a --workdir to write to")
    with contextlib.ExitStack() as stack:
        with writing.said("write to the --workdir", workdir):
            stack.enter_context(holding.held(workdir))
        for folder in (workdir, workdir / "metrics", workdir / "saved"):
            writing.remove_unfinished(folder)
        yield
