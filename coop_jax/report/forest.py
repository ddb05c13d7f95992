"""The picture of a comparison: every method's accuracy with its interval, one below the other."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure

from coop_jax import fonts
from coop_jax.printing import plural
from coop_jax.report.comparison import Comparison
from coop_jax.report.curve import figure, style
from coop_jax.report.sheet import ZERO_SHOT

_PROMPT = "#222222"
_ROOM = 0.62
"""The part of the distance between methods that the marks of one take."""


def draw(comparison: Comparison) -> Figure:
    """Draw the rows as the table has them: a mark for each number of shots, with its interval.

    A dotted line goes through each reference: zero-shot CLIP, and the linear probe at the most
    shots.
    """
    rows = comparison.rows
    drawn = figure(7.2, 1.6 + 0.34 * len(rows))
    axes = drawn.add_subplot()
    style(axes)
    colours = _colours(comparison.shots)
    for place, row in enumerate(rows):
        numbers = sorted(row.cells)
        for index, number in enumerate(numbers):
            cell = row.cells[number]
            aside = (index - (len(numbers) - 1) / 2) * _ROOM / len(comparison.shots)
            axes.errorbar(
                cell.mean,
                place + aside,
                xerr=cell.half_width,
                color=colours[number],
                fmt="D" if row.is_zero_shot else "o",
                markersize=3.5,
                elinewidth=1.0,
                label=plural(number, "shot"),
            )
    for row in rows:
        if row.reference is not None:
            most = max(row.cells)
            look = {"color": colours[most], "linewidth": 0.9, "linestyle": ":"}
            axes.axvline(row.cells[most].mean, **look, zorder=0)
    labels = [fonts.shortened(row.label.removeprefix(ZERO_SHOT), 44) for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("Accuracy (%), with 95 % intervals over seeds and images", fontsize=9)
    axes.set_title(fonts.wrapped(comparison.title, 72), fontsize=11, pad=8)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = {name: named[name] for name in (plural(n, "shot") for n in comparison.shots)}
    drawn.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower center",
        ncols=len(shown),
        frameon=False,
        fontsize=9,
    )
    return drawn


def _colours(shots: Sequence[int]) -> dict[int, tuple[float, ...] | str]:
    """Return a colour for each number of shots, the darker the more."""
    some = [number for number in shots if number]
    shades = colormaps["viridis_r"]
    learned = {n: shades(0.15 + 0.8 * i / max(len(some) - 1, 1)) for i, n in enumerate(some)}
    return {0: _PROMPT, **learned}
