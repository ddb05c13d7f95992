"""ProKeR: kernel ridge regression of what zero-shot CLIP gets wrong (Bendou et al., CVPR 2025)."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Split, Stage
from coop_jax.methods.cache import EXACT

NAME = "ProKeR"
PAPER = "Bendou et al., CVPR 2025"

MOST = 20_000
"""Views of training images at most: a matrix of all pairs is taken apart, in float64."""

logger = logging.getLogger(__name__)

LIMITS = {
    "augmented_passes": (0, 1000),
    "ridge": (1e-9, 1e9),
    "ridges": (1e-9, 1e9),
    "beta_steps": (1, 1000),
    "ridge_steps": (1, 1000),
}


def default_config() -> dict[str, Any]:
    """Return ProKeR's settings, those of the official code for DTD.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        augmented_passes: augmented views of each training image, all of which count; 0 for the
            images under the test transform.
        beta: how sharply the kernel falls with the distance, before a search.
        ridge: how much the regression is held near zero (lambda), before a search.
        search: choose both on validation images.
        betas: the first and the last beta that the search tries.
        beta_steps: how many it tries, equally far apart.
        ridges: the first and the last ridge.
        ridge_steps: how many of them.
    """
    return {
        "templates": (),
        "augmented_passes": 10,
        "beta": 1.5,
        "ridge": 0.05,
        "search": True,
        "betas": (0.1, 10.0),
        "beta_steps": 20,
        "ridges": (0.001, 10.0),
        "ridge_steps": 100,
    }


def recipe() -> dict[str, Any]:
    """Return how the official code crops the training images."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Classifier(NamedTuple):
    """Text features, and how much each key says for each class."""

    texts: Float[Array, "classes embedding"]
    coefficients: Float[Array, "classes keys"]


class Grid(NamedTuple):
    """Validation accuracy in percent at every beta with every ridge."""

    betas: Float[np.ndarray, " betas"]
    ridges: Float[np.ndarray, " ridges"]
    accuracy: Float[np.ndarray, "betas ridges"]


