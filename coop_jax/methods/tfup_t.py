"""TFUP-T: text features and an image adapter, trained on pseudo-labels of TFUP (Long et al.)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.methods import layers, unlabeled
from coop_jax.methods.base import (
    Batch,
    Data,
    Given,
    Images,
    Learned,
    Split,
    Stage,
    Terms,
)

NAME = "TFUP-T"
PAPER = "Long et al., arXiv 2404.16339"

TRAINING_SHARE, TRAINING_SHOTS = 0.75, 9
"""The share of a class's images that the warm-up sees, and the least, where no number is said."""

EPSILON = 1e-6
"""Added to a mean probability before its logarithm."""

LIMITS = {
    **unlabeled.LIMITS,
    "training_shots": (0, 10**6),
    "warm_up": (0, 10**5),
    "reduction": (1, 1024),
    **dict.fromkeys(("text_ratio", "image_ratio", "confidence"), (0, 1)),
}


def default_config() -> dict[str, Any]:
    """Return the settings: those of TFUP, and of the training, as the official code has them.

    Alpha and beta count after the warm-up, whose labels always have TFUP's own.

    Settings:
        training_shots: images of each class that the warm-up sees, chosen as the cache's; 0 for
            0.75 of the images for a class, at least 9.
        warm_up: epochs of the first stage.
        text_ratio: weight of the learned residual; the text features have what is left of one.
        image_ratio: weight of the adapter; the image features have what is left of one.
        reduction: the adapter's hidden layer is this much narrower than the features.
        confidence: the probability above which a pseudo-label counts after the warm-up.
        marginal: weight of the mean prediction's negative entropy.
    """
    return unlabeled.default_config() | {
        "training_shots": 0,
        "warm_up": 5,
        "text_ratio": 0.5,
        "image_ratio": 0.2,
        "reduction": 4,
        "confidence": 0.9,
        "marginal": 0.3,
    }


def recipe() -> dict[str, Any]:
    """Return what the official code trains with after the warm-up: 25 epochs by AdamW."""
    return {
        "epochs": 25,
        "batch_size": 256,
        "optimizer": {
            "name": "adamw",
            "learning_rate": 0.012,
            "epsilon": 3e-3,
            "weight_decay": 0.1,
            "schedule_by": "step",
            "warmup_epochs": 0,
        },
    }


class Method(unlabeled.Cached):
    """Scaled cosines of moved text features and adapted image features, without the cache.

    A warm-up learns from images that speak for their classes, with the labels that TFUP gives them.
    Then all unlabelled images are learned from: an augmented view has the label of the plain view,
    as the texts, the adapter and the cache see that in the same step, where it is sure enough. The
    mean prediction of a batch is kept from a few classes. Labelled images are not used.

    Attributes:
        residual: `[classes, embedding]`, added to the text features.
        down, up: kernels of the adapter `[embedding, hidden]` and `[hidden, embedding]`.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config)
        size = self.bank.shape[1]
        hidden = max(size // config["reduction"], 1)
        self.residual = Learned(jnp.zeros(self.bank.shape, jnp.float32), per_class=True)
        self.down = Learned(layers.linear_init(given.rngs.params(), (size, hidden), size))
        self.up = Learned(layers.linear_init(given.rngs.params(), (hidden, size), hidden))
        self.training_shots, self.warm_up = config["training_shots"], config["warm_up"]
        self.text_ratio, self.image_ratio = config["text_ratio"], config["image_ratio"]
        self.confidence, self.marginal = config["confidence"], config["marginal"]

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return the warm-up, at the full learning rate, and the run's own epochs."""
        stage = Stage.of(config)
        constant = dataclasses.replace(stage.optimizer, schedule="constant")
        return dataclasses.replace(stage, epochs=self.warm_up, optimizer=constant), stage

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Fill the cache and return the images of the warm-up; after that, all, without labels.

        Raises:
            InputError: there are no unlabelled images.
        """
        if stage:
            features = unlabeled.unlabeled_features(NAME, data)
            places, labels = np.arange(len(features)), np.full(len(features), -1, np.int32)
        else:
            features = self.build(NAME, data)
            places, labels = self.of_warm_up(clip, features)
        assert data.unlabeled is not None
        augmented = data.unlabeled.encode

        def encode(requests: Int[np.ndarray, "requests 2"], _: bool) -> Images:
            epochs, chosen = requests[:, 0], places[requests[:, 1]]
            view = augmented(np.stack([epochs, chosen], axis=1), True).features
            return Images(features=np.stack([features[chosen], np.asarray(view)], axis=1))

        return data._replace(train=Split(labels, encode))

    def of_warm_up(
        self, clip: CLIP, features: Float[np.ndarray, "images embedding"]
    ) -> unlabeled.Chosen:
        """Return the places of the images that the warm-up sees, and the labels of TFUP."""
        share = int(TRAINING_SHARE * len(features) / len(self.number))
        shots = self.training_shots or max(share, TRAINING_SHOTS)
        places = unlabeled.representative(features, self.bank[...], shots).places
        return unlabeled.Chosen(places, self.pseudo_labels(clip, features[places]))

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return the text features, moved and normalised."""
        moved = (1 - self.text_ratio) * self.bank[...] + self.text_ratio * self.residual[...]
        return unit(moved)

    def adapted(
        self, features: Float[Array, "*batch embedding"]
    ) -> Float[Array, "*batch embedding"]:
        """Return image features, unnormalised, with the adapter's share."""
        features = jnp.asarray(features, jnp.float32)
        return layers.adapted(features, self.down[...], self.up[...], self.image_ratio)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosines."""
        return clip.logits(self.adapted(images.features), texts)

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy of augmented views and, without labels, the marginal term.

        Of an image's views the first is the plain one and the last the augmented one. A label of -1
        is none.
        """
        views = self.adapted(batch.images.features)
        views = views.reshape(len(views), -1, views.shape[-1])
        plain, augmented = views[:, 0], views[:, -1]
        log = jax.nn.log_softmax(clip.logits(augmented, texts), axis=-1)
        seen = jax.nn.softmax(jax.lax.stop_gradient(self.with_cache(clip, plain, texts)), axis=-1)
        has_none, weights = batch.labels < 0, batch.weights
        is_sure = ~has_none | (seen.max(axis=-1) > self.confidence)
        labels = jnp.where(has_none, seen.argmax(axis=-1), batch.labels)
        own = jnp.take_along_axis(log, labels[:, None], axis=-1)[:, 0]
        counted, alone = weights * is_sure, weights * has_none
        mean = jnp.sum(alone[:, None] * jnp.exp(log), axis=0) / jnp.maximum(jnp.sum(alone), 1)
        return {
            "cross_entropy": -jnp.sum(counted * own) / jnp.maximum(jnp.sum(counted), 1),
            "marginal": self.marginal * jnp.sum(mean * jnp.log(mean + EPSILON)),
        }
