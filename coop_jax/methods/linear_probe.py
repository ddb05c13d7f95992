"""Linear-probe CLIP: logistic regression on image features (coop_protocol section 10)."""

import functools
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base
from coop_jax.methods.base import Data, Given, Images, Kept, Stage

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

NAME = "linear-probe CLIP"
PAPER = "Radford et al., ICML 2021"

logger = logging.getLogger(__name__)

ITERATIONS = 1000
"""At most as many steps of L-BFGS for each value of C."""

STEPS = 8
"""Halvings of the interval in which C is sought."""

NEVER = -1e30
"""The bias of a class without training images: finite, and less than any other logit."""


def default_config() -> dict[str, Any]:
    """Return nothing to set: C is chosen on the validation images."""
    return {}


def recipe() -> dict[str, Any]:
    """Return how its official code draws the images."""
    return {"sampling": "linear_probe"}


class Method(base.Method):
    """A linear classifier of unnormalised image features, zero until `prepare` sets it.

    `weight` is `[classes, embedding]` and `bias` `[classes]`, both float32. They belong to the
    class list they were fitted for.
    """

    uses = frozenset({"validation"})

    def __init__(self, given: Given, config: dict[str, Any]):
        del config
        shape = (len(given.classes), given.clip.config.embedding)
        self.weight = Kept(jnp.zeros(shape, jnp.float32), per_class=True)
        self.bias = Kept(jnp.zeros(shape[0], jnp.float32), per_class=True)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps."""
        return (Stage(epochs=0),)

    def logits(self, clip: CLIP, texts: tuple[()], images: Images) -> Float[Array, "batch classes"]:
        """Return what is affine in the unnormalised features, float32."""
        features = jnp.asarray(images.features, jnp.float32)
        product = jnp.dot(features, self.weight[...].T, precision=precision(jnp.float32))
        return product + self.bias[...][None]

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Set weight and bias to the logistic regression with the best C found.

        L2 penalty and L-BFGS in float64, on features as they are under the test transform. A class
        without training images is never predicted.

        Raises:
            InputError: there are no validation images, or training images of one class only.
        """
        assert data.val is not None
        labels, val_labels = data.train.labels, data.val.labels
        if not len(val_labels):
            raise InputError(
                "linear probe: expected validation images, which the search for C needs, got none;"
                " choose a dataset with a validation split"
            )
        present = np.unique(labels)
        if len(present) < 2:
            raise InputError(
                f"linear probe: expected training images of at least 2 classes, got {len(present)};"
                " add images of other classes"
            )
        features, val_features = (
            np.asarray(split.images().features, np.float64) for split in (data.train, data.val)
        )
        unfinished = []

        @functools.cache
        def fitted(exponent: float) -> "LogisticRegression":
            classifier, converged = _regress(features, labels, 10.0**exponent)
            if not converged:
                unfinished.append(exponent)
            return classifier

        def accuracy(exponent: float) -> float:
            return float(np.mean(fitted(exponent).predict(val_features) == val_labels))

        chosen = search(accuracy)
        self._set(fitted(chosen))
        if unfinished:
            logger.warning(
                "linear probe: L-BFGS did not converge for %d of %d values of C: as in the official"
                " code, it is used as it is",
                len(unfinished),
                fitted.cache_info().currsize,
            )
        logger.info(
            "linear probe: C = %.4g, few-shot validation accuracy %.1f %%",
            10.0**chosen,
            100 * accuracy(chosen),
        )
        return data

    def _set(self, classifier: "LogisticRegression") -> None:
        """Take over the coefficients; two classes share one row, which is split between them."""
        weight, bias = classifier.coef_, classifier.intercept_
        if len(classifier.classes_) == 2:
            weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
        all_weights = np.zeros(self.weight.shape, np.float32)
        all_biases = np.full(self.bias.shape, NEVER, np.float32)
        all_weights[classifier.classes_] = weight
        all_biases[classifier.classes_] = bias
        self.weight[...], self.bias[...] = jnp.asarray(all_weights), jnp.asarray(all_biases)


def search(accuracy: Callable[[float], float]) -> float:
    """The C, as an exponent of ten, at which the official search ends.

    First the best of 6, 4, ..., -6, the first among equals. Then an interval of one on both sides
    of it is halved eight times, towards the end with the higher accuracy (the left if equal); the
    end chosen last is the result.

    Args:
        accuracy: validation accuracy of the regression with C = 10 ** exponent.
    """
    peak = float(max(range(6, -7, -2), key=accuracy))
    left, right, chosen = peak - 1, peak + 1, peak
    for _ in range(STEPS):
        middle = (left + right) / 2
        if accuracy(left) < accuracy(right):
            chosen, left = right, middle
        else:
            chosen, right = left, middle
    return chosen


def _regress(
    features: Float[np.ndarray, "train embedding"], labels: Int[np.ndarray, " train"], c: float
) -> tuple["LogisticRegression", bool]:
    """The fitted classifier, and whether it converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(C=c, solver="lbfgs", max_iter=ITERATIONS)
        classifier.fit(features, labels)
    others = [one for one in caught if not issubclass(one.category, ConvergenceWarning)]
    for one in others:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return classifier, len(others) == len(caught)
