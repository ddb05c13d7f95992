"""The drawing behind `report.few_shot_curve`: matplotlib's objects, never pyplot."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from coop_jax.report import Row

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f5f3f")
_STAR_COLOURS = ("#222222", "#e69f00", "#6a51a3", "#737373")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LINES = ("-", "--", ":", "-.")
_LEAST_SPAN = 4.0


def draw(rows: Sequence["Row"], shots: Sequence[int], title: str) -> Figure:
    """A figure with its own Agg canvas: stars for hand-crafted prompts, a line per learned method.

    `shots` are the ticks of the horizontal axis, ascending. Bands and bars are ± one standard
    deviation. The legend stands below the axes, where no curve can run into it.
    """
    zero_shot = [row for row in rows if row.is_zero_shot]
    learned = [row for row in rows if not row.is_zero_shot]
    figure = Figure(figsize=(5.2, 3.7 + 0.23 * len(rows)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, row in enumerate(zero_shot):
        _draw_star(axes, row, _STAR_COLOURS[index % len(_STAR_COLOURS)], (17, 12, 8)[min(index, 2)])
    for index, row in enumerate(learned):
        _draw_line(axes, row, index)
    _style(axes, shots, title)
    legend = figure.legend(
        loc="outside lower center", frameon=False, fontsize=9, handlelength=2.2, labelspacing=0.35
    )
    for text in [axes.title, *legend.get_texts()]:
        text.set_parse_math(False)
    return figure


def _draw_star(axes: Axes, row: "Row", colour: str, size: float) -> None:
    means = [cell.mean for cell in row.cells.values()]
    axes.axhline(means[0], color=colour, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.45, zorder=2)
    axes.plot(
        list(row.cells),
        means,
        linestyle="none",
        marker="*",
        markersize=size,
        color=colour,
        markeredgewidth=0,
        label=textwrap.fill(row.label, 64),
        zorder=5,
    )


def _draw_line(axes: Axes, row: "Row", index: int) -> None:
    colour = _COLOURS[index % len(_COLOURS)]
    shots = sorted(row.cells)
    means = [row.cells[number].mean for number in shots]
    deviations = [row.cells[number].deviation for number in shots]
    low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
    high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    axes.fill_between(shots, low, high, color=colour, alpha=0.15, linewidth=0, zorder=3)
    axes.vlines(shots, low, high, color=colour, linewidth=1.0, alpha=0.45, zorder=3)
    axes.plot(
        shots,
        means,
        color=colour,
        linewidth=1.8,
        linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label=textwrap.fill(row.label, 64),
        zorder=4,
    )


def _style(axes: Axes, shots: Sequence[int], title: str) -> None:
    axes.set_title(title, fontsize=12, pad=8)
    axes.set_xlabel("Number of labelled training examples per class", fontsize=10)
    axes.set_ylabel("Accuracy (%)", fontsize=10)
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
