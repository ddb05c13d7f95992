"""Accuracy by number of shots: a table per setting, and the average over datasets."""

from collections.abc import Sequence

from coop_jax.printing import plural
from coop_jax.report import summary
from coop_jax.report.sheet import Sheet
from coop_jax.report.summary import Point, Series
from coop_jax.results import Result

SHOTS = (0, 1, 2, 4, 8, 16)


def sheets(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """For each split and backbone: the average over datasets, if several, then every dataset."""
    tables = []
    for chosen in summary.group(results, "split", "backbone").values():
        tables += _average(protocol, chosen)
        for dataset in summary.datasets_of(chosen):
            members = [result for result in chosen if result.dataset == dataset]
            for setting in summary.group(members, "n_classes").values():
                tables.append(_sheet(protocol, setting[0], summary.series(setting), [dataset]))
    return tables


def panels(protocol: str, results: Sequence[Result]) -> list[list[Sheet]]:
    """Return what to draw in one picture, for each split and backbone.

    A single dataset is drawn with all its prompts; several, after their average, with the first.
    """
    pictures = []
    for chosen in summary.group(results, "split", "backbone").values():
        datasets, found = summary.datasets_of(chosen), summary.series(chosen)
        if len(datasets) > 1:
            found = summary.one_template_each(found)
        firsts = [next(one for one in chosen if one.dataset == name) for name in datasets]
        each = [_sheet(protocol, first, found, [first.dataset]) for first in firsts]
        pictures.append([*_average(protocol, chosen), *each])
    return pictures


def _average(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """One sheet, or none where there is nothing that every one of several datasets has."""
    datasets = summary.datasets_of(results)
    if len(datasets) < 2:
        return []
    found = summary.one_template_each(summary.series(results))
    sheet = _sheet(protocol, results[0], found, datasets)
    return [sheet] if sheet.rows else []


def _sheet(protocol: str, first: Result, found: Sequence[Series], datasets: Sequence[str]) -> Sheet:
    """The sheet of a dataset, or of the average over several, on the split of `first`."""
    is_average = len(datasets) > 1
    found = [one for one in found if not one.datasets.isdisjoint(datasets)]
    shots = _columns(found)
    subject = summary.average_of(datasets) if is_average else datasets[0]
    rows = []
    for one in found:
        each = {n: [one.cell(Point(name, first.split, n)) for name in datasets] for n in shots}
        cells = {Point(subject, first.split, n): summary.over_datasets(each[n]) for n in shots}
        averages = {subject: datasets} if is_average else {}
        rows.append(summary.row(one, one.label, protocol, cells, averages))
    title = f"{subject}, {first.backbone}: {protocol}, {first.split} split"
    classes = plural(first.n_classes, "class", "classes")
    return Sheet(
        protocol=protocol,
        backbone=first.backbone,
        subject=subject,
        title=title if is_average else f"{title}, {classes}",
        corner="shots per class",
        columns=tuple(map(str, shots)),
        rows=tuple(row for row in rows if any(row.values)),
        note="averaged where every dataset has a value" if is_average else "",
    )


def _columns(found: Sequence[Series]) -> list[int]:
    """The papers' numbers of shots up to the last that was run, and all others that were run."""
    measured = {point.shots for one in found for point in one.results}
    return sorted(measured.union(number for number in SHOTS if number <= max(measured)))
