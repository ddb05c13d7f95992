"""Tables of the keys of a checkpoint's config, with their values, and one reader of them all.

A table names every key that is known, with its values and the reason why no more has to be read
from it: it is honoured, it changes nothing, or what it switches on is not supported. Whatever is
not in the table is refused by its name.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from coop_jax.errors import InputError

RESTORE = "restore the file of the CLIP's maker"
OTHER = "not supported, use another CLIP"
REQUIRED = object()
"""The default of a key that must be there."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60


def shown(value: Any) -> str:
    """Return a value as an error shows it, at most 80 characters."""
    return f"{_SHORT.repr(value):.80}"


@dataclasses.dataclass(frozen=True)
class Values:
    """The values of a key, in words and as a test of what JSON can hold."""

    words: str
    hold: Callable[[Any], bool]

    def or_null(self) -> "Values":
        """These values and null."""
        return Values(f"{self.words} or null", lambda value: value is None or self.hold(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(low: int, high: int) -> Values:
    """Whole numbers, both ends included."""
    return Values(
        f"a whole number from {low} to {high}",
        lambda value: _is_number(value) and isinstance(value, int) and low <= value <= high,
    )


def number(low: float, high: float) -> Values:
    """Finite numbers, both ends included."""
    return Values(
        f"a number from {low:g} to {high:g}",
        lambda value: _is_number(value) and low <= value <= high,
    )


def choice(*names: Any) -> Values:
    """Some values, of their own types: 1 is not true."""
    return Values(
        " or ".join("null" if name is None else repr(name) for name in names),
        lambda value: any(type(value) is type(name) and value == name for name in names),
    )


BOOLEAN = Values("true or false", lambda value: isinstance(value, bool))
TEXT = Values("a text", lambda value: isinstance(value, str))
OBJECT = Values("an object", lambda value: isinstance(value, Mapping))
ANY = Values("anything", lambda _: True)
OFF = Values("false or null", lambda value: value is None or value is False)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        values: those that are read.
        reason: what becomes of them, or why they change nothing.
        default: what the maker's code assumes where the key is absent.
        advice: what the refusal of another value ends with.
    """

    values: Values
    reason: str
    default: Any = None
    advice: str = RESTORE


def ignored(reason: str, values: Values = ANY) -> Key:
    """A key that changes no number."""
    return Key(values, reason)


def unsupported(what: str, values: Values = OFF) -> Key:
    """A key that may only say that a CLIP does without something."""
    return Key(values, f"{what}, not supported", None, f"{what}: {OTHER}")


def read(table: Mapping[str, Key], stated: Any, path: str, where: str) -> dict[str, Any]:
    """Return the value of every key, as stated or by default.

    Args:
        table: the keys that are known; the first that is wrong in its order is named.
        stated: what the file says, an object of JSON.
        path: how an error calls the object, e.g. "text_cfg"; empty for the whole file.
        where: the file.

    Raises:
        InputError: a value that its key must not have, an unknown key, or a missing one.
    """
    if not isinstance(stated, Mapping):
        raise refusal(where, f"{path or 'the file'} to be an object", stated, RESTORE)
    prefix = f"{path}." if path else ""
    for name, key in table.items():
        if name not in stated:
            if key.default is REQUIRED:
                raise refusal(where, f"{prefix}{name}, {key.values.words}", "none", RESTORE, str)
        elif not key.values.hold(stated[name]):
            expected = f"{prefix}{name} to be {key.values.words}"
            raise refusal(where, expected, stated[name], key.advice)
    unknown = sorted(map(str, stated.keys() - table.keys()))
    if unknown:
        raise refusal(
            where,
            f"known keys alone in {path or 'the file'}",
            f"{unknown[0]!a:.60} = {shown(stated[unknown[0]])}",
            "a CLIP that needs it is not supported; take the key out if it changes no number",
            str,
        )
    return {name: stated.get(name, key.default) for name, key in table.items()}


def refusal(
    where: str,
    expected: str,
    got: Any,
    advice: str,
    show: Callable[[Any], str] = shown,
) -> InputError:
    """Return the error of a value that a key must not have."""
    return InputError(f"{where}: expected {expected}, got {show(got)}; {advice}")


# Ranges that no CLIP leaves, so that nothing huge is ever begun for a damaged file.
LAYERS = whole(1, 512)
WIDTH = whole(1, 32_768)
HEADS = whole(1, 1024)
VOCABULARY = whole(1, 8_000_000)
CONTEXT = whole(1, 16_384)
TOKEN = whole(0, 8_000_000)
SIDE = whole(1, 4096)
EPSILON = number(0, 1)


def check_heads(width: int, heads: int, key: str, where: str) -> None:
    """Raise an InputError unless the heads divide the width."""
    if heads < 1 or width % heads:
        raise refusal(where, f"{key} to give heads that divide the width {width}", heads, RESTORE)


def check_patches(image_size: int, patch_size: int, path: str, where: str) -> None:
    """Raise an InputError unless an image has at least one patch, and no more than a tower can."""
    if not 1 <= image_size // patch_size <= 256:
        expected = f"{path}.patch_size to give 1 to 256 patches in a row of {image_size} pixels"
        raise refusal(where, expected, patch_size, RESTORE)
