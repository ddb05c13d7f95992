"""CLAP: a linear probe held near the text features, each class as much as those are right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import (
    Batch,
    Data,
    Fixed,
    Given,
    Images,
    Kept,
    Learned,
    Split,
    Terms,
    cross_entropy,
)

NAME = "CLAP"
PAPER = "Silva-Rodríguez et al., CVPR 2024"

CONSTRAINTS = ("l2", "none")

AT_ONCE = 4096
"""Images whose probabilities are in memory at a time."""

LIMITS = {"augmented_passes": (0, 1000)}


def default_config() -> dict[str, Any]:
    """Return CLAP's settings, those of the command of the official read me.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        constraint: "l2", or "none" for a plain linear probe that starts at the text features.
        augmented_passes: augmented views of each training image; all of them are trained on.
        outer_every: after so many steps the multipliers grow by what each class has moved
            (augmented Lagrangian); the official code's "adaptative" constraints do so after every
            epoch. 0: they stay, as in the paper's results.
    """
    return {"templates": (), "constraint": "l2", "augmented_passes": 20, "outer_every": 0}


def recipe() -> dict[str, Any]:
    """Return what the official code trains with: 300 epochs of batches of 256 views by SGD."""
    return {
        "epochs": 300,
        "batch_size": 256,
        "optimizer": {"learning_rate": 0.1, "weight_decay": 0.0},
    }


class Method(base.Method):
    """Cosines with prototypes that start at the text features, and their weighted distances.

    An epoch shuffles all views of all images and takes as many batches of them as there are of the
    images alone, at least one. A class's multiplier is the mean zero-shot probability of the right
    class over its views. Classes that were not trained on are refused.

    Attributes:
        bank: unnormalised text features `[classes, embedding]`.
        prototypes: `[classes, embedding]`, learned.
        multipliers: of the classes; zero until `prepare`, and without a constraint.
        penalties: what the multipliers grow by, for each unit of distance, with `outer_every`.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["constraint"] not in CONSTRAINTS:
            raise InputError(
                f"constraint: expected one of {', '.join(CONSTRAINTS)}, got"
                f" {config['constraint']!r:.80}; choose one"
            )
        if config["augmented_passes"] < 1:
            raise InputError(
                f"augmented_passes: expected at least 1, got {config['augmented_passes']}; raise it"
            )
        features = text.hand_crafted_features(given, *config["templates"], normalized=False)
        self.bank = Fixed(features)
        self.prototypes = Learned(jnp.array(features), per_class=True)
        self.constrains = config["constraint"] != "none"
        self.passes = config["augmented_passes"]
        self.outer_every = config["outer_every"] if self.constrains else 0
        zeros = jnp.zeros(len(features), jnp.float32)
        if self.constrains:
            self.multipliers = Kept(zeros, per_class=True)
        if self.outer_every:
            self.penalties = Kept(jnp.array(zeros), per_class=True)
            self.steps = Kept(jnp.int32(0))

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Set the multipliers, and return all views of the images as examples of their own.

        Raises:
            InputError: a class has no training image.
        """
        views = np.asarray(data.train.images(self.passes).features, np.float32)
        features = views.reshape(-1, views.shape[-1])
        labels = np.tile(data.train.labels, len(views))
        if self.constrains:
            self.multipliers[...] = confidence(clip, self.bank[...], features, labels)

        def encode(requests: Int[np.ndarray, "requests 2"], augmented: bool) -> Images:
            return Images(features=features[requests[:, 1]])

        return data._replace(train=Split(labels, encode, per_epoch=len(data.train)))

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return the prototypes, unnormalised."""
        return self.prototypes[...]

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy and the mean over classes of the weighted distances."""
        logits = self.logits(clip, texts, batch.images)
        terms = {"cross_entropy": cross_entropy(logits, batch.labels, batch.weights)}
        if not self.constrains:
            return terms
        distances = jnp.sum((texts - self.bank[...]) ** 2, axis=-1)
        if self.outer_every:
            self.grow(jax.lax.stop_gradient(distances))
        return terms | {"constraint": jnp.mean(self.multipliers[...] * distances)}

    def grow(self, distances: Float[Array, " classes"]) -> None:
        """Let the multipliers grow where that is due, and count a step.

        A class's penalty is its distance when they last grew, zero at first.
        """
        steps, multipliers, penalties = (
            variable[...] for variable in (self.steps, self.multipliers, self.penalties)
        )
        due = (steps > 0) & (steps % self.outer_every == 0)
        self.multipliers[...] = jnp.where(due, multipliers + penalties * distances, multipliers)
        self.penalties[...] = jnp.where(due, distances, penalties)
        self.steps[...] = steps + 1


def confidence(
    clip: CLIP,
    texts: Float[Array, "classes embedding"],
    features: Float[np.ndarray, "images embedding"],
    labels: Int[np.ndarray, " images"],
) -> Float[Array, " classes"]:
    """Return the mean zero-shot probability of the right class over the images of each class.

    Raises:
        InputError: a class has none.
    """
    counts = np.bincount(labels, minlength=len(texts))
    if not counts.all():
        raise InputError(
            f"CLAP: expected training images of every class, got none of class {counts.argmin()};"
            " add some"
        )
    total = np.zeros(len(texts))
    for start in range(0, len(labels), AT_ONCE):
        own = labels[start : start + AT_ONCE]
        logits = clip.logits(jnp.asarray(features[start : start + AT_ONCE]), texts)
        probabilities = np.asarray(jax.nn.softmax(logits, axis=-1), np.float64)
        total += np.bincount(own, probabilities[np.arange(len(own)), own], len(texts))
    return jnp.asarray(total / counts, jnp.float32)
