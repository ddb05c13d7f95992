"""Pictures of accuracy over shots: matplotlib's objects, never pyplot."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from coop_jax.fonts import shortened, wrapped
from coop_jax.printing import plural
from coop_jax.report import marks
from coop_jax.report.sheet import Cell, Row, Sheet
from coop_jax.report.summary import shown_name

_LEAST_SPAN = 4.0
_MARGIN = 14.0
"""Points between a mark and the frame."""

_X_LABEL = "Number of labelled training examples per class"
_SHORT_X_LABEL = "Labelled examples per class"
_Y_LABEL = "Accuracy (%)"


class _Size(NamedTuple):
    """About how wide and high axes are, in points, and how large what is in them, of 1."""

    width: float
    height: float
    scale: float


def draw(sheets: Sequence[Sheet]) -> Figure:
    """A figure with its own Agg canvas: marks for hand-crafted prompts, a line per learned method.

    A panel for each sheet; methods look the same in all of them. The axis ends at the last number
    of shots that was measured. Bands and bars are ± one standard deviation. Marks that would hide
    each other stand side by side. The legend is below the axes, where no curve can run into it.
    """
    return _draw_one(sheets[0]) if len(sheets) == 1 else _draw_panels(sheets)


def _draw_one(sheet: Sheet) -> Figure:
    legend = _legend(sheet.rows)
    figure = _figure(5.2, 3.5 + 0.2 * _lines(legend))
    axes = figure.add_subplot()
    _draw_rows(axes, sheet, [sheet], _Size(315, 200, 1.0))
    _style(axes)
    title = wrapped(f"{sheet.subject}, {sheet.backbone}", 48)
    axes.set_title(title, fontsize=12, pad=8, parse_math=False)
    axes.set_xlabel(_X_LABEL, fontsize=10)
    axes.set_ylabel(_Y_LABEL, fontsize=10)
    _add_legend(figure, legend)
    return figure


def _draw_panels(sheets: Sequence[Sheet]) -> Figure:
    legend = _legend(_all_rows(sheets))
    columns = 4 if len(sheets) > 6 else min(3, len(sheets))
    lines = math.ceil(len(sheets) / columns)
    figure = _figure(3.1 * columns, 2.5 * lines + 0.7 + 0.2 * _lines(legend))
    for index, sheet in enumerate(sheets):
        axes = figure.add_subplot(lines, columns, index + 1)
        _draw_rows(axes, sheet, sheets, _Size(180, 130, 0.75))
        _style(axes)
        name = shortened(shown_name(sheet.subject), 30)
        axes.set_title(name, fontsize=11, pad=6, parse_math=False)
        if index + columns >= len(sheets):
            axes.set_xlabel(_SHORT_X_LABEL, fontsize=9)
    title = wrapped(sheets[0].backbone, 26 * columns)
    figure.suptitle(title, fontsize=13, parse_math=False)
    figure.supylabel(_Y_LABEL, fontsize=11)
    _add_legend(figure, legend)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=200)
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def _all_rows(sheets: Sequence[Sheet]) -> list[Row]:
    return list({row.label: row for sheet in sheets for row in sheet.rows}.values())


def _looks(rows: Sequence[Row]) -> dict[str, marks.Look]:
    """By label; colours and marks depend on a row's place among all prompts, or all methods."""
    kinds = ([row.label for row in rows if row.is_zero_shot is kind] for kind in (True, False))
    return {
        label: marks.look(index, is_zero_shot=is_zero_shot)
        for is_zero_shot, labels in zip((True, False), kinds, strict=True)
        for index, label in enumerate(labels)
    }


def _cells(row: Row) -> list[tuple[int, Cell]]:
    """Shots, ascending, and statistics."""
    return [(value.shots, value.cell) for value in row.values if value is not None]


def _span(cell: Cell) -> tuple[float, float]:
    deviation = cell.deviation or 0.0
    return cell.mean - deviation, cell.mean + deviation


def _draw_rows(axes: Axes, sheet: Sheet, sheets: Sequence[Sheet], size: _Size) -> None:
    """Set the limits and draw the rows; looks and shots are those of all sheets."""
    looks = _looks(_all_rows(sheets))
    shots = sorted({n for one in sheets for row in one.rows for n, _ in _cells(row)})
    prompts = {row.label: _cells(row)[0][1] for row in sheet.rows if row.is_zero_shot}
    learned = {row.label: _cells(row) for row in sheet.rows if not row.is_zero_shot}
    cells = [*prompts.values(), *(cell for row in learned.values() for _, cell in row)]
    up, room = _set_heights(axes, cells, size.height), 9.0 * size.scale
    places = [(0.0, up * cell.mean) for cell in prompts.values()]
    beside = marks.shifts(places, room, most=20 * room)
    zero, right = _set_shots(axes, shots, max(map(abs, beside), default=0.0) + room, size)
    for (label, cell), shift in zip(prompts.items(), beside, strict=True):
        _draw_prompt(axes, zero, cell.mean, looks[label], shift, size.scale)
    gaps = [right * (shots[i + 1] - shots[i]) for i in range(len(shots) - 1) if shots[i]]
    places = [(right * n, up * cell.mean) for row in learned.values() for n, cell in row]
    most = 0.45 * min(gaps, default=size.width)
    aside = iter(marks.shifts(places, 0.85 * room, most))
    for label, row in learned.items():
        _draw_line(axes, row, looks[label], [next(aside) for _ in row], size.scale)


