"""The folder of a run: whose it is, what may be added to it, and that one process writes it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coop_jax import config as config_module
from coop_jax import holding, methods, parallel, writing
from coop_jax.errors import InputError, MachineError
from coop_jax.holding import LOCK_FILE
from coop_jax.reading import read_json
from coop_jax.terminal import check_name

CONFIG_FILE = "config.json"

GROWING = ("shots", "seeds")
"""Settings whose values may become more in a workdir."""


def check(config: Mapping[str, Any], workdir: Path) -> None:
    """Make sure that a workdir is new, empty, or an earlier run's whose config this one continues.

    Raises:
        InputError: the workdir belongs to another config or to something else.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        found = {entry.name for entry in workdir.iterdir()} if workdir.is_dir() else set()
        # Of several processes that train together the first may write its config in between.
        others = {
            name
            for name in found - {CONFIG_FILE, LOCK_FILE}
            if not name.endswith(writing.UNFINISHED)
        }
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
            f"{workdir}: holds a run of another config (different: {', '.join(different)}); name"
            f" another --workdir, or run with the config in its {CONFIG_FILE} to resume it"
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
    with writing.said("write the config", path):
        workdir.mkdir(parents=True, exist_ok=True)
        writing.write_whole(path, json.dumps(recorded, indent=2, allow_nan=False).encode())


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
            raise problem or InputError(
                f"expected a --workdir that the first process can hold, got {workdir}; see what it"
                " says"
            )
        yield


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold a workdir against other processes, as `holding.held` does.

    Raises:
        InputError: another process holds it, as the message says, or it is a file.
        MachineError: it cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        with writing.said("write to the --workdir", workdir):
            files = [above for above in (workdir, *workdir.absolute().parents) if above.is_file()]
            if files:
                raise InputError(
                    f"expected a --workdir to write to, got {workdir} ({files[0]} is a file); name"
                    " another"
                )
            stack.enter_context(holding.held(workdir))
        yield
