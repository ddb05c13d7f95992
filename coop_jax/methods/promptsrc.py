"""PromptSRC: prompts of both towers kept near the frozen CLIP (Khattak et al., ICCV 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.methods import deep, text
from coop_jax.methods.base import Batch, Fixed, Given, Stage, Terms, cross_entropy, weighted_mean
from coop_jax.templates import IMAGENET_80

NAME = "PromptSRC"
PAPER = "Khattak et al., ICCV 2023"

TEMPLATES = 60
"""Of OpenAI's for ImageNet, those that the official code averages: the first ones."""

LIMITS = deep.LIMITS | {"average_deviation": (1e-3, 1e6)}


def default_config() -> dict[str, Any]:
    """Return PromptSRC's settings, those of its official scripts: `deep.default_config` and others.

    Settings:
        text_weight, image_weight: of the mean absolute differences to frozen features.
        average_mean, average_deviation: of the Gaussian weights of the epochs, counted from 1, in
            the average that training ends with.
        templates: hand-crafted prompts, whose unnormalised text features are averaged.
    """
    return deep.default_config() | {
        "text_weight": 25.0,
        "image_weight": 10.0,
        "average_mean": 15.0,
        "average_deviation": 1.0,
        "templates": IMAGENET_80[:TEMPLATES],
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with from base to new classes."""
    return {"epochs": 20, "batch_size": 4, "optimizer": {"learning_rate": 0.0025}}


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Weights of epochs that are a Gaussian of their number and sum to one."""

    mean: float
    deviation: float

    def __call__(self, epochs: int) -> Float[np.ndarray, " epochs"]:
        """Return the weight of every epoch."""
        distance = (np.arange(1, epochs + 1) - self.mean) / self.deviation
        weights = np.exp(-0.5 * (distance**2 - np.min(distance**2)))
        return weights / weights.sum()


class Method(deep.TwoTowers):
    """IVLP whose features and logits must not go far from the frozen CLIP's of the same view.

    `bank` are the frozen text features of hand-crafted prompts, of length one.
    """

    takes = ("pixels", "features")

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config, NAME)
        prompts = text.HandCrafted(given, config["templates"])
        self.bank = Fixed(unit(prompts.encode(given.clip, now=True).mean(axis=0)))
        self.text_weight, self.image_weight = config["text_weight"], config["image_weight"]
        self.average = Gaussian(config["average_mean"], config["average_deviation"])

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage, which ends with an average over its epochs."""
        return (Stage.of(config, average=self.average),)

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy and the distances of texts, images and logits.

        The last is the divergence of the frozen logits' softmax from the learned, a mean over
        images and classes.
        """
        images = self.image_features(clip, batch.images)
        logits = clip.logits(images, texts)
        frozen = clip.logits(jnp.asarray(batch.images.features), self.bank[...])
        learned, known = jax.nn.log_softmax(logits), jax.nn.log_softmax(frozen)
        divergence = jnp.mean(jnp.exp(known) * (known - learned), axis=-1)
        difference = jnp.abs(unit(images) - unit(jnp.asarray(batch.images.features)))
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "text": self.text_weight * jnp.abs(unit(texts) - self.bank[...]).mean(),
            "image": self.image_weight * weighted_mean(difference.mean(axis=-1), batch.weights),
            "logits": weighted_mean(divergence, batch.weights),
        }
