"""Pictures of accuracy over shots: matplotlib's objects, never pyplot."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from coop_jax.fonts import shortened, wrapped
from coop_jax.printing import plural
from coop_jax.report.sheet import Cell, Row, Sheet
from coop_jax.report.summary import shown_name

_LEARNED = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f5f3f"), "os^DvPh"
_ZERO_SHOT = ("#222222", "#e69f00", "#6a51a3", "#737373"), "*X<>d"
"""Colours and marks, of which no number divides the other: all pairs come before one again."""

_ASIDE, _ROOM = 0.14, 0.8
"""Marks stand so far from each other, and all of one number of shots in so much, in doublings."""

_LEAST_SPAN = 4.0
"""Percent of accuracy that the axis has at least."""

_LABEL = 62
"""Columns of a line of the legend."""

_X_LABEL = "Number of labelled training examples per class"
_SHORT_X_LABEL = "Labelled examples per class"
_Y_LABEL = "Accuracy (%)"


def draw(sheets: Sequence[Sheet]) -> Figure:
    """A figure with marks for hand-crafted prompts and a line per learned method.

    A panel for each sheet; methods look the same in all of them. Twice the shots are always as far
    to the right, up to the last number that was measured, and methods stand beside each other, so
    that none hides another. Bands and bars are ± one standard deviation. The legend is below the
    axes, where no curve can run into it.
    """
    rows = {row.label: row for sheet in sheets for row in sheet.rows}
    notes = _notes(row for sheet in sheets for row in sheet.rows)
    columns = 1 if len(sheets) == 1 else 4 if len(sheets) > 6 else min(3, len(sheets))
    lines = math.ceil(len(sheets) / columns)
    texts = sum(1 + wrapped(label, _LABEL).count("\n") for label in (*rows, *notes))
    size = (5.2, 3.5) if len(sheets) == 1 else (3.1 * columns, 2.5 * lines + 0.7)
    drawn = figure(size[0], size[1] + 0.2 * texts)
    looks, artists = _looks(rows.values()), {}
    for index, sheet in enumerate(sheets):
        axes = drawn.add_subplot(lines, columns, index + 1)
        artists |= _draw_rows(axes, sheet, looks, 1.0 if len(sheets) == 1 else 0.75)
        if len(sheets) == 1:
            axes.set_title(wrapped(f"{sheet.subject}, {sheet.backbone}", 48), fontsize=12, pad=8)
            axes.set_xlabel(_X_LABEL, fontsize=10)
            axes.set_ylabel(_Y_LABEL, fontsize=10)
        else:
            axes.set_title(shortened(shown_name(sheet.subject), 30), fontsize=11, pad=6)
            if index + columns >= len(sheets):
                axes.set_xlabel(_SHORT_X_LABEL, fontsize=9)
    if len(sheets) > 1:
        drawn.suptitle(wrapped(sheets[0].backbone, 26 * columns), fontsize=13)
        drawn.supylabel(_Y_LABEL, fontsize=11)
    prompts_first = sorted(artists, key=lambda label: not rows[label].is_zero_shot)
    _add_legend(drawn, {wrapped(label, _LABEL): artists[label] for label in prompts_first} | notes)
    return drawn


def _add_legend(drawn: Figure, legend: Mapping[str, Artist]) -> None:
    drawn.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        handlelength=2.2,
        labelspacing=0.35,
    )


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, whose axes keep clear of each other."""
    empty = Figure(figsize=(width, height), dpi=200)
    empty.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    return empty


def style(axes: Axes) -> None:
    """Give axes the grid and the frame of all pictures."""
    axes.tick_params(which="both", labelsize=9, length=0)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_color("#b0b0b0")


def _looks(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Colour and mark by label; they depend on a row's place among all prompts, or all methods."""
    looks: dict[str, dict[str, Any]] = {}
    places = {True: itertools.count(), False: itertools.count()}
    for row in rows:
        index = next(places[row.is_zero_shot])
        colours, marks = _ZERO_SHOT if row.is_zero_shot else _LEARNED
        colour, mark = colours[index % len(colours)], marks[index % len(marks)]
        looks[row.label] = {
            "color": colour,
            "marker": mark,
            "markeredgecolor": "white",
            "markeredgewidth": 0.6,
        }
    return looks


def _cells(row: Row) -> list[tuple[int, Cell]]:
    """Shots, ascending, and statistics."""
    return [(value.shots, value.cell) for value in row.values if value is not None]


def _draw_rows(
    axes: Axes, sheet: Sheet, looks: Mapping[str, Mapping[str, Any]], scale: float
) -> dict[str, Artist]:
    """Draw a sheet's rows, each with its look; what the legend shows for each."""
    prompts = [row for row in sheet.rows if row.is_zero_shot]
    learned = [row for row in sheet.rows if not row.is_zero_shot]
    shots = sorted({number for row in sheet.rows for number, _ in _cells(row)})
    legend: dict[str, Artist] = {}
    for row, aside in zip(prompts, _beside(len(prompts), 2 * _ROOM), strict=True):
        ((_, cell),) = _cells(row)
        look: Any = {**looks[row.label], "markersize": 9 * scale}
        axes.axhline(cell.mean, color=look["color"], linewidth=0.8, dashes=(4, 4), alpha=0.45)
        (legend[row.label],) = axes.plot(aside, cell.mean, **look, ls="none", zorder=6)
    for row, aside in zip(learned, _beside(len(learned), _ROOM), strict=True):
        cells = _cells(row)
        look = {**looks[row.label], "markersize": 6 * scale, "linewidth": 1.8 * scale}
        places = [number * 2**aside for number, _ in cells]
        means = [cell.mean for _, cell in cells]
        deviations = [cell.deviation or 0.0 for _, cell in cells]
        low, high = ([m + s * d for m, d in zip(means, deviations, strict=True)] for s in (-1, 1))
        axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.vlines(places, low, high, color=look["color"], linewidth=1.0, alpha=0.45)
        (legend[row.label],) = axes.plot(places, means, **look, zorder=5)
    _set_limits(axes, shots, len(prompts))
    style(axes)
    return legend


def _beside(count: int, room: float) -> Iterator[float]:
    """Return how far each of so many marks stands to the right of their middle."""
    step = min(_ASIDE, room / max(count, 1))
    return ((index - (count - 1) / 2) * step for index in range(count))


def _set_limits(axes: Axes, shots: Sequence[int], prompts: int) -> None:
    """End the axes where the numbers end, with ticks at the shots that were measured."""
    low, high = axes.get_ylim()
    padding = max(0.0, _LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - padding, high + padding)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    # From 0 to 1 shot it is as far as from 1 to 4.
    axes.set_xscale("symlog", base=2, linthresh=1, linscale=1)
    axes.set_xticks(shots, list(map(str, shots)), minor=False)
    axes.set_xticks([], minor=True)
    left = -0.2 - _ASIDE * prompts / 2 if shots[0] == 0 else shots[0] / 1.4
    axes.set_xlim(left, max(1.4 * shots[-1], -left))


def _notes(rows: Iterable[Row]) -> dict[str, Artist]:
    """Return the legend of the bands: artists by what they mean."""
    counts = {cell.seeds for row in rows if not row.is_zero_shot for _, cell in _cells(row)}
    if not counts:
        return {}
    if max(counts) == 1:
        return {"one seed: no deviation": Patch(alpha=0)}
    over = plural(max(counts), "seed")
    if len(counts) > 1:
        over = f"{min(counts)} to {over}"
    text = f"mean ± population standard deviation over {over}"
    return {text: Patch(facecolor="#808080", alpha=0.35, linewidth=0)}
