"""Methods by name or by the path of a file: found, made, checked, and moved to other classes."""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax.classes import Classes
from coop_jax.clip import CLIP, Tokenizer
from coop_jax.errors import InputError
from coop_jax.methods import limits
from coop_jax.methods.base import USES, Fixed, Given, Images, Kept, Learned, Method, Views

DEFAULT, ZERO_SHOT = "coop", "zero_shot"
"""The method where none is named, and the one that all others are compared with."""

NOT_METHODS = (
    "alignment",
    "base",
    "cache",
    "channels",
    "checks",
    "conditioned",
    "deep",
    "descriptions",
    "layers",
    "layout",
    "limits",
    "mixed",
    "registry",
    "subject",
    "text",
    "transport",
    "unlabeled",
    "views",
)


def available() -> list[str]:
    """Return the names of the methods of this package."""
    package = importlib.import_module("coop_jax.methods")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in modules if name not in NOT_METHODS)


def module(name: str) -> Any:
    """Return the module of a method.

    Args:
        name: of a method of this package, or the path of a Python file.

    Raises:
        InputError: there is no such method or file, or the file holds no method.
    """
    if isinstance(name, str) and name.endswith(".py"):
        return _module_of_file(Path(os.path.expanduser(name)))
    if name not in available():
        raise InputError(
            f"expected a method, one of {', '.join(available())} or the path of a .py file, got"
            f" {name!r:.80}; choose one"
        )
    return importlib.import_module(f"coop_jax.methods.{name}")


def _content(path: Path) -> bytes:
    if os.path.isfile(path) and os.access(path, os.R_OK):
        return path.read_bytes()
    raise InputError(
        f"expected the file of a method, got {path}, no file that can be read; name another"
    )


def _module_of_file(path: Path) -> Any:
    content = _content(path)
    name = f"coop_jax_method_{hashlib.sha256(content).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
        _check_module(loaded, path)
    except InputError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise InputError(
            f"{path}: expected a Python file that can be imported, got {type(error).__name__}:"
            f" {_said(error):.200}; correct it"
        ) from error
    return loaded


def code_of(name: str) -> str:
    """Return the SHA-256 of a method's file, hexadecimal; "" for a method of this package.

    The file is not run.

    Raises:
        InputError: there is no such file.
    """
    if not name.endswith(".py"):
        return ""
    return hashlib.sha256(_content(Path(name).expanduser())).hexdigest()


