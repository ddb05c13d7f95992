"""From base to new classes: accuracy on both halves of the classes and their harmonic mean H."""

import statistics
from collections.abc import Sequence

from coop_jax.printing import plural
from coop_jax.report import summary
from coop_jax.report.sheet import Cell, Sheet
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


def sheets(protocol: str, results: Sequence[Result]) -> list[Sheet]:
    """For each backbone and origin of the split: the average, if of several, then every dataset."""
    tables = []
    for origin, chosen in _groups(results):
        datasets = summary.datasets_of(chosen)
        if len(datasets) > 1:
            average = _sheet(protocol, chosen, datasets, origin)
            tables += [average] if average.rows else []
        tables += [_sheet(protocol, chosen, [dataset], origin) for dataset in datasets]
    return tables


def panels(protocol: str, results: Sequence[Result]) -> list[list[Sheet]]:
    """The datasets' sheets that belong in one picture, for each backbone and origin of split."""
    return [
        [_sheet(protocol, chosen, [dataset], origin) for dataset in summary.datasets_of(chosen)]
        for origin, chosen in _groups(results)
    ]


def harmonic(base: Cell | None, new: Cell | None) -> Cell | None:
    """The harmonic mean of two means; None unless there are both."""
    if base is None or new is None:
        return None
    mean = statistics.harmonic_mean([base.mean, new.mean])
    return Cell(mean, None, min(base.seeds, new.seeds))


def _groups(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The origin of the split, and the results that share it and the backbone."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((summary.origin(result.split), result.backbone), []).append(result)
    return [(origin, chosen) for (origin, _), chosen in groups.items()]


def _sheet(protocol: str, results: Sequence[Result], datasets: Sequence[str], origin: str) -> Sheet:
    """The sheet of a dataset, or of the average over several, with the rows that have a value."""
    is_average = len(datasets) > 1
    members = [result for result in results if result.dataset in datasets]
    found = summary.series(members)
    if is_average:
        found = summary.one_template_each(found)
    subject = summary.average_of(datasets) if is_average else datasets[0]
    has_all = any(result.split == f"all{origin}" for result in members)
    rows = []
    for one, label, shots in summary.by_shots(found):
        base, new, whole = (
            [one.cell(Point(name, half + origin, shots)) for name in datasets]
            for half in ("base", "new", "all")
        )
        cells = {"base": summary.over_datasets(base), "new": summary.over_datasets(new)}
        cells[HARMONIC] = harmonic(*cells.values())
        if is_average:
            cells[MEAN_OF_HARMONICS] = summary.over_datasets(list(map(harmonic, base, new)))
        else:
            cells[HARMONIC_BY_SEED] = _by_seed(one, subject, origin, shots)
        if has_all:
            cells["all"] = summary.over_datasets(whole)
        points = {Point(subject, split + origin, shots): cell for split, cell in cells.items()}
        averages = {subject: datasets} if is_average else {}
        rows.append(summary.row(one, label, protocol, points, averages))
    shots = summary.learned_shots(members)
    title = f"{subject}, {members[0].backbone}: {protocol}"
    title += f", split{origin}" if origin else ""
    title += f", {plural(shots[0], 'shot')}" if len(shots) == 1 else ""
    other = MEAN_OF_HARMONICS if is_average else HARMONIC_BY_SEED
    return Sheet(
        protocol=protocol,
        backbone=members[0].backbone,
        subject=subject,
        title=title,
        corner="method",
        columns=("base", "new", HARMONIC, other, *["all"] * has_all),
        rows=tuple(row for row in rows if any(row.values)),
        note=_MEAN_NOTE if is_average else _BY_SEED_NOTE,
    )


def _by_seed(one: Series, dataset: str, origin: str, shots: int) -> Cell | None:
    """The mean over seeds of each seed's harmonic mean."""
    base, new = (one.accuracies(Point(dataset, half + origin, shots)) for half in ("base", "new"))
    both = [seed for seed in base if seed in new]
    return summary.over_seeds(statistics.harmonic_mean([base[seed], new[seed]]) for seed in both)
