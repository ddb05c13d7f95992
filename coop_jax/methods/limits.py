"""The limits of a method's settings, which its file may narrow."""

from typing import Any

from coop_jax.errors import InputError

HIGHEST = 10**6
"""The highest number of a setting, where a method's file says nothing else."""


def check(expected: str, value: Any, default: Any, limits: tuple[float, float] | None) -> None:
    """Refuse a setting, or one of several values of it, of another kind or out of its limits.

    Args:
        expected: how an error begins.
        value: of the setting.
        default: of the same type.
        limits: the lowest and the highest number; None for 0 (the negative of `HIGHEST`, where the
            default is negative) and `HIGHEST`.

    Raises:
        InputError: it will not do.
    """
    if not isinstance(value, tuple | list):
        values, examples = [value], [default]
    else:
        values, examples = value, default or ("",)
    kind = type(examples[0])
    kinds = (float, int) if kind is float else (kind,)
    if wrong := [each for each in values if type(each) not in kinds]:
        raise InputError(
            f"{expected} as values like {examples[0]!r}, got {wrong[0]!r:.80}; correct it"
        )
    if isinstance(examples[0], bool | str):
        return
    lowest, highest = limits or (-HIGHEST * (min(examples) < 0), HIGHEST)
    if wrong := [each for each in values if not lowest <= each <= highest]:
        raise InputError(
            f"{expected} from {lowest:.12g} to {highest:.12g}, got {wrong[0]!r:.80}; correct it"
        )
