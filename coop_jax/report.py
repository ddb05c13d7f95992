"""Tables and curves, computed from `results.jsonl` alone.

    python -m coop_jax.report WORKDIR_OR_FILE... [--markdown] [--png PATH]

One table and one curve per setting: what was evaluated, on which classes, with which backbone.
"""

import argparse
import dataclasses
import logging
import os
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coop_jax import results as results_file
from coop_jax.errors import InputError
from coop_jax.results import Result

log = logging.getLogger(__name__)

SHOTS = (0, 1, 2, 4, 8, 16)
ZERO_SHOT = "zero-shot CLIP, "
"""Begins the labels of hand-crafted prompts; tables leave it out, to fit 80 columns."""

_MISSING = "\N{EN DASH}"
_SPELLING = {"coop": "CoOp", "cocoop": "CoCoOp"}


class Setting(NamedTuple):
    """What the results of one table have in common."""

    protocol: str
    dataset: str
    split: str
    backbone: str
    n_classes: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """Accuracy over seeds: `mean` and population standard `deviation` in percent, unrounded."""

    mean: float
    deviation: float
    seeds: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One hand-crafted prompt or one learned method: its cells by number of shots."""

    label: str
    is_zero_shot: bool
    cells: dict[int, Cell]


def by_setting(results: Iterable[Result]) -> dict[Setting, list[Result]]:
    """Results grouped by setting, in the order in which the settings first appear.

    Zero-shot CLIP does not depend on the protocol, so its results join every protocol that has
    learned results for the same dataset, split, backbone and number of classes.
    """
    results = list(results)
    learned = {_setting(result) for result in results if result.prompt is None}
    groups: dict[Setting, list[Result]] = {}
    for result in results:
        own = _setting(result)
        hosts = [own]
        if result.prompt is not None:
            hosts = sorted(setting for setting in learned if setting[1:] == own[1:]) or hosts
        for setting in hosts:
            groups.setdefault(setting, []).append(result)
    return groups


def few_shot_rows(results: Iterable[Result]) -> list[Row]:
    """The numbers behind the table and the curve of one setting.

    Hand-crafted prompts come first, then methods, each in order of first appearance. If a seed was
    evaluated more than once the last result counts; the log says so where the two differ.

    Raises:
      InputError: there are no results, or they belong to more than one setting.
    """
    results = list(results)
    _only_setting(results)
    labels = _labels(results)
    accuracies: dict[tuple[bool, str], dict[int, dict[int, float]]] = {}
    for result, label in zip(results, labels, strict=True):
        seeds = accuracies.setdefault((result.prompt is not None, label), {})
        seeds = seeds.setdefault(result.shots, {})
        previous = seeds.get(result.seed, result.accuracy)
        if previous != result.accuracy:
            log.warning(
                "%s, %s, %d shots, seed %d has several results: %r, then %r; the last counts",
                result.dataset,
                label,
                result.shots,
                result.seed,
                previous,
                result.accuracy,
            )
        seeds[result.seed] = result.accuracy
    rows = [
        Row(label, is_zero_shot, {shots: _cell(seeds.values()) for shots, seeds in cells.items()})
        for (is_zero_shot, label), cells in accuracies.items()
    ]
    return sorted(rows, key=lambda row: not row.is_zero_shot)


def few_shot_table(results: Iterable[Result]) -> Table:
    """Accuracy in percent by number of shots: mean ± population standard deviation over seeds.

    The title names the setting, the caption the number of seeds; "(n)" marks a cell with fewer.
    Statistics are of unrounded values; a cell of one seed has no deviation.

    Raises:
      InputError: there are no results, or they belong to more than one setting.
    """
    results = list(results)
    rows = few_shot_rows(results)
    header, body = _grid(rows)
    table = Table(
        title=Text(_title(_only_setting(results)), style="bold"),
        caption=Text(_caption(rows), style="dim"),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, name in enumerate(header):
        table.add_column(
            name,
            justify="right" if index else "left",
            no_wrap=index > 0,
            min_width=max(len(row[index]) for row in body) if index else None,
        )
    for row in body:
        table.add_row(*map(Text, row))
    return table


def few_shot_markdown(results: Iterable[Result]) -> str:
    """The table of `few_shot_table` in Markdown, with its title and caption.

    Raises:
      InputError: there are no results, or they belong to more than one setting.
    """
    results = list(results)
    rows = few_shot_rows(results)
    header, body = _grid(rows)
    alignment = ["---", *["---:"] * (len(header) - 1)]
    lines = [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in [header, alignment, *body]
    ]
    return "\n".join([f"**{_title(_only_setting(results))}**", "", *lines, "", _caption(rows)])


def few_shot_curve(results: Iterable[Result], path: str | os.PathLike[str]) -> None:
    """Saves the curve of accuracy (%) over shots as a PNG, in the style of the paper's Figure 3.

    Stars at 0 are hand-crafted prompts, bands are ± one population standard deviation over seeds.
    Touches no state of matplotlib, so it may run in any thread.

    Raises:
      InputError: there are no results, they belong to more than one setting, or `path` does not end
        in `.png`.
    """
    from coop_jax import curve

    results = list(results)
    path = _png(path)
    setting = _only_setting(results)
    rows = few_shot_rows(results)
    figure = curve.draw(rows, _columns(rows), f"{setting.dataset}, {setting.backbone}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def console() -> Console:
    """Standard output, wide enough for every table where it is not a terminal."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table per setting, and saves a curve per setting where asked; the exit code.

    Bad input is one line on standard error and exit code 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m coop_jax.report", description="Tables and curves from results.jsonl."
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="WORKDIR_OR_FILE", help="read together if several"
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument("--png", type=Path, metavar="PATH", help="save the curve here")
    options = parser.parse_args(arguments)
    try:
        _report(options.paths, options.markdown, options.png)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(paths: Sequence[Path], markdown: bool, png: Path | None) -> None:
    groups = by_setting(result for path in paths for result in _read(path))
    if png is not None:
        _png(png)
    for results in groups.values():
        if markdown:
            print(few_shot_markdown(results), end="\n\n")
        else:
            console().print(few_shot_table(results))
    if png is None:
        return
    for setting, results in groups.items():
        path = png
        if len(groups) > 1:
            path = png.with_stem("-".join([png.stem, *(_slug(str(part)) for part in setting)]))
        few_shot_curve(results, path)
        print(f"saved {path}", file=sys.stderr)


