"""APE-T: a cache whose keys and texts share a trained residual of each class (ICCV 2023)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.errors import InputError
from coop_jax.methods import cache, channels
from coop_jax.methods.base import Data, Given, Kept, Learned, Stage
from coop_jax.methods.cache import EXACT

NAME = "APE-T"
PAPER = "Zhu et al., ICCV 2023"

LIMITS = {**cache.LIMITS, "channels": (0, 10**6)}


def default_config() -> dict[str, Any]:
    """Return APE-T's settings, those of the official code for ImageNet.

    Settings, besides those of `cache.default_config`:
        channels: how many channels of features the residuals have; all where there are less.
        similarity_weight: of how alike the texts of different classes are in a channel.
        variance_weight: of the variance of its texts.
    """
    return cache.default_config() | {
        "alpha": 2.0,
        "alpha_scale": 7.0,
        "channels": 500,
        "similarity_weight": 0.2,
        "variance_weight": 0.8,
    }


def recipe() -> dict[str, Any]:
    """Return what the official code trains with: 20 epochs of AdamW."""
    return {
        "epochs": 20,
        "batch_size": 256,
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "epsilon": 1e-3,
            "weight_decay": 0.1,
            "schedule_by": "step",
            "warmup_epochs": 0,
        },
        "augmentation": {"scale": (0.5, 1.0)},
    }


class Method(cache.Cached):
    """Tip-Adapter's cache; a class's residual is added to its text and to all of its keys.

    Neither sum is normalised again. It is learned at `alpha` and `beta`, for which a search
    follows, and serves the classes that it was learned for. Training ends with the last epoch; the
    official code takes the best on the validation images.

    Attributes:
        residual: `[classes, channels]`, zero at first.
        factors: of the keys, how much each counts; one at first.
        channels: those that have residuals, the best first.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["channels"] < 1:
            raise InputError(f"channels: expected at least 1, got {config['channels']}; raise it")
        super().__init__(given, config, Kept)
        count = min(config["channels"], given.clip.config.embedding)
        self.channels = Kept(jnp.arange(count, dtype=jnp.int32))
        zeros = jnp.zeros((len(given.classes), count), jnp.float32)
        self.residual = Learned(zeros, per_class=True)
        self.factors = Learned(jnp.zeros(0, jnp.float32), varying=True)
        self.parts = config["similarity_weight"], config["variance_weight"]

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return the training, and a stage without steps: the search."""
        training = Stage.of(config, drop_last=False)
        return (training, Stage(epochs=0)) if self.uses else (training,)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Build the cache before the training; search alpha and beta after it."""
        if stage == 0:
            self.build(data)
        else:
            self.search(clip, data)
        return data

    def build(self, data: Data) -> None:
        """Make a key of every training image, and choose the channels by the texts alone."""
        super().build(data)
        texts = np.asarray(self.classifier[...])
        found = channels.scores(texts, texts[:0], np.zeros(0, np.int32), self.parts)
        self.channels[...] = jnp.asarray(channels.best(found.criterion, len(self.channels)))
        self.factors.set_value(jnp.ones(len(self.keys), jnp.float32))

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return normalised text features plus the residuals."""
        return self.classifier[...] + self.placed()

    def placed(self) -> Float[Array, "classes embedding"]:
        """Return the residuals with zeros in all other channels.

        By a product: after a scatter, one step alone is rounded otherwise than one of several.
        """
        places = jax.nn.one_hot(self.channels[...], self.classifier.shape[1])
        return jnp.dot(self.residual[...], places, precision=EXACT)

    def zero_shot(
        self,
        clip: CLIP,
        features: Float[Array, "images embedding"],
        texts: Float[Array, "classes embedding"],
    ) -> Float[Array, "images classes"]:
        """Return scaled products with the texts, which have no length of one."""
        return clip.scaled(jnp.dot(unit(features), texts.T, precision=EXACT))

    def similarity(self, features: Float[Array, "images embedding"]) -> Float[Array, "images keys"]:
        """Return products with the keys plus the residuals of their classes."""
        keys = self.keys[...] + jnp.dot(self.own(), self.placed(), precision=EXACT)
        return jnp.dot(unit(features), keys.T, precision=EXACT)

    def weights(self) -> Float[Array, " keys"]:
        """Return how much each key counts."""
        return self.factors[...]
