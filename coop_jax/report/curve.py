"""Pictures of accuracy over shots: matplotlib's objects, never pyplot."""

import math
import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coop_jax.report.sheet import Cell, Row, Sheet
from coop_jax.report.summary import DATASETS

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f5f3f")
_STAR_COLOURS = ("#222222", "#e69f00", "#6a51a3", "#737373")
_STAR_SIZES = (17, 12, 8)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":", "-.")
_LEAST_SPAN = 4.0
_X_LABEL = "Number of labelled training examples per class"
_SHORT_X_LABEL = "Labelled examples per class"
_Y_LABEL = "Accuracy (%)"


def draw(sheets: Sequence[Sheet]) -> Figure:
    """A figure with its own Agg canvas: stars for hand-crafted prompts, a line per learned method.

    A panel for each sheet; methods look the same in all of them. Bands and bars are ± one standard
    deviation. The legend stands below the axes, where no curve can run into it.
    """
    return _draw_one(sheets[0]) if len(sheets) == 1 else _draw_panels(sheets)


def _draw_one(sheet: Sheet) -> Figure:
    figure = _figure(5.2, 3.7 + 0.23 * len(sheet.rows))
    axes = figure.add_subplot()
    _draw_rows(axes, sheet, sheet.rows)
    _style(axes, sheet)
    axes.set_title(f"{sheet.subject}, {sheet.backbone}", fontsize=12, pad=8, parse_math=False)
    axes.set_xlabel(_X_LABEL, fontsize=10)
    axes.set_ylabel(_Y_LABEL, fontsize=10)
    _add_legend(figure, [axes])
    return figure


def _draw_panels(sheets: Sequence[Sheet]) -> Figure:
    rows = list({row.label: row for sheet in sheets for row in sheet.rows}.values())
    columns = 4 if len(sheets) > 6 else min(3, len(sheets))
    lines = math.ceil(len(sheets) / columns)
    figure = _figure(3.1 * columns, 2.5 * lines + 0.9 + 0.2 * len(rows))
    panels = []
    for index, sheet in enumerate(sheets):
        axes = figure.add_subplot(lines, columns, index + 1)
        _draw_rows(axes, sheet, rows, scale=0.75)
        _style(axes, sheet)
        name = DATASETS.get(sheet.subject, sheet.subject.replace("average", "Average"))
        axes.set_title(name, fontsize=11, pad=6, parse_math=False)
        if index + columns >= len(sheets):
            axes.set_xlabel(_SHORT_X_LABEL, fontsize=9)
        panels.append(axes)
    figure.suptitle(sheets[0].backbone, fontsize=13, parse_math=False)
    figure.supylabel(_Y_LABEL, fontsize=11)
    _add_legend(figure, panels)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_rows(axes: Axes, sheet: Sheet, all_rows: Sequence[Row], scale: float = 1.0) -> None:
    """Colours and marks depend on a row's place among all prompts, or all methods."""
    for row in sheet.rows:
        alike = [other.label for other in all_rows if other.is_zero_shot == row.is_zero_shot]
        draw_row = _draw_star if row.is_zero_shot else _draw_line
        draw_row(axes, row, alike.index(row.label), scale)


def _cells(row: Row) -> list[tuple[int, Cell]]:
    """Shots, ascending, and statistics."""
    return [(value.shots, value.cell) for value in row.values if value is not None]


def _draw_star(axes: Axes, row: Row, index: int, scale: float) -> None:
    colour = _STAR_COLOURS[index % len(_STAR_COLOURS)]
    shots, cells = zip(*_cells(row), strict=True)
    means = [cell.mean for cell in cells]
    axes.axhline(means[0], color=colour, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.45, zorder=2)
    axes.plot(
        shots,
        means,
        linestyle="none",
        marker="*",
        markersize=_STAR_SIZES[min(index, 2)] * scale,
        color=colour,
        markeredgewidth=0,
        label=textwrap.fill(row.label, 64),
        zorder=5,
    )


def _draw_line(axes: Axes, row: Row, index: int, scale: float) -> None:
    colour = _COLOURS[index % len(_COLOURS)]
    shots, cells = zip(*_cells(row), strict=True)
    low = [cell.mean - (cell.deviation or 0.0) for cell in cells]
    high = [cell.mean + (cell.deviation or 0.0) for cell in cells]
    axes.fill_between(shots, low, high, color=colour, alpha=0.15, linewidth=0, zorder=3)
    axes.vlines(shots, low, high, color=colour, linewidth=1.0, alpha=0.45, zorder=3)
    axes.plot(
        shots,
        [cell.mean for cell in cells],
        color=colour,
        linewidth=1.8 * scale,
        linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=6 * scale,
        markeredgecolor="white",
        markeredgewidth=0.8 * scale,
        label=textwrap.fill(row.label, 64),
        zorder=4,
    )


def _style(axes: Axes, sheet: Sheet) -> None:
    shots = [int(column) for column in sheet.columns]
    widest = shots[-1]
    ticks = [shots[0]]
    for number in shots[1:]:
        if number - ticks[-1] >= widest / 17:
            ticks.append(number)
    axes.set_xticks(ticks)
    axes.set_xlim(-0.045 * widest, 1.045 * widest)
    axes.margins(y=0.08)
    low, high = axes.get_ylim()
    padding = max(0.0, _LEAST_SPAN - (high - low)) / 2
    low, high = low - padding, high + padding
    axes.set_ylim(low, high)
    heights = MaxNLocator(nbins=7, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set_yticks([height for height in heights if max(low, 0) <= height <= min(high, 100)])
    axes.tick_params(labelsize=9, length=0)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#b0b0b0")


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    legend = figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        frameon=False,
        fontsize=9,
        handlelength=2.2,
        labelspacing=0.35,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
