"""APE: a cache on the channels that tell classes apart, without training (ICCV 2023)."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.errors import InputError
from coop_jax.methods import cache, channels
from coop_jax.methods.base import Data, Given, Kept, Split, Stage
from coop_jax.methods.cache import EXACT

NAME = "APE"
PAPER = "Zhu et al., ICCV 2023"

EPSILON = 1e-6
"""Added to both probabilities whose logarithms are compared."""

logger = logging.getLogger(__name__)

LIMITS = {**cache.LIMITS, "gamma_steps": (0, 1000), "channels": (0, 10**6)}


def default_config() -> dict[str, Any]:
    """Return APE's settings, those of the official code for ImageNet.

    Settings, besides those of `cache.default_config`:
        channels: how many channels of features the cache compares; all where there are less.
        similarity_weight: of how alike different classes are in a channel, in its criterion.
        variance_weight: of the variance of its texts.
        gamma: how much more those keys count that zero-shot CLIP mistakes, before a search.
        gamma_steps: values of gamma that the search tries.
        gamma_scale: where these end, itself excluded; they begin at 0.
    """
    return cache.default_config() | {
        "alpha": 2.0,
        "alpha_scale": 7.0,
        "channels": 500,
        "similarity_weight": 0.7,
        "variance_weight": 0.3,
        "gamma": 0.1,
        "gamma_steps": 5,
        "gamma_scale": 0.5,
    }


def recipe() -> dict[str, Any]:
    """Return how the official code crops the training images."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Grid(NamedTuple):
    """Validation accuracy in percent at every beta with every alpha and every gamma."""

    betas: Float[np.ndarray, " betas"]
    alphas: Float[np.ndarray, " alphas"]
    gammas: Float[np.ndarray, " gammas"]
    accuracy: Float[np.ndarray, "betas alphas gammas"]


class Method(cache.Cached):
    """Tip-Adapter's cache, with similarities of some channels, and keys of different weight.

    It serves the classes that it was built for, or some of them.

    Attributes:
        channels: those chosen, the best first.
        divergence: of the keys, how far zero-shot CLIP is from their label, in bits.
        gamma: a scalar; a key counts exp(gamma divergence) times.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        for name in ("channels", "gamma_steps"):
            if config[name] < 1:
                raise InputError(f"{name}: expected at least 1, got {config[name]}; raise it")
        super().__init__(given, config, Kept)
        count = min(config["channels"], given.clip.config.embedding)
        self.channels = Kept(jnp.arange(count, dtype=jnp.int32))
        self.divergence = Kept(jnp.zeros(0, jnp.float32), varying=True)
        self.gamma = Kept(jnp.float32(config["gamma"]))
        steps, end = config["gamma_steps"], config["gamma_scale"]
        self.gammas = tuple(step * end / steps for step in range(steps))
        self.parts = config["similarity_weight"], config["variance_weight"]

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Build the cache, choose channels, weigh the keys, and search alpha, beta and gamma."""
        self.build(data)
        self.search(clip, data)
        return data

    def build(self, data: Data) -> None:
        """Make a key of every training image; choose the channels and weigh the keys by them."""
        super().build(data)
        texts, keys, labels = self.classifier[...], self.keys[...], np.asarray(data.train.labels)
        found = channels.scores(np.asarray(texts), np.asarray(keys), labels, self.parts)
        self.channels[...] = jnp.asarray(channels.best(found.criterion, len(self.channels)))
        cosines = jnp.dot(self.chosen(keys), self.chosen(texts).T, precision=EXACT)
        self.divergence.set_value(divergence(jax.nn.softmax(cosines, axis=-1), self.own()))

    def chosen(self, features: Float[Array, "rows embedding"]) -> Float[Array, "rows channels"]:
        """Return the chosen channels of features, at length one; zero where all of them are."""
        some = jnp.asarray(features, jnp.float32)[:, self.channels[...]]
        empty = jnp.all(some == 0, axis=-1, keepdims=True)
        return jnp.where(empty, 0.0, unit(jnp.where(empty, 1.0, some)))

    def similarity(self, features: Float[Array, "images embedding"]) -> Float[Array, "images keys"]:
        """Return the cosines of the chosen channels."""
        return jnp.dot(self.chosen(features), self.chosen(self.keys[...]).T, precision=EXACT)

    def weights(self) -> Float[Array, " keys"]:
        """Return how much each key counts."""
        return jnp.exp(self.gamma[...] * self.divergence[...])

    def search(self, clip: CLIP, data: Data) -> None:
        """Set alpha, beta and gamma to the best on the validation images, the first among equals.

        Beta is the outer loop, gamma the inner one. Without `search` they stay as they are.
        """
        if not self.uses:
            return
        assert data.val is not None
        found = self.whole_grid(clip, data.val)
        beta, alpha, gamma = np.unravel_index(np.argmax(found.accuracy), found.accuracy.shape)
        chosen = found.betas[beta], found.alphas[alpha], found.gammas[gamma]
        self.beta[...], self.alpha[...], self.gamma[...] = map(jnp.float32, chosen)
        logger.info(
            "APE: beta = %.4g, alpha = %.4g, gamma = %.4g, few-shot validation accuracy %.1f %%",
            *chosen,
            found.accuracy[beta, alpha, gamma],
        )

    def whole_grid(self, clip: CLIP, split: Split) -> Grid:
        """Return the accuracy on a split at every beta with every alpha and gamma."""
        grids, before = [], self.gamma[...]
        for gamma in self.gammas:
            self.gamma[...] = jnp.float32(gamma)
            grids.append(self.grid(clip, split))
        self.gamma[...] = before
        accuracy = np.stack([grid.accuracy for grid in grids], axis=-1)
        return Grid(grids[0].betas, grids[0].alphas, np.asarray(self.gammas), accuracy)


def divergence(
    probabilities: Float[Array, "keys classes"], own: Float[Array, "keys classes"]
) -> Float[Array, " keys"]:
    """Return the Kullback-Leibler divergence of probabilities from labels, in bits."""
    logs = jnp.log2((own + EPSILON) / (probabilities + EPSILON))
    return jnp.sum(own * logs, axis=-1)
