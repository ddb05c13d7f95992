"""Intervals and tests over seeds and test images, both of which were drawn.

Whether image i is classified rightly with seed s is a mean, an effect of the seed, one of the image
and a rest: crossed random effects, as in studies of several readers and several cases (Dorfman,
Berbaum and Metz, 1992; Hillis, 2007). Seeds alone would say nothing of other test images, images
alone nothing of other seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Real
from scipy import special

TEST = "t-test with random effects of seeds and images (Satterthwaite)"

EQUAL = 1e-9
"""Mean squares that differ by less differ by rounding."""

LEVEL = 0.05
"""Differences are significant below it; intervals cover the rest."""


class Estimate(NamedTuple):
    """A mean, its standard error, and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half the length of the 95 % interval."""
        return float(self.error * special.stdtrit(self.freedom, 1 - LEVEL / 2))

    @property
    def p(self) -> float:
        """The probability of a mean at least so far from 0 if the true one is 0; two-sided."""
        if self.error == 0:
            return float(self.mean == 0)
        return float(2 * special.stdtr(self.freedom, -abs(self.mean) / self.error))


def estimate(scores: Real[np.ndarray, "seeds images"]) -> Estimate:
    """Return the mean over seeds and images, as one of all seeds and of all images like these.

    One seed, or none that differs more than images do, leaves the paired t-test over images.

    Args:
        scores: of every image with every seed; at least two images.
    """
    scores = np.asarray(scores, np.float64)
    seeds, images = scores.shape
    mean, by_seed, by_image = scores.mean(), scores.mean(axis=1), scores.mean(axis=0)
    of_image = seeds * np.sum((by_image - mean) ** 2) / (images - 1)
    squares, terms = of_image, [of_image**2 / (images - 1)]
    if seeds > 1:
        of_seed = images * np.sum((by_seed - mean) ** 2) / (seeds - 1)
        left = (seeds - 1) * (images - 1)
        rest = np.sum((scores - by_seed[:, None] - by_image + mean) ** 2) / left
        squares = max(of_image, rest)
        terms = [squares**2 / (images - 1)]
        if of_seed > rest * (1 + EQUAL):
            squares += of_seed - rest
            terms += [of_seed**2 / (seeds - 1), rest**2 / left]
    freedom = squares**2 / sum(terms) if squares else 1.0
    return Estimate(float(mean), float(np.sqrt(squares / scores.size)), float(freedom))


def are_significant(p: Sequence[float]) -> list[bool]:
    """Tell which of several differences are significant (Benjamini and Hochberg, 1995)."""
    from scipy import stats  # takes two seconds

    return list(stats.false_discovery_control(p) < LEVEL) if len(p) else []
