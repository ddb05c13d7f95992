"""Zero-shot CLIP with a cache of few-shot features beside it: what Tip-Adapters and APE share."""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Method, Split

EXACT = precision(jnp.float32)

LOWEST = 0.1
"""The alpha and the beta that a search begins with."""

AT_ONCE = 2**24
"""Similarities of validation images and keys that are in memory at a time."""

logger = logging.getLogger(__name__)

LIMITS = dict.fromkeys(("augmented_passes", "alpha_steps", "beta_steps"), (0, 1000))


def default_config() -> dict[str, Any]:
    """Return the settings of both methods, those of the official code for ImageNet.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        augmented_passes: augmented views of each training image whose mean is its key.
        alpha: weight of the cache before a search.
        beta: how sharply its weights fall with the distance, before a search.
        search: choose alpha and beta on validation images.
        alpha_steps, beta_steps: values of alpha and beta that the search tries.
        alpha_scale, beta_scale: where these end, themselves excluded; they begin at 0.1.
    """
    return {
        "templates": (),
        "augmented_passes": 10,
        "alpha": 1.17,
        "beta": 1.0,
        "search": True,
        "alpha_steps": 20,
        "alpha_scale": 3.0,
        "beta_steps": 200,
        "beta_scale": 7.0,
    }


class Grid(NamedTuple):
    """Validation accuracy in percent, `[betas, alphas]`, at every beta with every alpha."""

    betas: Float[np.ndarray, " betas"]
    alphas: Float[np.ndarray, " alphas"]
    accuracy: Float[np.ndarray, "betas alphas"]