class Method(base.Method):
    """Cosines with the texts, unscaled, plus a kernel regression of what they miss on the keys.

    It serves the classes that it was fitted for, or some of them.

    Attributes:
        keys: `[views and images, embedding]`, none until `prepare`; then normalised.
        coefficients: of all keys for the first class, then for the second, and so on.
        number: of every class among those that it was fitted for.
        beta, ridge: scalars.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        for name in ("betas", "ridges"):
            if len(config[name]) != 2:
                raise InputError(
                    f"{name}: expected the first and the last, got {config[name]!r:.80}; give two"
                    " numbers"
                )
        classes, embedding = len(given.classes), given.clip.config.embedding
        self.classifier = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        self.keys = Kept(jnp.zeros((0, embedding), jnp.float32), varying=True)
        self.coefficients = Kept(jnp.zeros(0, jnp.float32), varying=True)
        self.number = Kept(jnp.arange(classes, dtype=jnp.int32), per_class=True)
        self.beta, self.ridge = (Kept(jnp.float32(config[name])) for name in ("beta", "ridge"))
        self.passes = config["augmented_passes"]
        self.betas = (*config["betas"], config["beta_steps"])
        self.ridges = (*config["ridges"], config["ridge_steps"])
        self.uses = frozenset({"validation"}) if config["search"] else frozenset()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps."""
        return (Stage(epochs=0),)

    def texts(self, clip: CLIP, key: Array | None) -> Classifier:
        """Return text features of hand-crafted prompts, and the coefficients of the classes."""
        number, keys = self.number[...], len(self.keys)
        if not keys:
            return Classifier(self.classifier[...], jnp.zeros((len(number), 0), jnp.float32))
        return Classifier(self.classifier[...], self.coefficients[...].reshape(-1, keys)[number])

    def logits(
        self, clip: CLIP, texts: Classifier, images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the cosines with the texts plus the regression."""
        features, beta = unit(jnp.asarray(images.features)), self.beta[...]
        similarity = jnp.dot(features, self.keys[...].T, precision=EXACT)
        near = jnp.exp(-(beta - beta * similarity))
        missed = jnp.dot(near, texts.coefficients.T, precision=EXACT)
        return jnp.dot(features, texts.texts.T, precision=EXACT) + missed

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Take all views as keys, search beta and ridge, and fit the coefficients, in float64.

        Of equally good pairs the first counts, beta being the outer loop.

        Raises:
            InputError: there are more views than fit.
        """
        views = np.asarray(data.train.images(self.passes).features, np.float32)
        features = views.reshape(-1, views.shape[-1])
        if len(features) > MOST:
            raise InputError(
                f"ProKeR: expected at most {MOST} views of training images, got {len(features)};"
                " lower augmented_passes or the shots"
            )
        keys = unit(jnp.asarray(features))
        labels = np.tile(data.train.labels, len(features) // len(data.train.labels))
        problem = Problem.of(np.asarray(keys), labels, np.asarray(self.classifier[...]))
        if self.uses:
            assert data.val is not None
            found = self.grid(problem, data.val)
            beta, ridge = np.unravel_index(np.argmax(found.accuracy), found.accuracy.shape)
            chosen = found.betas[beta], found.ridges[ridge]
            self.beta[...], self.ridge[...] = map(jnp.float32, chosen)
            logger.info(
                "ProKeR: beta = %.4g, ridge = %.4g, few-shot validation accuracy %.1f %%",
                *chosen,
                found.accuracy[beta, ridge],
            )
        coefficients = problem.fitted(float(self.beta[...]), float(self.ridge[...]))
        self.keys.set_value(keys)
        self.coefficients.set_value(jnp.asarray(coefficients.T.ravel(), jnp.float32))
        return data

    def grid(self, problem: "Problem", split: Split) -> Grid:
        """Return the accuracy on a split at every beta with every ridge of the search."""
        features = np.asarray(unit(jnp.asarray(split.images().features)), np.float64)
        zero_shot, similarity = features @ problem.texts.T, features @ problem.keys.T
        betas, ridges = (
            np.linspace(first, last, steps) for first, last, steps in (self.betas, self.ridges)
        )
        accuracy = np.zeros((len(betas), len(ridges)))
        for row, beta in enumerate(betas):
            values, vectors, missed = problem.apart(beta)
            near = kernel(similarity, beta) @ vectors
            for column, ridge in enumerate(ridges):
                logits = zero_shot + (near / (values / ridge + 1)) @ missed
                accuracy[row, column] = 100 * np.mean(logits.argmax(axis=1) == split.labels)
        return Grid(betas, ridges, accuracy)


def kernel(similarity: Float[np.ndarray, "..."], beta: float) -> Float[np.ndarray, "..."]:
    """Return what images of a cosine are to each other: one where they are the same."""
    return np.exp(-beta * (1 - similarity))


class Problem(NamedTuple):
    """Keys, text features, and what the cosines of both miss of the labels, in float64."""

    keys: Float[np.ndarray, "keys embedding"]
    texts: Float[np.ndarray, "classes embedding"]
    missed: Float[np.ndarray, "keys classes"]

    @classmethod
    def of(cls, keys: np.ndarray, labels: np.ndarray, texts: np.ndarray) -> "Problem":
        """Return the problem of normalised features."""
        keys, texts = (np.asarray(each, np.float64) for each in (keys, texts))
        return cls(keys, texts, np.eye(len(texts))[labels] - keys @ texts.T)

    def apart(self, beta: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the kernel's eigenvalues, its eigenvectors, and what is missed along these."""
        values, vectors = np.linalg.eigh(kernel(self.keys @ self.keys.T, beta))
        return values, vectors, vectors.T @ self.missed

    def fitted(self, beta: float, ridge: float) -> Float[np.ndarray, "keys classes"]:
        """Return the coefficients: the inverse of kernel / ridge + 1, times what is missed."""
        matrix = kernel(self.keys @ self.keys.T, beta) / ridge + np.eye(len(self.keys))
        return np.linalg.solve(matrix, self.missed)