def _set_heights(axes: Axes, cells: Sequence[Cell], height: float) -> float:
    """Set the limits and ticks of accuracy; how many points there are to a percent."""
    low, high = min(_span(cell)[0] for cell in cells), max(_span(cell)[1] for cell in cells)
    padding = max(0.08 * (high - low), (_LEAST_SPAN - (high - low)) / 2)
    low, high = low - padding, high + padding
    axes.set_ylim(low, high)
    ticks = MaxNLocator(nbins=7, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_yticks([tick for tick in ticks if max(low, 0) <= tick <= min(high, 100)])
    return height / (high - low)


def _set_shots(axes: Axes, shots: Sequence[int], beside: float, size: _Size) -> tuple[float, float]:
    """Set the limits and ticks of shots; where none is, and how many points there are to a shot.

    None is farther to the left than it is from one shot, if the marks `beside` it, in points, need
    the room.
    """
    first, last, zero = shots[0], shots[-1], 0.0
    if len(shots) == 1:
        axes.set_xticks(shots)
        axes.set_xlim(first - 1, first + 1)
        return zero, size.width / 2
    room = size.width - 2 * _MARGIN - (beside if first == 0 else 0)
    right = room / (last - first)
    if first == 0 and len(shots) > 2 and right * shots[1] < 2 * beside:
        right = (room - 2 * beside) / (last - shots[1])
        zero = shots[1] - 2 * beside / right
    places = {number: float(number) for number in shots} | ({0: zero} if first == 0 else {})
    shown = [last]
    for number in reversed(shots[:-1]):
        if right * (places[shown[-1]] - places[number]) >= 3 + 5.6 * len(str(shown[-1])):
            shown.append(number)
    axes.set_xticks([places[number] for number in shown], list(map(str, shown)))
    margin = _MARGIN + (beside if first == 0 else 0)
    axes.set_xlim(places[first] - margin / right, last + _MARGIN / right)
    return zero, right


def _draw_prompt(
    axes: Axes, zero: float, mean: float, look: marks.Look, shift: float, scale: float
) -> None:
    dashes: Any = (0, (4, 4))
    axes.axhline(mean, color=look.colour, linewidth=0.8, linestyle=dashes, alpha=0.45, zorder=2)
    there: dict[str, Any] = {"transform": _shifted(axes, shift)}
    axes.plot(zero, mean, **_mark(look, scale) | there, zorder=6)


def _draw_line(
    axes: Axes,
    cells: Sequence[tuple[int, Cell]],
    look: marks.Look,
    shifts: Sequence[float],
    scale: float,
) -> None:
    """A band and a line, and on it marks and bars that may be shifted, in points."""
    shots, means = [number for number, _ in cells], [cell.mean for _, cell in cells]
    low, high = zip(*(_span(cell) for _, cell in cells), strict=True)
    axes.fill_between(shots, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=3)
    axes.plot(shots, means, color=look.colour, linewidth=1.8 * scale, zorder=4)
    for (number, cell), shift in zip(cells, shifts, strict=True):
        there: dict[str, Any] = {"color": look.colour, "transform": _shifted(axes, shift)}
        axes.vlines(number, *_span(cell), linewidth=1.0, alpha=0.45, zorder=3, **there)
        axes.plot(number, cell.mean, **_mark(look, scale) | there, zorder=5)


def _mark(look: marks.Look, scale: float) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": look.mark,
        "markersize": look.size * scale,
        "color": look.colour,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6 * scale,
    }


def _shifted(axes: Axes, points: float) -> Transform:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)


def _style(axes: Axes) -> None:
    axes.tick_params(labelsize=9, length=0)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#b0b0b0")


def _legend(rows: Sequence[Row]) -> dict[str, Artist]:
    """Return what stands for each row, and for the bands, by what it means."""
    legend: dict[str, Artist] = {}
    looks = _looks(rows)
    for row in sorted(rows, key=lambda row: not row.is_zero_shot):
        style = _mark(looks[row.label], 1.0)
        if not row.is_zero_shot:
            style |= {"linestyle": "-", "linewidth": 1.8}
        legend[wrapped(row.label, 62)] = Line2D([], [], **style)
    counts = {cell.seeds for row in rows if not row.is_zero_shot for _, cell in _cells(row)}
    if counts and max(counts) > 1:
        over = plural(max(counts), "seed")
        if len(counts) > 1:
            over = f"{min(counts)} to {over}"
        text = f"mean ± population standard deviation over {over}"
        legend[text] = Patch(facecolor="#808080", alpha=0.35, linewidth=0)
    elif counts:
        legend["one seed: no deviation"] = Patch(alpha=0)
    return legend


def _lines(legend: Iterable[str]) -> int:
    return sum(1 + text.count("\n") for text in legend)


def _add_legend(figure: Figure, legend: Mapping[str, Artist]) -> None:
    drawn = figure.legend(
        list(legend.values()),
        list(legend),
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        handlelength=2.2,
        labelspacing=0.35,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
