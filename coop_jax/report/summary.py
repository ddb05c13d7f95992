"""From results to statistics over seeds: which results belong together, and what to call them."""

import dataclasses
import logging
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from coop_jax.data.official import OFFICIAL
from coop_jax.printing import plural
from coop_jax.report import published
from coop_jax.report.sheet import ZERO_SHOT, Cell, Row, Value
from coop_jax.results import Result

log = logging.getLogger(__name__)

DATASETS = {name: row.spelled for name, row in OFFICIAL.items()}
"""The papers' datasets, in their order, as they spell them."""


class Point(NamedTuple):
    """An evaluation, but for the seed."""

    dataset: str
    split: str
    shots: int


@dataclasses.dataclass(frozen=True)
class Series:
    """All results of one hand-crafted prompt or one config of a method, by point and seed."""

    label: str
    results: dict[Point, dict[int, Result]]

    @property
    def prompt(self) -> str | None:
        """The hand-crafted prompt, or one of them; None for a method that learned."""
        return next(iter(next(iter(self.results.values())).values())).prompt

    @property
    def is_zero_shot(self) -> bool:
        """True where nothing was learned."""
        return self.prompt is not None

    @property
    def is_one_template(self) -> bool:
        """True where this is one hand-crafted prompt rather than an ensemble of several."""
        return "{" in (self.prompt or "")

    @property
    def datasets(self) -> set[str]:
        """The datasets that have a result."""
        return {point.dataset for point in self.results}

    @property
    def uses(self) -> tuple[str, ...]:
        """All that one of them learned from besides the labelled training images."""
        rows = (result for seeds in self.results.values() for result in seeds.values())
        return tuple(sorted({use for result in rows for use in result.uses}))

    def accuracies(self, point: Point) -> dict[int, float]:
        """Accuracy in percent by seed."""
        return {seed: one.accuracy for seed, one in self.results.get(point, {}).items()}

    def cell(self, point: Point) -> Cell | None:
        """Statistics over the seeds of one point; None without results."""
        return over_seeds(self.accuracies(point).values())


def over_seeds(values: Iterable[float]) -> Cell | None:
    """Mean and population standard deviation; None of nothing."""
    values = list(values)
    if not values:
        return None
    return Cell(statistics.fmean(values), statistics.pstdev(values), len(values))


def over_datasets(cells: Sequence[Cell | None]) -> Cell | None:
    """The plain mean of the datasets' means; None unless every dataset has a value."""
    present = [cell for cell in cells if cell is not None]
    if len(present) < len(cells):
        return None
    if len(present) == 1:
        return present[0]
    mean = statistics.fmean(cell.mean for cell in present)
    return Cell(mean, None, min(cell.seeds for cell in present))


def row(
    series: Series,
    label: str,
    protocol: str,
    cells: Mapping[Point, Cell | None],
    averages: Mapping[str, Collection[str]],
) -> Row:
    """A row of a table: each cell with where it belongs and the papers' number for the same.

    `averages` are the datasets of each average, by what the points call it.
    """
    values = []
    for point, cell in cells.items():
        averaged = averages.get(point.dataset, ())
        members = [
            result
            for other, seeds in series.results.items()
            if other.dataset in (averaged or [point.dataset]) and other.shots == point.shots
            for result in seeds.values()
        ]
        where = point._asdict()
        number = cell and published.find(members, protocol=protocol, averaged=averaged, **where)
        values.append(cell and Value(**where, cell=cell, published=number))
    said = {"is_zero_shot": series.is_zero_shot, "uses": series.uses}
    return Row(label=label, values=tuple(values), **said)


