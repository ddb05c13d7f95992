"""From one dataset to others: cross-dataset transfer and domain generalization."""

from collections.abc import Sequence

from coop_jax.data.official import OFFICIAL
from coop_jax.printing import plural
from coop_jax.report import summary
from coop_jax.report.sheet import Sheet
from coop_jax.report.summary import Point
from coop_jax.results import Result

USUAL_SOURCE = "imagenet"

_SHORT = {name: row.short for name, row in OFFICIAL.items() if row.short}


def sheets(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """A table for each backbone, split and source dataset."""
    tables = []
    for chosen in summary.group(results, "backbone", "split").values():
        sources = dict.fromkeys(one.trained_on for one in chosen if one.prompt is None)
        for source in sources or [USUAL_SOURCE]:
            learned = [one for one in chosen if one.prompt is None and one.trained_on == source]
            datasets = {one.dataset for one in learned or chosen}
            members = [
                one
                for one in chosen
                if one.dataset in datasets and (one.prompt is not None or one in learned)
            ]
            tables.append(_table(protocol, members, str(source)))
    return tables


def _table(protocol: str, results: Sequence[Result], source: str) -> Sheet:
    """Methods as rows; the source dataset, the targets, and the average over the targets."""
    datasets = summary.datasets_of(results)
    split = results[0].split
    trained = [name for name in datasets if source in (name, name + summary.origin(split))]
    targets = [name for name in datasets if name not in trained]
    has_average, average = len(targets) > 1, summary.average_of(targets, "target")
    rows = []
    found = summary.one_template_each(summary.series(results))
    for one, label, shots in summary.by_shots(found):
        points = [Point(name, split, shots) for name in (*trained, *targets)]
        cells = {point: one.cell(point) for point in points}
        if has_average:
            mean = summary.over_datasets([cells[point] for point in points[len(trained) :]])
            cells[Point(average, split, shots)] = mean
        rows.append(summary.row(one, label, protocol, cells, {average: targets}))
    names = [_SHORT.get(name, summary.shown_name(name)) for name in (*trained, *targets)]
    subject = f"{protocol} from {source}"
    return Sheet(
        protocol=protocol,
        backbone=results[0].backbone,
        subject=subject,
        title=f"{subject}, {results[0].backbone}, {split} split",
        corner="method",
        columns=(*names, *["average"] * has_average),
        rows=tuple(rows),
        note=_note(len(targets) if has_average else 0, summary.learned_shots(results)),
        is_wide=True,
    )


def _note(targets: int, shots: Sequence[int]) -> str:
    parts = [f"{plural(shots[0], 'shot')} per class"] if len(shots) == 1 else []
    if targets:
        parts.append(f"average: over the {targets} targets, without the source")
    return "; ".join(parts)
