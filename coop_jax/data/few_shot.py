"""A few images per class of a dataset, as the protocols train on them."""

import logging
from dataclasses import replace

import numpy as np

from coop_jax.data import sampling
from coop_jax.data.examples import Dataset
from coop_jax.data.listing import some
from coop_jax.errors import InputError
from coop_jax.printing import plural

logger = logging.getLogger(__name__)


def draw(dataset: Dataset, rule: str, shots: int | None, seed: int, part: str = "all") -> Dataset:
    """A dataset with a few images per class, and only the part's classes that have any.

    The images are drawn from all classes before the part is taken (protocol 2.2).

    Args:
        dataset: to draw from.
        rule: a key of `sampling.RULES`.
        shots: training images per class; None for all images.
        seed: of the draw.
        part: as `Dataset.half` takes it.

    Raises:
        InputError: the dataset has no training images, or none of the part.
    """
    if not len(dataset.train):
        raise InputError(
            f"expected a dataset with training images, got {dataset.name}, which has test images"
            " alone; train on another (and name it in config.targets)"
        )
    if shots is not None:
        choose = sampling.RULES[rule]
        train, val = choose(dataset.train.labels, dataset.val.labels, shots, seed)
        dataset = replace(dataset, train=dataset.train.subset(train), val=dataset.val.subset(val))
    return dataset.half(part)


def warn_about_short_classes(few: Dataset, shots: int, *, validation: bool = False) -> None:
    """Say which classes have fewer images than wanted; they are taken whole.

    `validation` says whether the validation images are used, 4 at most.
    """
    wanted = [("training", few.train, shots)]
    if validation:
        wanted.append(("validation", few.val, min(shots, 4)))
    names = few.classes.names
    for kind, examples, count in wanted:
        images = np.bincount(examples.labels, minlength=len(names)).tolist()
        short = [f"{name!r} {n}" for name, n in zip(names, images, strict=True) if n < count]
        if short:
            logger.warning(
                "%d of %s have fewer %s images than %s: all of them are used (%s)",
                len(short),
                plural(len(names), "class", "classes"),
                kind,
                plural(count, "shot") if kind == "training" else count,
                some(short),
            )
