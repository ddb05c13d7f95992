"""Pictures of what one method gains over another, dataset by dataset."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from coop_jax import fonts
from coop_jax.printing import plural
from coop_jax.report.curve import figure, style
from coop_jax.report.sheet import Sheet
from coop_jax.report.summary import shown_name

_GAIN, _LOSS = "#0072b2", "#d55e00"
_RANKS = ("zero-shot", "linear-probe", "CoOp", "CoCoOp")
_ZERO_SHOT = "zero-shot CLIP"


def draw(sheets: Sequence[Sheet]) -> Figure | None:
    """Bars of improvement in percentage points on the new and on the base classes.

    The most advanced method is compared with the one before it: hand-crafted prompt (the first),
    linear probe, CoOp, CoCoOp, then others as they come. Datasets that lack either are left out;
    None where nothing can be compared.
    """
    measured = [name for sheet in sheets for name, _ in _means(sheet)]
    names = sorted(dict.fromkeys(measured), key=_rank)
    if len(names) < 2:
        return None
    theirs, ours = names[-2:]
    halves = {
        f"{half.capitalize()} classes": _gains(sheets, (ours, half), (theirs, half))
        for half in ("new", "base")
    }
    return _draw(halves, f"{ours} over {theirs}, {sheets[0].backbone}")


def draw_over_zero_shot(sheets: Sequence[Sheet]) -> Figure | None:
    """Bars of improvement over the first hand-crafted prompt at the most shots (CoOp's Figure 4).

    It is the first of the most advanced methods that is compared. Datasets that lack it or a
    prompt are left out; None where nothing can be compared.
    """
    measured = [place for sheet in sheets for place in _means(sheet)]
    ours = max((name for name, _ in measured), key=_rank)
    if ours == _ZERO_SHOT:
        return None
    shots = max(int(column) for name, column in measured if name == ours)
    gains = _gains(sheets, (ours, str(shots)), (_ZERO_SHOT, "0"))
    title = f"{ours}, {plural(shots, 'shot')}\nover {_ZERO_SHOT}, {sheets[0].backbone}"
    return _draw({title: gains})


def _draw(panels: Mapping[str, Mapping[str, float]], title: str = "") -> Figure | None:
    """A panel of bars for each title, side by side; None where no panel has any."""
    most = max(map(len, panels.values()))
    if not most:
        return None
    picture = figure(0.6 + 4.2 * len(panels), 1.5 + 0.36 * most)
    for index, (name, gains) in enumerate(panels.items()):
        axes = picture.add_subplot(1, len(panels), index + 1)
        _draw_bars(axes, gains)
        axes.set_title(_in_lines(name, 42), fontsize=11, pad=6)
        axes.set_xlabel("Absolute improvement (percentage points)", fontsize=9)
    if title:
        picture.suptitle(_in_lines(title, 90), fontsize=12)
    return picture


def _in_lines(title: str, width: int) -> str:
    return "\n".join(fonts.wrapped(line, width) for line in title.split("\n"))


def _means(sheet: Sheet) -> dict[tuple[str, str], float]:
    """The mean by a row's name and the column, of the first row of that name that has one.

    Prompts, which differ between datasets, have one name.
    """
    means: dict[tuple[str, str], float] = {}
    for row in sheet.rows:
        name = _ZERO_SHOT if row.is_zero_shot else row.label
        for column, value in zip(sheet.columns, row.values, strict=True):
            if value is not None:
                means.setdefault((name, column), value.cell.mean)
    return means


def _rank(name: str) -> int:
    word = name.split(",")[0].split(" ")[0]
    return _RANKS.index(word) if word in _RANKS else len(_RANKS)


def _gains(
    sheets: Sequence[Sheet], ours: tuple[str, str], theirs: tuple[str, str]
) -> dict[str, float]:
    """Improvement by dataset, the largest first; both are a row's name and a column."""
    gains = {}
    for sheet in sheets:
        means = _means(sheet)
        if ours in means and theirs in means:
            gains[shown_name(sheet.subject)] = means[ours] - means[theirs]
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


def _draw_bars(axes: Axes, gains: Mapping[str, float]) -> None:
    style(axes)
    colours = [_GAIN if gain >= 0 else _LOSS for gain in gains.values()]
    bars = axes.barh(range(len(gains)), list(gains.values()), height=0.62, color=colours)
    shown = [f"{round(gain, 1) + 0.0:+.1f}" for gain in gains.values()]
    minus = [text.replace("-", "\N{MINUS SIGN}") for text in shown]
    axes.bar_label(bars, minus, padding=4, fontsize=8.5)
    axes.set_yticks(range(len(gains)), [fonts.shortened(name, 36) for name in gains])
    axes.set_ylim(len(gains) - 0.4, -0.6)
    axes.margins(x=0.18)
    axes.axvline(0, color="#606060", linewidth=0.9)
    axes.grid(visible=False, axis="y")
