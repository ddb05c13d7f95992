"""Runs that have collapsed: they guess, or take every image for one class; said once for each."""

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from coop_jax import methods, parallel
from coop_jax.chunks import Batches
from coop_jax.methods import Learned, Stage
from coop_jax.printing import plural
from coop_jax.train import Progress

if TYPE_CHECKING:
    from coop_jax.run import TrainingRun

logger = logging.getLogger(__name__)

GUESSING = "cross_entropy"
"""The term of a loss that is log C where the logits of all C classes are the same."""

CLOSE, EPOCHS, STEPS = 1e-3, 2, 10
"""The relative distance of the loss from log C, the least whole epochs and the least steps."""

CHANCE = 1e-6
"""The probability below which it is no chance that all images are taken for one class."""

STILL, GROWN = 1e-3, 100.0
"""The share of itself that is hardly a move of what is learned; the factor that is growth."""


class Watch:
    """Notices that the loss of a run is that of guessing for whole epochs.

    The steps of the warm-up do not count: a method may begin with equal logits. Of a loss of other
    terms alone nothing is known.
    """

    def __init__(self, run: "TrainingRun", stage: Stage, batches: Batches, done: int):
        self._run, self._first = run, done
        self._guess = math.log(max(len(run.dataset.classes), 2))
        epochs = stage.optimizer.warmup_epochs
        by_epoch = stage.optimizer.schedule_by == "epoch"
        self._warm = epochs * batches.steps_per_epoch if by_epoch else epochs
        self._needed = max(EPOCHS * batches.steps_per_epoch, STEPS)

    def note(self, progress: Progress) -> None:
        """Warn, if it is so, with the steps and why."""
        terms = progress.terms
        losses = terms.get(GUESSING, next(iter(terms.values())) if len(terms) == 1 else None)
        if losses is None or not parallel.is_first():
            return
        for step, loss in enumerate(losses.tolist(), start=progress.done - len(losses)):
            if step < self._warm or abs(loss - self._guess) > CLOSE * self._guess:
                self._first = step + 1
            elif step + 1 - self._first >= self._needed and not self._run.warned:
                self._run.warned = True
                logger.warning(
                    "%s: the loss is that of guessing (log %d = %.3f) from step %d to %d; %s",
                    *(_name(self._run), len(self._run.dataset.classes), self._guess),
                    *(self._first, step, cause(self._run.method, self._run.begun)),
                )


def warn_of_one_class(
    run: "TrainingRun",
    predicted: Int[np.ndarray, " images"],
    labels: Int[np.ndarray, " images"],
    class_names: Sequence[str],
) -> None:
    """Warn where a run that has learned takes all test images for one class, and why."""
    if run.stages and not run.warned and is_one_class(predicted, labels):
        run.warned = True
        what = f"{_name(run)}: after step {max(run.steps - 1, 0)} it"
        say_one_class(what, predicted, class_names, cause(run.method, run.begun))


def say_one_class(
    what: str, predicted: Int[np.ndarray, " images"], class_names: Sequence[str], why: str
) -> None:
    """Log that something takes all images for one class."""
    count, name = plural(len(predicted), "test image"), class_names[int(predicted[0])]
    logger.warning("%s takes all %s for %r; %s", what, count, name, why)


def is_one_class(predicted: Int[np.ndarray, " images"], labels: Int[np.ndarray, " images"]) -> bool:
    """Tell whether all images are taken for one class, and neither labels nor chance explain it."""
    if not len(predicted) or (predicted != predicted[0]).any():
        return False
    share = np.bincount(labels).max() / len(labels)
    return bool(len(labels) * math.log(share) < math.log(CHANCE))


def cause(method: Any, started: dict[str, np.ndarray] | None = None) -> str:
    """Say why a method has collapsed, and what to do.

    Args:
        method: as it is.
        started: what it learned from, by name; None where that is not known.
    """
    now = learned(method)
    size, before = _norm(now), _norm(started or {})
    shapes = [{name: array.shape for name, array in each.items()} for each in (now, started or {})]
    if now and shapes[0] == shapes[1]:
        moved = _norm({name: now[name] - (started or {})[name] for name in now})
        if moved <= STILL * max(before, STILL):
            return f"what is learned has hardly moved ({moved:.2g}): raise the learning rate"
    if size > GROWN * max(before, 1.0):
        return f"what is learned has grown to {size:.2g}: lower the learning rate"
    return (
        "lower the learning rate, or see whether class names, tokenizer and weights belong together"
    )


def learned(method: Any) -> dict[str, np.ndarray]:
    """Return a copy on the host of what a method learns, float64 by name."""
    variables = methods.saved(method)
    return {
        name: np.asarray(variable[...], np.float64)
        for name, variable in variables.items()
        if isinstance(variable, Learned)
    }


def _norm(arrays: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(array).sum()) for array in arrays.values()))


def _name(run: "TrainingRun") -> str:
    name = run.frozen.config["method"]["name"]
    shots = "all images" if run.shots is None else plural(run.shots, "shot")
    return f"{name}, {shots}, seed {run.seed}"
