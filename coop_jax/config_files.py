"""Config files: found by name or path, loaded, and changed by `--config.KEY=VALUE`."""

import difflib
import inspect
import os
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coop_jax.errors import InputError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

FOLDER = Path(__file__).parent / "configs"
"""The configs that come with the package: the repository's folder `configs`."""

CHOSEN_HELP = "name of a config that comes with the package, or path of one; its words after a :"
KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    tuple: 'values such as "(1,2)"',
}
"""The values that are expected of a setting, by its type."""


CLIP = "clip.name"
METHOD = "method.name="
"""The beginning of the setting that brings another method's settings and recipe."""


def names() -> list[str]:
    """The configs that can be named without a path."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find(file: str) -> Path:
    """The file of a config's name or path.

    Raises:
        InputError: there is none.
    """
    if file in names():
        return FOLDER / f"{file}.py"
    path = os.path.expanduser(file)
    if not os.path.isfile(path):
        raise InputError(
            f"--config: expected one of {', '.join(names())}, or the path of a config file, got"
            f" {file!r:.80}, which is no file; {_advice(Path(path).stem, names())}"
        )
    return Path(path)


def load(chosen: str, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a config, with changes.

    Args:
        chosen: its name or path, and what its `get_config` is given after a colon: "quickstart",
            "coop_few_shot:dtd,middle", "mine/config.py".
        settings: "KEY=VALUE" each.

    Raises:
        InputError: there is no such config, or it has no such setting or value.
    """
    configs = load_all(chosen, settings)
    if list(configs) != [""]:
        raise InputError(
            f"--config: expected one config, got the {len(configs)} of {chosen!r:.80}; run them by"
            " coop_jax run or coop_jax sweep"
        )
    return configs[""]


def load_all(chosen: str, settings: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The settings of all configs of a file, by what it calls them, each with the same changes.

    A file has `get_config`, whose config has no name (""), or `get_configs`, which returns several
    by name, and which may take as `clip` what the changes name as the CLIP. The arguments are those
    of `load`.

    Raises:
        InputError: as `load`.
    """
    return {name: _changed(config, settings) for name, config in _read(chosen, settings).items()}


def _changed(config: "ConfigDict", settings: Sequence[str]) -> dict[str, Any]:
    from ml_collections import ConfigDict

    from coop_jax.config import with_method

    for setting in settings:
        if setting.startswith(METHOD):
            config = ConfigDict(with_method(config.to_dict(), setting.removeprefix(METHOD)))
    for setting in settings:
        _change(config, setting)
    return config.to_dict()


def _advice(word: str, known: Iterable[str]) -> str:
    """Say what to do about a word that is none of those known."""
    last = word.rpartition(".")[2]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    close += [name for name in known if last in name.split(".")]
    return f"did you mean {close[0]}?" if close else "choose one"


def _read(chosen: str, settings: Sequence[str]) -> "dict[str, ConfigDict]":
    from ml_collections import ConfigDict

    file, colon, words = chosen.partition(":")
    path = find(file)
    try:
        found = runpy.run_path(str(path))
        several = "get_configs" in found
        make = found["get_configs" if several else "get_config"]
        clips = [value for key, _, value in (s.partition("=") for s in settings) if key == CLIP]
        takes = clips and several and "clip" in inspect.signature(make).parameters
        made = make(*[words] * bool(colon), **{"clip": clips[-1]} if takes else {})
        configs = made if several else {"": made}
        if several and not configs:
            raise _unusable(path, "none")
        for config in (configs, *configs.values()):
            if not isinstance(config, Mapping | ConfigDict):
                raise _unusable(path, f"one that returns {type(config).__name__}")
        return {str(name): ConfigDict(_with_names(each)) for name, each in configs.items()}
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a user's file raises, an exit among it
        raise _unusable(path, _said(error)) from error


def _unusable(path: Path, got: str) -> InputError:
    return InputError(
        "--config: expected a Python file with get_config(), which returns settings by name, or"
        f" get_configs(), which returns several such by name, got {path!s:.80} with {got:.200};"
        " correct it"
    )


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    except Exception:  # an exception of the user's own
        return type(error).__name__


def _with_names(config: Any) -> dict[str, Any]:
    """Return settings whose names are texts, and those of groups, too."""
    from ml_collections import ConfigDict

    return {
        str(name): _with_names(value) if isinstance(value, Mapping | ConfigDict) else value
        for name, value in config.items()
    }


def _change(config: "ConfigDict", setting: str) -> None:
    from absl import flags
    from ml_collections import config_flags

    from coop_jax.config import flat

    known = flat(config.to_dict())
    key, _, value = setting.partition("=")
    if key not in known:
        raise InputError(
            f"--config.{key:.80}: expected one of {', '.join(known)}, got no such setting; "
            + _advice(key, known)
        )
    words = ["", f"--config.{setting}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=words)
    try:
        values(words)
    except (flags.Error, ValueError, TypeError, RecursionError, MemoryError) as error:
        kind = KINDS.get(type(known[key]), "another value")
        raise InputError(
            f"--config.{key}: expected {kind}, got {value!r:.80}; correct it"
        ) from error
