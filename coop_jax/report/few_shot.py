"""Accuracy by number of shots: a table per setting, and the average over datasets."""

from collections.abc import Sequence

from coop_jax.printing import plural
from coop_jax.report import summary
from coop_jax.report.sheet import Row, Sheet, Value
from coop_jax.report.summary import Point, Series
from coop_jax.results import Result

SHOTS = (0, 1, 2, 4, 8, 16)


def sheets(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """For each split and backbone: the average over datasets, if several, then every dataset."""
    tables = []
    for chosen in summary.group(results, "split", "backbone").values():
        datasets = summary.in_order(result.dataset for result in chosen)
        tables += _average(protocol, chosen, datasets)
        for dataset in datasets:
            members = [result for result in chosen if result.dataset == dataset]
            for setting in summary.group(members, "n_classes").values():
                tables.append(_one(protocol, setting[0], summary.series(setting)))
    return tables


def panels(protocol: str, results: Sequence[Result]) -> list[list[Sheet]]:
    """Return what to draw in one picture, for each split and backbone.

    A single dataset is drawn with all its prompts; several, after their average, with the first.
    """
    pictures = []
    for chosen in summary.group(results, "split", "backbone").values():
        datasets = summary.in_order(result.dataset for result in chosen)
        found = summary.series(chosen)
        if len(datasets) > 1:
            found = summary.one_template_each(found)
        firsts = [next(one for one in chosen if one.dataset == name) for name in datasets]
        each = [_one(protocol, first, found) for first in firsts]
        pictures.append([*_average(protocol, chosen, datasets), *each])
    return pictures


def _one(protocol: str, first: Result, found: Sequence[Series]) -> Sheet:
    """The sheet of the dataset and split of `first`."""
    found = [one for one in found if first.dataset in one.datasets]
    shots = _columns(found)
    rows = []
    for one in found:
        points = [Point(first.dataset, first.split, number) for number in shots]
        values = [summary.value(one, protocol, point, one.cell(point)) for point in points]
        rows.append(_row(one, values))
    title = f"{first.dataset}, {first.backbone}: {protocol}, {first.split} split"
    return Sheet(
        protocol=protocol,
        backbone=first.backbone,
        subject=first.dataset,
        title=f"{title}, {plural(first.n_classes, 'class', 'classes')}",
        corner="shots per class",
        columns=tuple(map(str, shots)),
        rows=tuple(rows),
    )


def _average(protocol: str, results: Sequence[Result], datasets: Sequence[str]) -> list[Sheet]:
    """One sheet, or none where there is nothing that every one of several datasets has."""
    found = summary.one_template_each(summary.series(results))
    shots, first = _columns(found), results[0]
    subject = f"average over {plural(len(datasets), 'dataset')}"
    rows = []
    for one in found:
        values = []
        for number in shots:
            cells = [one.cell(Point(name, first.split, number)) for name in datasets]
            point = Point(subject, first.split, number)
            mean = summary.over_datasets(cells)
            values.append(summary.value(one, protocol, point, mean, averaged=datasets))
        if any(values):
            rows.append(_row(one, values))
    if len(datasets) < 2 or not rows:
        return []
    return [
        Sheet(
            protocol=protocol,
            backbone=first.backbone,
            subject=subject,
            title=f"{subject}, {first.backbone}: {protocol}, {first.split} split",
            corner="shots per class",
            columns=tuple(map(str, shots)),
            rows=tuple(rows),
            note="averaged where every dataset has a value",
        )
    ]


def _row(series: Series, values: Sequence[Value | None]) -> Row:
    return Row(label=series.label, is_zero_shot=series.is_zero_shot, values=tuple(values))


def _columns(found: Sequence[Series]) -> list[int]:
    """The papers' numbers of shots up to the last that was run, and all others that were run."""
    measured = {point.shots for one in found for point in one.results}
    return sorted(measured.union(number for number in SHOTS if number <= max(measured)))