def by_protocol(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by protocol, in the order in which the protocols first appear.

    Zero-shot CLIP does not depend on the protocol, so its results join every protocol that has
    learned results for the same dataset, split, backbone and number of classes, and stay with their
    own if that has learned results with the backbone.
    """
    results = list(results)
    learned = [result for result in results if result.prompt is None]
    backbones = {(result.protocol, result.backbone) for result in learned}
    hosts: dict[tuple, list[str]] = {}
    for result in learned:
        protocols = hosts.setdefault(_evaluated(result), [])
        if result.protocol not in protocols:
            protocols.append(result.protocol)
    groups: dict[str, list[Result]] = {}
    for result in results:
        own = result.protocol
        chosen = [own]
        if result.prompt is not None:
            chosen = hosts.get(_evaluated(result), [])
            if not chosen or (own not in chosen and (own, result.backbone) in backbones):
                chosen = [*chosen, own]
        for protocol in chosen:
            groups.setdefault(protocol, []).append(result)
    return groups


def group(results: Iterable[Result], *names: str) -> dict[tuple, list[Result]]:
    """Results by the values of these fields, in order of first appearance."""
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(getattr(result, name) for name in names), []).append(result)
    return groups


def series(results: Iterable[Result]) -> list[Series]:
    """Results by label: hand-crafted prompts, then methods, each in order of first appearance.

    If a seed was evaluated more than once the last result counts; the log says so where the two
    differ.
    """
    results = list(results)
    found: dict[tuple[bool, str], Series] = {}
    for result, label in zip(results, _labels(results), strict=True):
        key = (result.prompt is None, label)
        points = found.setdefault(key, Series(label, {})).results
        point = Point(result.dataset, result.split, result.shots)
        seeds = points.setdefault(point, {})
        previous = seeds.get(result.seed, result).accuracy
        if previous != result.accuracy:
            log.warning(
                "%s, %s, %s, %s, seed %d has several results: %r, then %r; the last counts",
                *(result.dataset, result.split, label, plural(result.shots, "shot"), result.seed),
                *(previous, result.accuracy),
            )
        seeds[result.seed] = result
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def one_template_each(found: Sequence[Series]) -> list[Series]:
    """Series that can be compared across datasets: each dataset's first single template as one.

    Other hand-crafted prompts stay if every dataset with a template has them, too.
    """
    zero_shot = [one for one in found if one.is_zero_shot]
    first: dict[str, Series] = {}
    for one in zero_shot:
        if one.is_one_template:
            first |= dict.fromkeys(one.datasets - set(first), one)
    if not first:
        return list(found)
    labels = {one.label for one in first.values()}
    own = ZERO_SHOT + "each dataset's prompt"
    merged = Series(
        labels.pop() if len(labels) == 1 else own,
        {
            point: seeds
            for dataset, one in first.items()
            for point, seeds in one.results.items()
            if point.dataset == dataset
        },
    )
    everywhere = [
        one for one in zero_shot if one.datasets >= set(first) and one.label != merged.label
    ]
    return [merged, *everywhere, *(one for one in found if not one.is_zero_shot)]


def by_shots(found: Sequence[Series]) -> list[tuple[Series, str, int]]:
    """A row per method and number of shots; its label tells the shots where there are several."""
    learned = {point.shots for one in found if not one.is_zero_shot for point in one.results}
    rows = [(one, shots) for one in found for shots in sorted({p.shots for p in one.results})]
    is_told = len(learned) > 1
    return [
        (one, one.label + f", {plural(shots, 'shot')}" * (is_told and shots > 0), shots)
        for one, shots in rows
    ]


def learned_shots(results: Iterable[Result]) -> list[int]:
    """The numbers of shots that methods learned from, ascending."""
    return sorted({result.shots for result in results if result.prompt is None})


def shown_name(subject: str) -> str:
    """A dataset or an average as pictures name it."""
    is_average = subject.startswith("average over ")
    return subject.capitalize() if is_average else DATASETS.get(subject, subject)


def datasets_of(results: Iterable[Result]) -> list[str]:
    """The datasets in the papers' order, then others in order of first appearance."""
    order = list(DATASETS)
    distinct = dict.fromkeys(result.dataset for result in results)
    return sorted(distinct, key=lambda name: order.index(name) if name in order else len(order))


def average_of(datasets: Sequence[str], kind: str = "dataset") -> str:
    """Return the name of the average over datasets in tables."""
    return f"average over {plural(len(datasets), kind)}"


def _evaluated(result: Result) -> tuple:
    return (result.dataset, result.split, result.backbone, result.n_classes)


def origin(split: str) -> str:
    """Return what follows the part in a split's name: "" for CoOp's split, " of TFDS"."""
    return "".join(split.partition(" ")[1:])


def _labels(results: Sequence[Result]) -> list[str]:
    """Return what to call each result.

    Results that words do not tell apart get the number of classes, their config's hash or, on one
    dataset, their data's.
    """
    classes, configs, data = (defaultdict(set) for _ in range(3))
    for result in results:
        place, label = (result.dataset, result.split), _label(result)
        classes[place].add(result.n_classes)
        configs[label].add(_config_hash(result))
        data[place, label].add(_data_hash(result))
    labels = []
    for result in results:
        place, label = (result.dataset, result.split), _label(result)
        text = label
        if len(classes[place]) > 1:
            text += f", {plural(result.n_classes, 'class', 'classes')}"
        if len(configs[label]) > 1:
            text += f" [{_config_hash(result)[:6]}]"
        if len(data[place, label]) > 1:
            text += f" [data {_data_hash(result)[:6]}]"
        labels.append(text)
    return labels


def _config_hash(result: Result) -> str:
    """Digest of what was set; nothing that is set matters to zero-shot CLIP beyond its label."""
    return "" if result.prompt is not None else result.hashes.config


def _data_hash(result: Result) -> str:
    """Digest of the images it learned from and was tested on, whatever the shots and the seed."""
    return result.hashes.data if result.prompt is None else result.hashes.split


def _label(result: Result) -> str:
    dtype = result.config.get("clip", {}).get("dtype", "float32")
    precision = [dtype] * (dtype != "float32")
    if result.prompt is not None:
        prompt = f'"{result.prompt}"' if "{" in result.prompt else result.prompt
        return ZERO_SHOT + ", ".join([prompt, *precision])
    from coop_jax import methods  # brings JAX, which --help can do without

    return ", ".join([methods.label(result.method, result.settings), *precision])
