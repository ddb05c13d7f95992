"""From base to new classes: accuracy on both halves of the classes and their harmonic mean H."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from coop_jax.printing import plural
from coop_jax.report import summary
from coop_jax.report.sheet import Cell, Row, Sheet, Value
from coop_jax.report.summary import Point, Series
from coop_jax.results import Result

HARMONIC = "H"
HARMONIC_BY_SEED = "H by seed"
MEAN_OF_HARMONICS = "mean of H"

_BY_SEED_NOTE = (
    "H: harmonic mean of the averaged base and new, as in the papers; "
    "H by seed: mean over seeds of each seed's H"
)
_MEAN_NOTE = (
    "H: harmonic mean of the averages over datasets, as in the papers; "
    "mean of H: mean over datasets of their H"
)


class _Line(NamedTuple):
    """A row before it has values: a method, and the shots it learned from."""

    series: Series
    label: str
    shots: int


def sheets(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """For each backbone and origin of the split: the average, if of several, then every dataset."""
    tables = []
    for (_, origin), chosen in _groups(results).items():
        datasets = summary.in_order(result.dataset for result in chosen)
        tables += _average(protocol, chosen, datasets, origin)
        tables += [_one(protocol, chosen, dataset, origin) for dataset in datasets]
    return tables


def panels(protocol: str, results: Sequence[Result]) -> list[list[Sheet]]:
    """The datasets' sheets that belong in one picture, for each backbone and origin of split."""
    return [
        [
            _one(protocol, chosen, dataset, origin)
            for dataset in summary.in_order(result.dataset for result in chosen)
        ]
        for (_, origin), chosen in _groups(results).items()
    ]


def harmonic(base: Cell | None, new: Cell | None) -> Cell | None:
    """The harmonic mean of two means; None unless there are both."""
    if base is None or new is None:
        return None
    mean = statistics.harmonic_mean([base.mean, new.mean])
    return Cell(mean, None, min(base.seeds, new.seeds))


def _groups(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.backbone, summary.origin(result.split)), []).append(result)
    return groups


def _one(protocol: str, results: Sequence[Result], dataset: str, origin: str) -> Sheet:
    members = [result for result in results if result.dataset == dataset]
    found = summary.series(members)
    has_all = any(result.split == f"all{origin}" for result in members)
    rows = []
    for line in _lines(found):
        base, new, whole = (
            Point(dataset, half + origin, line.shots) for half in ("base", "new", "all")
        )
        one = line.series
        both = [
            statistics.harmonic_mean([accuracy, one.accuracies(new)[seed]])
            for seed, accuracy in one.accuracies(base).items()
            if seed in one.accuracies(new)
        ]
        cells = {base: one.cell(base), new: one.cell(new)}
        cells[base._replace(split=HARMONIC + origin)] = harmonic(*cells.values())
        cells[base._replace(split=HARMONIC_BY_SEED + origin)] = summary.over_seeds(both)
        if has_all:
            cells[whole] = one.cell(whole)
        rows.append(_row(protocol, line, cells))
    columns = ("base", "new", HARMONIC, HARMONIC_BY_SEED, *["all"] * has_all)
    return _sheet(protocol, members, dataset, origin, columns, rows, _BY_SEED_NOTE)


def _average(
    protocol: str, results: Sequence[Result], datasets: Sequence[str], origin: str
) -> list[Sheet]:
    """One sheet, or none where no row has values of every one of several datasets."""
    found = summary.one_template_each(summary.series(results))
    has_all = any(result.split == f"all{origin}" for result in results)
    subject = f"average over {plural(len(datasets), 'dataset')}"
    rows = []
    for line in _lines(found):
        halves: dict[str, list[Cell | None]] = {
            half: [line.series.cell(Point(name, half + origin, line.shots)) for name in datasets]
            for half in ("base", "new", "all")
        }
        base, new, whole = map(summary.over_datasets, halves.values())
        each = [harmonic(*pair) for pair in zip(halves["base"], halves["new"], strict=True)]
        by_split = {"base": base, "new": new, HARMONIC: harmonic(base, new)}
        by_split[MEAN_OF_HARMONICS] = summary.over_datasets(each)
        if has_all:
            by_split["all"] = whole
        cells = {
            Point(subject, split + origin, line.shots): cell for split, cell in by_split.items()
        }
        if any(cells.values()):
            rows.append(_row(protocol, line, cells, datasets))
    if len(datasets) < 2 or not rows:
        return []
    columns = ("base", "new", HARMONIC, MEAN_OF_HARMONICS, *["all"] * has_all)
    return [_sheet(protocol, results, subject, origin, columns, rows, _MEAN_NOTE)]


def _lines(found: Sequence[Series]) -> list[_Line]:
    """A line per method and number of shots."""
    return [_Line(*line) for line in summary.by_shots(found)]


def _row(
    protocol: str,
    line: _Line,
    cells: dict[Point, Cell | None],
    averaged: Sequence[str] = (),
) -> Row:
    values: list[Value | None] = [
        summary.value(line.series, protocol, point, cell, averaged=averaged)
        for point, cell in cells.items()
    ]
    return Row(label=line.label, is_zero_shot=line.series.is_zero_shot, values=tuple(values))


def _sheet(
    protocol: str,
    results: Sequence[Result],
    subject: str,
    origin: str,
    columns: tuple[str, ...],
    rows: Sequence[Row],
    note: str,
) -> Sheet:
    shots = summary.learned_shots(results)
    title = f"{subject}, {results[0].backbone}: {protocol}"
    title += f", split{origin}" if origin else ""
    title += f", {plural(shots[0], 'shot')}" if len(shots) == 1 else ""
    return Sheet(
        protocol=protocol,
        backbone=results[0].backbone,
        subject=subject,
        title=title,
        corner="method",
        columns=columns,
        rows=tuple(rows),
        note=note,
    )