def files_of(name: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the files that a method's settings name, hexadecimal, by setting.

    A method's file may say which settings name files (`FILES`); one that cannot be read, which the
    method refuses, is left out.

    Raises:
        InputError: there is no such method.
    """
    digests = {}
    for key in getattr(module(name), "FILES", ()):
        path = Path(os.path.expanduser(settings.get(key, "")))
        if os.path.isfile(path) and os.access(path, os.R_OK):
            with path.open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _said(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_module(loaded: Any, path: Path) -> None:
    method = getattr(loaded, "Method", None)
    missing = [name for name in ("NAME", "PAPER", "default_config") if not hasattr(loaded, name)]
    if not isinstance(method, type) or not issubclass(method, Method) or method is Method:
        missing.insert(0, "a class Method(coop_jax.methods.Method)")
    if missing:
        raise InputError(
            f"{path}: expected the file of a method, got one without {', '.join(missing)}; see"
            " docs/adding-a-method.md"
        )


def default_config(name: str) -> dict[str, Any]:
    """Return a method's settings with their defaults.

    Raises:
        InputError: no such method.
    """
    return module(name).default_config()


def recipe(name: str) -> dict[str, Any]:
    """Return the settings of a run with which a method's paper differs from CoOp's.

    Raises:
        InputError: no such method.
    """
    return getattr(module(name), "recipe", dict)()


def label(name: str, settings: Mapping[str, Any]) -> str:
    """Return what reports call a method with these settings.

    A method's file may say it (`label(settings)`); else it is the NAME with the settings that
    differ from their defaults. A method that is not here is called by its name.
    """
    try:
        made_of = module(name)
    except InputError:
        return name
    if hasattr(made_of, "label"):
        return made_of.label(settings)
    defaults = made_of.default_config()
    others = [
        f"{key} = {value}"
        for key, value in settings.items()
        if _as_read(value) != _as_read(defaults.get(key))
    ]
    return ", ".join([made_of.NAME, *others])


def _as_read(value: Any) -> Any:
    """Return a setting as it is read from a record."""
    return [*value] if isinstance(value, tuple) else value


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a method does not have, of another type, or out of their limits.

    A setting is of the type of its default. A method's file may have `LIMITS`, the lowest and the
    highest number of a setting; else these are 0, or the negative of the highest where the default
    is negative, and `limits.HIGHEST`.

    Raises:
        InputError: there is such a setting, or no method of that name.
    """
    defaults = default_config(name)
    if not isinstance(settings, Mapping):
        raise InputError(
            f"method {name}: expected settings by name, got {settings!r:.80}; give a mapping such"
            f" as {defaults}"
        )
    unknown = sorted(str(key) for key in settings if key not in defaults)
    if unknown:
        raise InputError(
            f"method {name}: expected settings among {', '.join(defaults) or '(none)'}, got"
            f" {', '.join(unknown)}; correct them"
        )
    own = getattr(module(name), "LIMITS", {})
    for key, value in settings.items():
        default = defaults[key]
        kinds = {tuple: (tuple, list), float: (float, int)}.get(type(default), (type(default),))
        if type(value) not in kinds:
            raise InputError(
                f"method {name}: expected {key} as {type(default).__name__}, like {default!r}, got"
                f" {value!r:.80}; correct it"
            )
        limits.check(f"method {name}: expected {key}", value, default, own.get(key))


def missing(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that a method needs (`NEEDED` in its file) and that are empty.

    Raises:
        InputError: there is no such method.
    """
    return [key for key in getattr(module(name), "NEEDED", ()) if not settings[key]]


def create(
    name: str,
    clip: CLIP,
    tokenizer: Tokenizer | None,
    classes: Classes | Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    **given: Any,
) -> Any:
    """Return a method ready to train or evaluate on these classes.

    Args:
        name: of a method of this package, or the path of a Python file.
        clip: the frozen CLIP; only read, not kept.
        tokenizer: the CLIP's tokenizer.
        classes: what logits are for; or the names alone.
        settings: those that differ from the method's `default_config()`.
        seed: of the random initialisation.
        given: other fields of `Given`.

    Raises:
        InputError: an unknown method or setting, classes or a tokenizer that do not fit, or a file
            whose method cannot be made or breaks the contract.
    """
    made_of = module(name)
    classes = classes if isinstance(classes, Classes) else Classes(tuple(classes))
    if tokenizer is not None:
        tokenizer.check(clip.config.text)
    classes.check()
    check_settings(name, settings or {})
    chosen = {**made_of.default_config(), **(settings or {})}
    if tokenizer is not None and chosen.get("n_ctx", 0) > clip.config.text.context_length:
        raise InputError(
            f"method {name}: expected at most {clip.config.text.context_length} tokens, which the"
            f" CLIP reads, got {chosen['n_ctx']} context vectors; lower n_ctx"
        )
    with jax.threefry_partitionable(True), jax.disable_jit(False):
        made_from = Given(clip, tokenizer, classes, create_rngs(seed), **given)
        try:
            method = made_of.Method(made_from, chosen)
        except Exception as error:
            if isinstance(error, InputError) or not name.endswith(".py"):
                raise
            raise InputError(
                f"{name}: expected a method that can be made, got {type(error).__name__}:"
                f" {_said(error):.200}; correct its __init__"
            ) from error
    _check_method(method, name)
    return method


def _check_method(method: Method, name: str) -> None:
    """Refuse a method that says what the frame does not know.

    Raises:
        InputError: it does.
    """
    for attribute, allowed in (("takes", Images._fields), ("uses", USES)):
        if unknown := sorted(set(getattr(method, attribute)) - set(allowed)):
            raise InputError(
                f"method {name}: expected {attribute} as some of {', '.join(allowed)}, got"
                f" {', '.join(unknown)}; correct it"
            )
    if not isinstance(method.views, Views) or min(method.views) < 1:
        raise InputError(
            f"method {name}: expected views as Views of at least one view, got"
            f" {method.views!r:.80}; correct it"
        )
    for path, variable in nnx.to_flat_state(nnx.state(method)):
        if not isinstance(variable, Learned | Kept | Fixed):
            raise InputError(
                f"method {name}: expected variables that are Learned, Kept or Fixed, got"
                f" {dotted(path)} as {type(variable).__name__}; say which it is"
            )


def create_rngs(seed: int) -> nnx.Rngs:
    """Return random numbers that depend on the seed alone: on none of JAX's switches.

    They are those of `nnx.Rngs(seed)` where the switches are as JAX has them. Of the seed the 32
    lowest bits count.
    """
    words = jax.device_put(np.asarray([0, seed % 2**32], np.uint32))
    return nnx.Rngs(jax.random.wrap_key_data(words, impl="threefry2x32"))


def saved(method: Any) -> dict[str, nnx.Variable]:
    """Return the variables of a method that are saved, Learned and Kept, by dotted path."""
    return {dotted(path): variable for path, variable in _saved(method)}


def _saved(method: Any) -> Any:
    return nnx.to_flat_state(nnx.state(method, nnx.Any(Learned, Kept)))


def dotted(path: Sequence[Any]) -> str:
    """Return the name of a variable, given its path in a state."""
    return ".".join(map(str, path))


def move(method: Any, fresh: Any, trained: Classes, wanted: Classes) -> Any:
    """Give what a method has learned to the same method made for other classes, and return that.

    Args:
        method: the method that has learned.
        fresh: what receives it; of the same settings.
        trained: the classes of `method`.
        wanted: the classes of `fresh`, as `fill` has them.

    Raises:
        InputError: rows are wanted of classes that `method` did not learn.
    """
    values = {name: variable[...] for name, variable in saved(method).items()}
    return fill(fresh, values, trained, wanted)


def fill(method: Any, values: Mapping[str, Any], trained: Classes, wanted: Classes) -> Any:
    """Set the variables that are saved to what was learned on some classes; return the method.

    What is shared serves any classes. Of a variable marked `per_class` the rows of the wanted
    classes are taken; those of classes that were not trained on are refused or stay as they are, as
    the variable says.

    Args:
        method: new, made for the wanted classes.
        values: by dotted path, all that `saved` names.
        trained: the classes that the values were learned on.
        wanted: the classes of `method`, which say which were trained on (`Classes.moved_from`).

    Raises:
        InputError: rows are wanted of classes that were not learned, the values do not fit, or the
            classes do not say which were trained on.
    """
    if wanted.seen != wanted.moved_from(trained).seen:
        raise InputError(
            "expected classes that say which of them were trained on, got some that take new ones"
            " as trained on; make the method for wanted.moved_from(trained)"
        )
    variables = saved(method)
    misfit = [
        name
        for name in {*variables, *values}
        if not _fits(variables.get(name), values.get(name), len(trained))
    ]
    if misfit:
        expected, got = (
            {name: f"{value.dtype} {list(value.shape)}" for name, value in each.items()}
            for each in (variables, values)
        )
        raise InputError(
            f"expected learned variables {expected}, as this CLIP, the method's"
            f" settings and the classes make them, got {got}; what was saved is damaged or of"
            " another version: fetch or learn it again"
        )
    per_class = any(v.get_metadata().get("per_class") for v in variables.values())
    places = wanted.places_in(trained) if per_class else []
    known = np.flatnonzero([place is not None for place in places])
    unknown = [wanted.names[label] for label, place in enumerate(places) if place is None]
    rows = np.asarray([place for place in places if place is not None], np.int32)
    filled = []
    for path, variable in _saved(method):
        name = dotted(path)
        value, metadata = jnp.asarray(values[name]), variable.get_metadata()
        if metadata.get("per_class"):
            if unknown and metadata.get("unseen", "refuse") == "refuse":
                raise InputError(
                    "expected only classes that were learned, since what was learned is"
                    f" class-specific ({_some(trained.names)}), got {len(unknown)} others"
                    f" ({_some(unknown)}); name learned ones, or learn a shared context"
                )
            value = variable[...].astype(value.dtype).at[known].set(value[rows])
        filled.append((path, variable.replace(value)))
    nnx.update(method, nnx.from_flat_state(filled))
    return method


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _fits(variable: nnx.Variable | None, value: Any, classes: int) -> bool:
    """Return whether a value learned on so many classes may become that of a variable."""
    if variable is None or value is None:
        return False
    kinds = (jnp.issubdtype(each.dtype, jnp.floating) for each in (variable[...], value))
    if len(set(kinds)) > 1:
        return False
    metadata, shape = variable.get_metadata(), tuple(np.shape(value))
    if metadata.get("varying"):
        return len(shape) == variable.ndim and shape[1:] == variable.shape[1:]
    first = (classes,) if metadata.get("per_class") else variable.shape[:1]
    return shape == (*first, *variable.shape[1:])
