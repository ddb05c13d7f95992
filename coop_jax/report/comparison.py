"""The comparison of many methods on one dataset: what each learns, uses, costs and gains."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from coop_jax.printing import plural
from coop_jax.report import paired, summary
from coop_jax.report.sheet import ZERO_SHOT
from coop_jax.report.shown import Shown
from coop_jax.report.summary import Point, Series
from coop_jax.results import Result

FIRST_PROMPT, PROBE = REFERENCES = "zero-shot CLIP", "the linear probe"
"""Others that methods are compared with: the first hand-crafted prompt, the run's own probe."""

MISSING = "\N{EN DASH}"
BETTER, WORSE, EVEN = "+", "\N{MINUS SIGN}", "\N{MIDDLE DOT}"


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean difference to a reference in percentage points, its p, and whether it is significant."""

    mean: float
    p: float
    seeds: int
    is_significant: bool = False

    @property
    def mark(self) -> str:
        """Better, worse or neither."""
        return EVEN if not self.is_significant else BETTER if self.mean > 0 else WORSE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """Accuracy in percent at a number of shots, its 95 % interval, and differences by reference."""

    shots: int
    mean: float
    half_width: float
    seeds: int
    images: int
    differences: dict[str, Difference]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A method: what it learns, how many numbers by gradients, what it uses, seconds of a run.

    `reference` is what it is called where others are compared with it.
    """

    label: str
    is_zero_shot: bool
    reference: str | None
    learns: str
    parameters: int
    kept: int
    uses: tuple[str, ...]
    seconds: float | None
    max_steps: int
    cells: dict[int, Cell]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Shown):
    """A table with a row for each method, the best on average first, behind hand-crafted prompts.

    Attributes:
        first: one of the results.
        title: of the table.
        shots: the numbers of shots, ascending.
        references: what differences are to, in the order of their marks.
        rows: of hand-crafted prompts, then of methods.
    """

    first: Result
    title: str
    shots: tuple[int, ...]
    references: tuple[str, ...]
    rows: tuple[Row, ...]
    is_wide = True

    @property
    def caption(self) -> str:
        """The meaning of numbers and marks."""
        parts = [
            f"accuracy in percent over {plural(self._seeds, 'seed')}, or (n) where fewer,"
            " \N{PLUS-MINUS SIGN} 95 % interval",
            *self._cut(),
            "parameters: numbers that gradients move",
            "seconds: of a run, with those beside it",
        ]
        if self.references:
            parts.append(
                f"behind accuracies, against {', then '.join(self.references)}: {BETTER} better,"
                f" {WORSE} worse, {EVEN} no significant difference ({paired.TEST}; false discovery"
                f" rate of the table {paired.LEVEL:.0%}, Benjamini-Hochberg)"
            )
        return "; ".join(parts)

    @property
    def header(self) -> tuple[str, ...]:
        """The first line; numbers are those of shots."""
        numbers = [plural(number, "shot") for number in self.shots]
        return ("method", *numbers, "uses", "parameters", "seconds", "learns")

    def body(self) -> list[list[str]]:
        """A line for each row."""
        return [
            [
                row.label.removeprefix(ZERO_SHOT),
                *(self._text(row, row.cells.get(number)) for number in self.shots),
                ", ".join(row.uses).replace("_", " ") or MISSING,
                f"{row.parameters:,}",
                MISSING if row.seconds is None else f"{row.seconds:.1f}",
                row.learns or MISSING,
            ]
            for row in self.rows
        ]

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per accuracy, unrounded, as the columns of the CSV file."""
        for row in self.rows:
            for cell in row.cells.values():
                found = {
                    "protocol": self.first.protocol,
                    "dataset": self.first.dataset,
                    "split": self.first.split,
                    "backbone": self.first.backbone,
                    "method": row.label,
                    "learns": row.learns,
                    "parameters": row.parameters,
                    "kept": row.kept,
                    "uses": ", ".join(row.uses),
                    "seconds": row.seconds,
                    "max_steps": row.max_steps,
                    "shots": cell.shots,
                    "mean": cell.mean,
                    "half_width": cell.half_width,
                    "seeds": cell.seeds,
                    "images": cell.images,
                }
                for name in REFERENCES:
                    difference = cell.differences.get(name)
                    found |= {
                        f"difference to {name}": difference and difference.mean,
                        f"p against {name}": difference and difference.p,
                        f"seeds against {name}": difference and difference.seeds,
                        f"significant against {name}": difference and difference.is_significant,
                    }
                yield found | {"test": paired.TEST}

    def lettered(self, lettering: Callable[[str], str]) -> "Comparison":
        """Return it with its words as a picture can show them."""
        rows = [dataclasses.replace(row, label=lettering(row.label)) for row in self.rows]
        return dataclasses.replace(self, title=lettering(self.title), rows=tuple(rows))

    def _text(self, row: Row, cell: Cell | None) -> str:
        if cell is None:
            return MISSING
        marks = "".join(
            cell.differences[name].mark if name in cell.differences else MISSING
            for name in self.references
        )
        fewer = f" ({cell.seeds})" * (cell.seeds < self._seeds and not row.is_zero_shot)
        text = f"{cell.mean:.1f}\N{PLUS-MINUS SIGN}{cell.half_width:.1f}{fewer}"
        return f"{text} {marks}" if cell.differences else text

    def _cut(self) -> list[str]:
        """Say which methods' training was cut short."""
        cut = {row.max_steps for row in self.rows if not row.is_zero_shot}
        if cut <= {0}:
            return []
        steps = " or ".join(
            f"at most {most} steps" if most else "as published" for most in sorted(cut)
        )
        return [f"stages of training: {steps}"]

    @property
    def _seeds(self) -> int:
        return max(cell.seeds for row in self.rows for cell in row.cells.values())


