"""What is taken for what: a confusion matrix, its numbers and its picture."""

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coop_jax.evaluate import macro_f1

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT, _WRONG = "#0072b2", "#d55e00"
_LONGEST_NAME = 28
_NAMED, _COUNTED = 250, 50
"""Up to so many classes the axes name them, and the cells have numbers."""


class OfClass(NamedTuple):
    """How one class fares: accuracy in percent, and the class that most of the others went to."""

    name: str
    images: int
    accuracy: float
    mistaken_for: str | None


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How many images of each class (rows) were taken for which (columns)."""

    class_names: tuple[str, ...]
    counts: Int[np.ndarray, "classes classes"]

    @property
    def accuracy(self) -> float:
        """Of all images, in percent."""
        return float(100 * self.counts.trace() / self.counts.sum())

    @property
    def macro_f1(self) -> float:
        """In percent, as `coop_jax.evaluate.macro_f1` has it."""
        labelled, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        return macro_f1(self.counts.diagonal(), labelled, predicted)

    def classes(self) -> list[OfClass]:
        """Every class that has images."""
        found = []
        for label, row in enumerate(self.counts):
            if images := int(row.sum()):
                wrong = np.where(np.arange(len(row)) == label, 0, row)
                mostly = self.class_names[wrong.argmax()] if wrong.any() else None
                accuracy = float(100 * row[label] / images)
                found.append(OfClass(self.class_names[label], images, accuracy, mostly))
        return found

    def hardest(self, count: int) -> list[OfClass]:
        """The classes of the lowest accuracy, of those that are not all right."""
        faulty = [one for one in self.classes() if one.mistaken_for is not None]
        return sorted(faulty, key=lambda one: one.accuracy)[:count]

    def record(self) -> dict[str, Any]:
        """All numbers as JSON takes them, unrounded; accuracies in percent."""
        return {
            "images": int(self.counts.sum()),
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": [
                {"class": one.name, "images": one.images, "accuracy": one.accuracy}
                for one in self.classes()
            ],
        }


def of(labels: Sequence[int], predicted: Sequence[int], class_names: Sequence[str]) -> Confusion:
    """The confusion matrix of labels and predictions, both as places in `class_names`."""
    counts = np.zeros((len(class_names),) * 2, int)
    np.add.at(counts, (np.asarray(labels), np.asarray(predicted)), 1)
    return Confusion(tuple(class_names), counts)


def png(confusion: Confusion, title: str) -> bytes:
    """The picture as a PNG file's bytes."""
    file = io.BytesIO()
    draw(confusion, title).savefig(file, format="png")
    return file.getvalue()


def draw(confusion: Confusion, title: str) -> "Figure":
    """A cell for each pair of classes: blue where they are the same, orange where it is wrong.

    The more of a row's images a cell has, the stronger its colour. Up to 50 classes the cells have
    their counts; up to 250 the axes name the classes, above they number them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(confusion.counts)
    cell = 0.5 if count <= 12 else 0.27 if count <= _COUNTED else 0.14
    side = max(cell * count, 2.5) if count <= _NAMED else 12.0
    is_large = side > 14
    figure = Figure((side + 2.4, side + 2.6), dpi=130 if is_large else 200, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(_colours(shares), interpolation="nearest")
    if count <= _COUNTED:
        _number(axes, confusion.counts, shares, min(9.0, 30 * cell))
    if count <= _NAMED:
        _name(axes, confusion.class_names, min(9.0, 50 * cell))
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_color("#b0b0b0")
    size = 20 if is_large else 10
    shown = textwrap.fill(title, max(int(14 * side), 44))
    figure.suptitle(shown, fontsize=size + 1, parse_math=False)
    figure.supxlabel("Predicted (blue: right, orange: wrong)", fontsize=size)
    figure.supylabel("Label", fontsize=size)
    return figure


def _colours(shares: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns 3"]:
    """From white to blue on the diagonal and to orange elsewhere; few images are seen as well."""
    from matplotlib.colors import to_rgb

    right = np.eye(len(shares))[..., None]
    full = right * to_rgb(_RIGHT) + (1 - right) * np.asarray(to_rgb(_WRONG))
    strength = np.sqrt(shares)[..., None]
    return 1 - strength + strength * full


def _number(axes: "Axes", counts: np.ndarray, shares: np.ndarray, size: float) -> None:
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > (0.25 if row == column else 0.6) else "#222222"
        shown = str(counts[row, column])
        axes.text(column, row, shown, ha="center", va="center", fontsize=size, color=colour)


def _name(axes: "Axes", names: Sequence[str], size: float) -> None:
    shown = [
        name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names
    ]
    places = range(len(names))
    axes.set_xticks(places, shown, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(places, shown, fontsize=size, parse_math=False)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.5)
