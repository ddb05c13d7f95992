"""The channels of features that tell classes apart (APE, Zhu et al., ICCV 2023)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Scores(NamedTuple):
    """Scores of each channel: the likeness of different classes, and what it is chosen by."""

    similarity: Float[np.ndarray, " channels"]
    criterion: Float[np.ndarray, " channels"]


def scores(
    texts: Float[np.ndarray, "classes channels"],
    features: Float[np.ndarray, "images channels"],
    labels: Int[np.ndarray, " images"],
    weights: tuple[float, float],
) -> Scores:
    """Return scores of all channels, in float64.

    The criterion is the variance of the texts over the classes, minus the mean product of two
    samples of different classes; texts and images are samples alike. Of a single class there are no
    such pairs and no variance: both are zero.

    Args:
        texts: normalised text features.
        features: normalised image features; none where the texts alone count.
        labels: of the images.
        weights: of the mean product, and of the variance.
    """
    texts, classes = np.asarray(texts, np.float64), len(texts)
    totals = texts.copy()
    np.add.at(totals, labels, np.asarray(features, np.float64))
    counts = 1 + np.bincount(labels, minlength=classes)
    pairs = counts.sum() ** 2 - np.sum(counts**2)
    products = totals.sum(axis=0) ** 2 - np.sum(totals**2, axis=0)
    similarity = products / max(pairs, 1)
    variance = np.sum((texts - texts.mean(axis=0)) ** 2, axis=0) / max(classes - 1, 1)
    return Scores(similarity, weights[1] * variance - weights[0] * similarity)


def best(criterion: Float[np.ndarray, " channels"], count: int) -> Int[np.ndarray, " chosen"]:
    """Return so many channels, the highest first, the first among equals; all if there are less."""
    return np.argsort(-criterion, kind="stable")[:count].astype(np.int32)
