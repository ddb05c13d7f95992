"""The confusion matrix, its numbers and its picture."""

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coop_jax.evaluate import macro_f1

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT, _WRONG = "#0072b2", "#d55e00"
_LINE = 30
"""Columns of a line that a name has."""

_NAMED, _COUNTED, _ROOMY = 250, 50, 12
"""Up to so many classes the axes name them, the cells have numbers, a name has several lines."""


class OfClass(NamedTuple):
    """The accuracy of a class in percent, and the class that most of the others went to."""

    name: str
    images: int
    accuracy: float
    mistaken_for: str | None


@dataclasses.dataclass(frozen=True)
class Confusion:
    """The number of images of each class (rows) that were taken for each (columns)."""

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
    draw(confusion, title).savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)
    return file.getvalue()


def draw(confusion: Confusion, title: str) -> "Figure":
    """A cell for each pair of classes: blue where they are the same, orange where it is wrong.

    The more of a row's images a cell has, the stronger its colour. Up to 50 classes the cells have
    their counts; up to 250 the axes name the classes, above they number them from 0. A name is a
    number with a "#" where no font has its letters: the log says which. The cells fill the figure,
    and the words stand around it, so save it with bbox_inches="tight".
    """
    from matplotlib.figure import Figure

    from coop_jax import fonts

    count = len(confusion.counts)
    cell = 0.5 if count <= _ROOMY else 0.27 if count <= _COUNTED else 0.14
    side = max(cell * count, 3.2) if count <= _NAMED else 12.0
    size = 20 if side > 14 else 10
    figure = Figure((side, side), dpi=130 if side > 14 else 200)
    axes, lettering = figure.add_axes((0, 0, 1, 1)), fonts.Lettering()
    shares = confusion.counts / np.maximum(confusion.counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(_colours(shares), interpolation="nearest")
    if count <= _COUNTED:
        _number(axes, confusion.counts, shares, min(9.0, 30 * cell))
    if count <= _NAMED:
        names = _fitted([lettering(name) for name in confusion.class_names])
        _name(axes, names, min(9.0, 50 * cell))
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#b0b0b0")
    shown = fonts.wrapped(lettering(title), int(120 * side / size))
    axes.set_title(shown, fontsize=size + 1, pad=size)
    axes.set_xlabel("Predicted (blue: right, orange: wrong)", fontsize=size, labelpad=size)
    axes.set_ylabel("Label", fontsize=size, labelpad=size)
    lettering.apply(figure)
    return figure


def _fitted(names: Sequence[str]) -> list[str]:
    """Names in the room that so many leave: as they are, in lines, or without their middles.

    Different names stay different: they have more room if it takes that.
    """
    from coop_jax import fonts

    lines, width = (3 if len(names) <= _ROOMY else 1), _LINE
    shown = list(names)
    for width in range(_LINE, 4 * _LINE, 7):
        shown = [fonts.shortened(name, lines * width - 2 * lines) for name in names]
        if len(set(shown)) == len(set(names)):
            break
    return [fonts.wrapped(name, width) if lines > 1 else name for name in shown]


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
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, multialignment="right", fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e4e4e4", linewidth=0.5)