class Cached(Method):
    """Zero-shot logits plus alpha exp(-beta (1 - similarity)), summed over each class's keys.

    A method may say what the first logits are (`zero_shot`), how similar images are to keys
    (`similarity`) and how much each key counts (`weights`).

    Attributes:
        keys: `[images, embedding]`, none until `build`; then normalised.
        labels: the class of each key, as `number` counts classes.
        number: of every class among those that the keys are of.
        alpha, beta: scalars.
    """

    def __init__(self, given: Given, config: dict[str, Any], kind: type[nnx.Variable]):
        """Make an empty cache, with which logits are zero-shot CLIP's.

        Args:
            given: what the method is made of.
            config: as `default_config`.
            kind: of variable that the keys are.

        Raises:
            InputError: a setting is out of its range.
        """
        for name in ("augmented_passes", "alpha_steps", "beta_steps"):
            if config[name] < 1:
                raise InputError(f"{name}: expected at least 1, got {config[name]}; raise it")
        for name in ("alpha_scale", "beta_scale"):
            if config[name] <= LOWEST:
                raise InputError(
                    f"{name}: expected more than {LOWEST}, got {config[name]}; raise it"
                )
        classes, embedding = len(given.classes), given.clip.config.embedding
        self.classifier = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        self.keys = kind(jnp.zeros((0, embedding), jnp.float32), varying=True)
        self.labels = Kept(jnp.zeros(0, jnp.int32), varying=True)
        self.number = Kept(jnp.arange(classes, dtype=jnp.int32), per_class=True)
        self.alpha, self.beta = (Kept(jnp.float32(config[name])) for name in ("alpha", "beta"))
        self.passes = config["augmented_passes"]
        self.alphas, self.betas = (_values(config, name) for name in ("alpha", "beta"))
        self.uses = frozenset({"validation"}) if config["search"] else frozenset()

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.classifier[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return zero-shot logits plus alpha times what the cache says."""
        features = jnp.asarray(images.features)
        beta, values = self.beta[...], self.own() * self.weights()[:, None]
        near = jnp.exp(-(beta - beta * self.similarity(features)))
        cached = jnp.dot(near, values, precision=EXACT)
        return self.zero_shot(clip, features, texts) + self.alpha[...] * cached

    def zero_shot(
        self,
        clip: CLIP,
        features: Float[Array, "images embedding"],
        texts: Float[Array, "classes embedding"],
    ) -> Float[Array, "images classes"]:
        """Return the logits without the cache."""
        return clip.logits(features, texts)

    def similarity(self, features: Float[Array, "images embedding"]) -> Float[Array, "images keys"]:
        """Return the cosines of images with the keys."""
        return jnp.dot(unit(features), self.keys[...].T, precision=EXACT)

    def weights(self) -> Float[Array, " keys"]:
        """Return how much each key counts."""
        return jnp.ones(len(self.keys), jnp.float32)

    def own(self) -> Float[Array, "keys classes"]:
        """Return one where a key is of a class, else zero."""
        return (self.labels[...][:, None] == self.number[...]).astype(jnp.float32)

    def build(self, data: Data) -> None:
        """Make a key of every training image: its mean feature over augmented views, normalised."""
        views = np.asarray(data.train.images(self.passes).features, np.float32)
        self.keys.set_value(unit(jnp.asarray(views.mean(axis=0))))
        self.labels.set_value(jnp.asarray(data.train.labels, jnp.int32))

    def search(self, clip: CLIP, data: Data) -> None:
        """Set alpha and beta to the best on the validation images, the first among equals.

        Beta is the outer loop. Without the setting `search` they stay as they are.
        """
        if not self.uses:
            return
        assert data.val is not None
        grid = self.grid(clip, data.val)
        beta, alpha = np.unravel_index(np.argmax(grid.accuracy), grid.accuracy.shape)
        self.alpha[...] = jnp.float32(grid.alphas[alpha])
        self.beta[...] = jnp.float32(grid.betas[beta])
        logger.info(
            "cache: alpha = %.4g, beta = %.4g, few-shot validation accuracy %.1f %%",
            grid.alphas[alpha],
            grid.betas[beta],
            grid.accuracy[beta, alpha],
        )

    def grid(self, clip: CLIP, split: Split) -> Grid:
        """Return the accuracy on a split at every beta with every alpha of the search.

        Of the classes that the cache was built for; memory does not grow with the images.
        """
        betas, alphas = np.asarray(self.betas), np.asarray(self.alphas)
        slots = by_class(np.asarray(self.labels[...]), len(self.number))
        images, labels = split.images(), np.asarray(split.labels)
        texts, weights = self.texts(clip, None), self.weights()
        at_once = max(AT_ONCE // slots.size, 1)
        right = np.zeros((len(betas), len(alphas)), np.int64)
        for start in range(0, len(labels), at_once):
            some = slice(start, start + at_once)
            features = jnp.asarray(images.features[some])
            right += np.asarray(
                count_right(
                    self.zero_shot(clip, features, texts),
                    self.similarity(features),
                    slots,
                    weights,
                    labels[some],
                    jnp.asarray(betas, jnp.float32),
                    jnp.asarray(alphas, jnp.float32),
                )
            )
        return Grid(betas, alphas, 100 * right / len(labels))


def _values(config: dict[str, Any], name: str) -> tuple[float, ...]:
    """Return the values that a search tries."""
    steps, end = config[f"{name}_steps"], config[f"{name}_scale"]
    return tuple(step * (end - LOWEST) / steps + LOWEST for step in range(steps))


def by_class(
    labels: Int[np.ndarray, " keys"], classes: int
) -> Int[np.ndarray, "most_of_a_class classes"]:
    """Return the places of each class's keys; -1 where it has fewer than another."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=classes)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((max(counts.max(), 1), classes), -1)
    slots[rank, labels[order]] = order
    return slots


@jax.jit
def count_right(
    zero_shot: Float[Array, "images classes"],
    similarity: Float[Array, "images keys"],
    slots: Int[Array, "most_of_a_class classes"],
    weights: Float[Array, " keys"],
    labels: Int[Array, " images"],
    betas: Float[Array, " betas"],
    alphas: Float[Array, " alphas"],
) -> Int[Array, "betas alphas"]:
    """Return how many images are predicted rightly at every beta with every alpha.

    Ties go to the lowest label. The keys of a class are summed without the product with one-hot
    values, which would take as many times longer as there are classes.
    """
    similarity = jnp.where(slots[:, None] < 0, -jnp.inf, jnp.moveaxis(similarity[:, slots], 0, 1))
    weight = weights[slots][:, None]
    label, number = labels[:, None], jnp.arange(zero_shot.shape[1])

    def at_beta(beta: Array) -> Array:
        cached = (weight * jnp.exp(-(beta - beta * similarity))).sum(axis=0)

        def at_alpha(alpha: Array) -> Array:
            # Computed once: a sum that is fused into each use may be rounded otherwise in each.
            logits = jax.lax.optimization_barrier(zero_shot + alpha * cached)
            own = jnp.take_along_axis(logits, label, axis=1)
            is_before = (logits > own) | ((logits == own) & (number < label))
            return jnp.sum(~is_before.any(axis=1))

        return jax.lax.map(at_alpha, alphas)

    return jax.lax.map(at_beta, betas)
