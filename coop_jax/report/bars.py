"""The picture of base-to-new: what one method gains over another, dataset by dataset."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from coop_jax.report.sheet import Row, Sheet
from coop_jax.report.summary import DATASETS

_GAIN, _LOSS = "#0072b2", "#d55e00"
_RANKS = ("zero-shot", "linear-probe", "CoOp", "CoCoOp")


def draw(sheets: Sequence[Sheet]) -> Figure | None:
    """Bars of improvement in percentage points on the new and on the base classes.

    The most advanced method is compared with the one before it: hand-crafted prompt (the first),
    linear probe, CoOp, CoCoOp, then others as they come. Datasets that lack either are left out;
    None where nothing can be compared.
    """
    ours, theirs = _compared(sheets)
    if theirs is None:
        return None
    halves = {half: _gains(sheets, ours, theirs, half) for half in ("new", "base")}
    most = max(map(len, halves.values()))
    if not most:
        return None
    figure = Figure(figsize=(9.0, 1.5 + 0.36 * most), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (half, gains) in enumerate(halves.items()):
        axes = figure.add_subplot(1, 2, index + 1)
        _draw_bars(axes, gains)
        axes.set_title(f"{half.capitalize()} classes", fontsize=11, pad=6)
    figure.suptitle(f"{ours} over {theirs}, {sheets[0].backbone}", fontsize=12, parse_math=False)
    figure.supxlabel("Absolute improvement (percentage points)", fontsize=10)
    return figure


def _name(row: Row) -> str:
    """What a row is called across datasets, whose prompts differ."""
    return "zero-shot CLIP" if row.is_zero_shot else row.label


def _compared(sheets: Sequence[Sheet]) -> tuple[str | None, str | None]:
    names = list(dict.fromkeys(_name(row) for sheet in sheets for row in sheet.rows))
    names.sort(key=_rank)
    return (names[-1], names[-2]) if len(names) > 1 else (None, None)


def _rank(name: str) -> int:
    word = name.split(",")[0].split(" ")[0]
    return _RANKS.index(word) if word in _RANKS else len(_RANKS)


def _gains(
    sheets: Sequence[Sheet], ours: str | None, theirs: str | None, half: str
) -> dict[str, float]:
    """Improvement by dataset, the largest first."""
    gains = {}
    for sheet in sheets:
        means: dict[str, float] = {}
        for row in sheet.rows:
            value = row.values[sheet.columns.index(half)]
            if value is not None:
                means.setdefault(_name(row), value.cell.mean)
        if ours in means and theirs in means:
            subject = DATASETS.get(sheet.subject, sheet.subject)
            gains[subject] = means[ours] - means[theirs]
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


def _draw_bars(axes: Axes, gains: dict[str, float]) -> None:
    colours = [_GAIN if gain >= 0 else _LOSS for gain in gains.values()]
    places = range(len(gains))
    axes.barh(places, list(gains.values()), height=0.62, color=colours, zorder=3)
    for place, gain in zip(places, gains.values(), strict=True):
        axes.annotate(
            f"{round(gain, 1) + 0.0:+.1f}",
            (gain, place),
            xytext=(4 if gain >= 0 else -4, 0),
            textcoords="offset points",
            horizontalalignment="left" if gain >= 0 else "right",
            verticalalignment="center",
            fontsize=8.5,
        )
    axes.set_yticks(places, list(gains))
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.margins(x=0.18)
    axes.axvline(0, color="#606060", linewidth=0.9, zorder=4)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color("#b0b0b0")
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
