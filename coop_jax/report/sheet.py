"""One table of numbers, whatever its protocol: for a terminal, as Markdown, as lines of a CSV."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from coop_jax.printing import plural
from coop_jax.report.published import FROM_MEMORY, Published
from coop_jax.report.shown import Shown

ZERO_SHOT = "zero-shot CLIP, "
"""Begins the labels of hand-crafted prompts; tables leave it out, to fit 80 columns."""

MARKS = {"test_images": "†", "unlabeled": "‡", "validation": "§"}
"""Marks behind the labels of what has seen other images than the labelled training images."""

_MISSING = "\N{EN DASH}"
_SEEN = {
    "test_images": "the test images",
    "unlabeled": "unlabelled training images",
    "validation": "labelled validation images",
}


class Recorded(Protocol):
    """A table whose values are lines of a CSV file."""

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per value."""
        ...


@dataclasses.dataclass(frozen=True)
class Cell:
    """Accuracy over seeds: `mean` and population standard `deviation` in percent, unrounded.

    An average over datasets and a harmonic mean of averages have no deviation; their `seeds` are
    the fewest of what they were computed from.
    """

    mean: float
    deviation: float | None
    seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A cell, what was evaluated (`split` may be "H", a harmonic mean), and the papers' number."""

    dataset: str
    split: str
    shots: int
    cell: Cell
    published: Published | None = None

    @property
    def difference(self) -> float | None:
        """Mean minus published, in percentage points."""
        return None if self.published is None else self.cell.mean - self.published.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One hand-crafted prompt or learned method: a value, or None, for each column.

    `uses` is all that it learned from besides the labelled training images (`Result.uses`).
    """

    label: str
    is_zero_shot: bool
    values: tuple[Value | None, ...]
    uses: tuple[str, ...] = ()

    @property
    def marks(self) -> str:
        """The marks of the images that it has seen; each stands for itself in the caption."""
        marks = "".join(mark for use, mark in MARKS.items() if use in self.uses)
        return f" {marks}" if marks else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheet(Shown):
    """A table: `columns` name the values of `rows`, `corner` stands above the rows' labels.

    `subject` is what it is about in a word or two; `note` ends the caption. Where `is_wide`,
    deviations stand below their means. Printing it on a rich console wraps labels, then splits the
    columns into several tables, to fit the width.
    """

    protocol: str
    backbone: str
    subject: str
    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    is_wide: bool = False

    @property
    def caption(self) -> str:
        """The meaning of the numbers: statistics, number of seeds, what marks mean."""
        counts = _seed_counts(self.rows)
        caption = "accuracy in percent"
        if counts == {1}:
            caption += ": one seed"
        elif counts:
            caption += ": mean"
            if any(value.cell.deviation is not None for value in _values(self.rows)):
                caption += " ± population standard deviation"
            caption += f" over {plural(max(counts), 'seed')}"
        if len(counts) > 1:
            caption += ", or (n) where fewer"
        used = {use for row in self.rows for use in row.uses}
        seen = [f"{mark} saw {_SEEN[use]}" for use, mark in MARKS.items() if use in used]
        return "; ".join([caption, *filter(None, [self.note]), *seen, *self._about_published()])

    @property
    def header(self) -> tuple[str, ...]:
        """The first line of the table."""
        return (self.corner, *self.columns)

    def body(self) -> list[list[str]]:
        """The lines below the header; what belongs to a row follows it, indented."""
        return [line for row in self.rows for line in self._lines(row)]

    def records(self) -> Iterator[dict[str, Any]]:
        """A record per value, unrounded, as the columns of the CSV file."""
        for row in self.rows:
            for value in filter(None, row.values):
                yield {
                    "protocol": self.protocol,
                    "dataset": value.dataset,
                    "split": value.split,
                    "backbone": self.backbone,
                    "method": row.label,
                    "uses": ", ".join(row.uses),
                    "shots": value.shots,
                    **dataclasses.asdict(value.cell),
                    "published": value.published and value.published.value,
                    "status": value.published and value.published.status,
                    "difference": value.difference,
                }

    def _lines(self, row: Row) -> Iterator[list[str]]:
        most = max(_seed_counts(self.rows), default=1)
        label = row.label.removeprefix(ZERO_SHOT) + row.marks
        yield [label, *(_text(row, value, most, self.is_wide) for value in row.values)]
        deviations = [_deviation(row, value) for value in row.values]
        if self.is_wide and any(deviations):
            yield ["  ± deviation", *(text.removeprefix("±") for text in deviations)]
        numbers = [value and value.published for value in row.values]
        if any(numbers):
            yield [
                "  published",
                *(f"{number.mark}{number.value:.1f}" if number else "" for number in numbers),
            ]
            yield ["  difference", *map(_difference, row.values)]

    def _about_published(self) -> list[str]:
        numbers = [value.published for value in _values(self.rows) if value.published]
        if not numbers:
            return []
        about = ["published: the papers' numbers"]
        if any(number.status == FROM_MEMORY for number in numbers):
            about[0] += " (~ from memory, unverified)"
        return [*about, *(f"* {note}" for note in dict.fromkeys(n.note for n in numbers) if note)]


def csv_text(sheets: Iterable[Recorded]) -> str:
    """All values of the sheets in long format, a line per value, below the names of the columns."""
    records = [record for sheet in sheets for record in sheet.records()]
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _values(rows: Iterable[Row]) -> list[Value]:
    return [value for row in rows for value in row.values if value is not None]


def _seed_counts(rows: Iterable[Row]) -> set[int]:
    return {value.cell.seeds for value in _values(row for row in rows if not row.is_zero_shot)}


def _text(row: Row, value: Value | None, most_seeds: int, is_wide: bool) -> str:
    if value is None:
        return _MISSING
    text = f"{value.cell.mean:.1f}" + ("" if is_wide else _deviation(row, value))
    if value.cell.seeds < most_seeds and not row.is_zero_shot:
        text += f" ({value.cell.seeds})"
    return text


def _deviation(row: Row, value: Value | None) -> str:
    """The deviation; "" where there is none, and where zero-shot CLIP was the same every time."""
    deviation = value.cell.deviation if value else None
    if value is None or deviation is None or value.cell.seeds < 2:
        return ""
    return "" if row.is_zero_shot and deviation == 0 else f"±{deviation:.1f}"


def _difference(value: Value | None) -> str:
    if value is None or value.difference is None:
        return ""
    return f"{round(value.difference, 1) + 0.0:+.1f}"