def compare(results: Sequence[Result]) -> list[Comparison]:
    """Return a comparison for each dataset, split, backbone and number of classes."""
    fields = ("dataset", "split", "backbone", "n_classes")
    found = []
    for chosen in summary.by_protocol(results).values():
        found += [_compare(members) for members in summary.group(chosen, *fields).values()]
    return found


def _compare(results: Sequence[Result]) -> Comparison:
    first, found = results[0], summary.series(results)
    prompts = [one for one in found if one.is_zero_shot]
    learned = sorted((one for one in found if not one.is_zero_shot), key=_mean, reverse=True)
    references = {}
    if prompts:
        first_of = [one for one in prompts if one.is_one_template] or prompts
        references[FIRST_PROMPT] = first_of[0]
    for one in found:
        if _any(one).method == "linear_probe":
            references.setdefault(PROBE, one)
    rows = [_row(one, references) for one in (*prompts, *learned)]
    shots = sorted({number for row in rows for number in row.cells})
    classes, images = (plural(n, *w) for n, w in _sizes(first))
    return Comparison(
        first=first,
        title=f"{first.dataset}, {first.backbone}: {first.split} split, {classes}, {images}",
        shots=tuple(shots),
        references=tuple(references),
        rows=tuple(_judged(rows)),
    )


def _sizes(result: Result) -> list[tuple[int, tuple[str, ...]]]:
    return [(result.n_classes, ("class", "classes")), (result.n_examples, ("test image",))]


def _any(one: Series) -> Result:
    return next(iter(next(iter(one.results.values())).values()))


def _mean(one: Series) -> float:
    """Return the mean accuracy over seeds, then shots."""
    return float(np.mean([np.mean([*one.accuracies(point).values()]) for point in one.results]))


def _row(one: Series, references: dict[str, Series]) -> Row:
    some = [result for seeds in one.results.values() for result in seeds.values()]
    seconds = [result.seconds for result in some if result.seconds is not None]
    largest = max(some, key=lambda result: result.shots)
    moved = dict.fromkeys(name.split(".")[0] for name in largest.learned)
    set_otherwise = dict.fromkeys(name.split(".")[0] for name in largest.kept)
    learns = ", ".join(moved) or ", ".join(set_otherwise)
    return Row(
        label=one.label,
        is_zero_shot=one.is_zero_shot,
        reference=next((name for name, other in references.items() if other is one), None),
        learns=f"{learns} (no gradient)" if set_otherwise and not moved else learns,
        parameters=largest.parameters,
        kept=sum(int(np.prod(shape)) for shape in largest.kept.values()),
        uses=one.uses,
        seconds=float(np.mean(seconds)) if seconds else None,
        max_steps=largest.config.get("max_steps", 0),
        cells={point.shots: _cell(one, point, references) for point in sorted(one.results)},
    )


def _cell(one: Series, point: Point, references: dict[str, Series]) -> Cell:
    rows = one.results[point]
    right = np.stack([rows[seed].is_right for seed in sorted(rows)])
    found = paired.estimate(100 * right)
    differences = {
        name: difference
        for name, reference in references.items()
        if reference is not one and (difference := _difference(rows, point, reference))
    }
    return Cell(
        shots=point.shots,
        mean=found.mean,
        half_width=found.half_width,
        seeds=len(rows),
        images=right.shape[1],
        differences=differences,
    )


def _difference(rows: dict[int, Result], point: Point, reference: Series) -> Difference | None:
    """Return the difference to a reference: on the same shots and seeds, or to one prompt."""
    if reference.is_zero_shot:
        (only,) = reference.results[point._replace(shots=0)].values()
        theirs = dict.fromkeys(rows, only)
    else:
        theirs = reference.results.get(point, {})
    seeds = [seed for seed in sorted(rows) if seed in theirs]
    same = [seed for seed in seeds if rows[seed].hashes.data == theirs[seed].hashes.data]
    if not same:
        return None
    gained = [rows[seed].is_right.astype(int) - theirs[seed].is_right for seed in same]
    found = paired.estimate(100 * np.stack(gained))
    return Difference(found.mean, found.p, len(same))


def _judged(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows with what is significant of all their differences."""
    cells = [cell for row in rows for cell in row.cells.values()]
    verdicts = iter(paired.are_significant([d.p for c in cells for d in c.differences.values()]))
    for row in rows:
        judged = {
            number: dataclasses.replace(
                cell,
                differences={
                    name: dataclasses.replace(each, is_significant=bool(next(verdicts)))
                    for name, each in cell.differences.items()
                },
            )
            for number, cell in row.cells.items()
        }
        yield dataclasses.replace(row, cells=judged)