def _read(path: Path) -> list[Result]:
    if path.is_dir():
        path = path / results_file.FILE_NAME
    results = results_file.read(path)
    if not results:
        raise InputError(f"expected results in {path}, got an empty file; run an evaluation first")
    return results


def _setting(result: Result) -> Setting:
    return Setting(*(getattr(result, name) for name in Setting._fields))


def _only_setting(results: Sequence[Result]) -> Setting:
    settings = list(by_setting(results))
    if len(settings) != 1:
        got = "; ".join(_title(setting) for setting in settings) or "no results"
        raise InputError(
            f"expected results of one setting, got {got}; "
            "call it once for each group of report.by_setting(results)"
        )
    return settings[0]


def _labels(results: Sequence[Result]) -> list[str]:
    """What to call each result; runs that differ in settings not shown get their config's hash."""
    configs: dict[str, set[str]] = {}
    for result in results:
        if result.prompt is None:
            configs.setdefault(_label(result), set()).add(result.hashes.config)
    return [
        f"{label} [{result.hashes.config[:6]}]" if len(configs.get(label, ())) > 1 else label
        for result, label in zip(results, map(_label, results), strict=True)
    ]


def _label(result: Result) -> str:
    if result.prompt is not None:
        prompt = f'"{result.prompt}"' if "{" in result.prompt else result.prompt
        return ZERO_SHOT + prompt
    parts = [_SPELLING.get(result.method, result.method)]
    if result.n_ctx is not None:
        parts.append(f"M = {result.n_ctx}")
    if result.class_token_position is not None:
        parts.append(result.class_token_position)
    if result.class_specific:
        parts.append("class-specific")
    return ", ".join(parts)


def _cell(accuracies: Iterable[float]) -> Cell:
    values = list(accuracies)
    return Cell(statistics.fmean(values), statistics.pstdev(values), len(values))


def _columns(rows: Iterable[Row]) -> list[int]:
    return sorted({*SHOTS, *(shots for row in rows for shots in row.cells)})


def _seed_counts(rows: Iterable[Row]) -> set[int]:
    return {cell.seeds for row in rows if not row.is_zero_shot for cell in row.cells.values()}


def _grid(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of the table as text; a prompt at 0 shots is zero-shot CLIP's."""
    columns = _columns(rows)
    most = max(_seed_counts(rows), default=1)
    return ["shots per class", *map(str, columns)], [
        [
            row.label.removeprefix(ZERO_SHOT),
            *(_cell_text(row, row.cells.get(shots), most) for shots in columns),
        ]
        for row in rows
    ]


def _cell_text(row: Row, cell: Cell | None, most_seeds: int) -> str:
    if cell is None:
        return _MISSING
    text = f"{cell.mean:.1f}"
    if cell.seeds > 1 and not (row.is_zero_shot and cell.deviation == 0):
        text += f"±{cell.deviation:.1f}"
    if cell.seeds < most_seeds and not row.is_zero_shot:
        text += f" ({cell.seeds})"
    return text


def _title(setting: Setting) -> str:
    return (
        f"{setting.dataset}, {setting.backbone}: {setting.protocol}, {setting.split} split, "
        f"{setting.n_classes} classes"
    )


def _caption(rows: Sequence[Row]) -> str:
    counts = _seed_counts(rows)
    if not counts:
        return "accuracy in percent"
    most = max(counts)
    seeds = "1 seed" if most == 1 else f"{most} seeds"
    caption = f"accuracy in percent: mean ± population standard deviation over {seeds}"
    return caption if len(counts) == 1 else f"{caption}, or (n) where fewer"


def _png(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"expected a path that ends in .png, got {path}; curves are saved as PNG")
    return path


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text)


if __name__ == "__main__":
    sys.exit(main())
