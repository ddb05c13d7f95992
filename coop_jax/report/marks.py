"""Colours and marks that tell a picture's rows apart, and places where none hides another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_LEARNED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f5f3f"), "os^DvPh"
_ZERO_SHOT = ("#222222", "#e69f00", "#6a51a3", "#737373"), "*X<>d"
"""Colours and marks, of which no number divides the other: all pairs come before one again."""

_SIZES = {"*": 11.0, "X": 7.5, "P": 7.0, "d": 8.0, "<": 7.5, ">": 7.5}

_TOUCHING = 0.75
"""Marks that are closer than this share of their room are too close."""


class Look(NamedTuple):
    """Colour, mark and its size in points."""

    colour: str
    mark: str
    size: float


def look(index: int, *, is_zero_shot: bool) -> Look:
    """Return the look of the row of this index among all prompts, or all methods."""
    colours, marks = _ZERO_SHOT if is_zero_shot else _LEARNED
    mark = marks[index % len(marks)]
    return Look(colours[index % len(colours)], mark, _SIZES.get(mark, 6.0))


def shifts(places: Sequence[tuple[float, float]], room: float, most: float) -> list[float]:
    """Return how far each mark stands to the right of its true place, so that none hides another.

    The least that it takes, or what hides least; all in points.

    Args:
        places: of the marks, across and up.
        room: the distance at which one mark does not touch another.
        most: the largest shift.
    """
    taken: list[tuple[float, float]] = []
    found = []
    steps = min(2 * len(places), int(2 * most / room))
    for across, up in places:

        def cost(shift: float, across: float = across, up: float = up) -> tuple[float, float]:
            apart = (math.hypot(across + shift - x, up - y) / room for x, y in taken)
            return sum(max(0.0, 1 - gap) for gap in apart if gap < _TOUCHING), abs(shift)

        tried = (room / 2 * step for step in range(-steps, steps + 1))
        found.append(min(tried, key=cost))
        taken.append((across + found[-1], up))
    return found
