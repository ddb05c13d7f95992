"""GDA, the hard-to-beat baseline: Gaussian discriminants beside CLIP (Wang et al., ICLR 2024)."""

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Split, Stage

NAME = "GDA"
PAPER = "Wang et al., ICLR 2024"

EXACT = precision(jnp.float32)

ESTIMATORS = ("few_shot", "base_to_new")

FIRST_ALPHA = 0.1
"""The weight where no validation image is predicted rightly at any other."""

logger = logging.getLogger(__name__)

LIMITS = {"augmented_passes": (0, 1000), "text_repeats": (0, 1000)}


def default_config() -> dict[str, Any]:
    """Return GDA's settings, those of the official code.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        augmented_passes: augmented views of each training image; all of them count.
        estimator: "few_shot", of one shrunk covariance; or "base_to_new", of another covariance,
            which also serves classes that were not trained on.
        alphas: weights of the discriminants among which the validation images choose.
        nearest: "base_to_new": training features, nearest to its text feature, that stand for a
            class that was not trained on.
        text_repeats: "base_to_new": copies of the text feature in that class's mean.
    """
    return {
        "templates": (),
        "augmented_passes": 10,
        "estimator": "few_shot",
        "alphas": (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2),
        "nearest": 64,
        "text_repeats": 16,
    }


def recipe() -> dict[str, Any]:
    """Return how the official code crops the training images."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Classifier(NamedTuple):
    """Text features `[classes, embedding]`, and discriminants affine in normalised features."""

    texts: Float[Array, "classes embedding"]
    weight: Float[Array, "classes embedding"]
    bias: Float[Array, " classes"]


class Method(base.Method):
    """Zero-shot logits plus alpha times log-likelihoods under Gaussians of one covariance.

    With the estimator "base_to_new", a class that was not trained on gets a Gaussian of the
    training features nearest to its text feature; the precision of these is averaged over all such
    classes. The other estimator refuses it. All classes are equally likely beforehand.

    Attributes:
        weight, bias: of the discriminants, `[classes, embedding]` and `[classes]`, the latter
            without the prior; zero until `prepare`.
        features: normalised training features, kept by the estimator "base_to_new" alone.
        alpha: a scalar.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["estimator"] not in ESTIMATORS:
            raise InputError(
                f"estimator: expected one of {', '.join(ESTIMATORS)}, got"
                f" {config['estimator']!r:.80}; choose one"
            )
        for name, least in (("augmented_passes", 1), ("nearest", 2), ("text_repeats", 0)):
            if config[name] < least:
                raise InputError(f"{name}: expected at least {least}, got {config[name]}; raise it")
        if not config["alphas"]:
            raise InputError("alphas: expected at least one, got none; give some")
        self.for_new = config["estimator"] == "base_to_new"
        if not self.for_new and not all(given.classes.seen):
            raise InputError(
                "estimator: expected base_to_new for classes that were not trained on, got"
                f" {config['estimator']}; choose it"
            )
        self.uses = frozenset({"validation", *["new_class_names"] * self.for_new})
        classes, embedding = len(given.classes), given.clip.config.embedding
        self.classifier = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        moves = {"per_class": True, "unseen": "initial" if self.for_new else "refuse"}
        self.weight = Kept(jnp.zeros((classes, embedding), jnp.float32), **moves)
        self.bias = Kept(jnp.zeros(classes, jnp.float32), **moves)
        self.alpha = Kept(jnp.float32(FIRST_ALPHA))
        if self.for_new:
            self.features = Kept(jnp.zeros((0, embedding), jnp.float32), varying=True)
        self.seen = given.classes.seen
        self.alphas = tuple(config["alphas"])
        self.passes, self.nearest, self.text_repeats = (
            config[name] for name in ("augmented_passes", "nearest", "text_repeats")
        )

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps."""
        return (Stage(epochs=0),)

    def texts(self, clip: CLIP, key: Array | None) -> Classifier:
        """Return the classifier, with discriminants of the classes that were not trained on."""
        texts, weight, bias = self.classifier[...], self.weight[...], self.bias[...]
        new = np.flatnonzero(~np.asarray(self.seen))
        if len(new) and self.for_new and len(self.features):
            means, inverse = synthesized(
                texts[new], self.features[...], self.nearest, self.text_repeats
            )
            new_weight = jnp.dot(means, inverse, precision=EXACT)
            weight = weight.at[new].set(new_weight)
            bias = bias.at[new].set(-jnp.sum(new_weight * means, axis=1) / 2)
        return Classifier(texts, weight, bias - math.log(len(texts)))

    def logits(
        self, clip: CLIP, texts: Classifier, images: Images
    ) -> Float[Array, "batch classes"]:
        """Return zero-shot logits plus alpha times the discriminants."""
        zero_shot, likelihoods = self.parts(clip, texts, images)
        return zero_shot + self.alpha[...] * likelihoods

    def parts(
        self, clip: CLIP, texts: Classifier, images: Images
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
        """Return zero-shot logits and the discriminants."""
        features = jnp.asarray(images.features)
        product = jnp.dot(unit(features), texts.weight.T, precision=EXACT)
        return clip.logits(features, texts.texts), product + texts.bias

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Estimate the Gaussians in float64, then choose alpha on the validation images.

        Of equally good ones the first counts.

        Raises:
            InputError: as `estimated`.
        """
        views = unit(jnp.asarray(data.train.images(self.passes).features))
        features = np.asarray(views).reshape(-1, views.shape[-1])
        labels = np.tile(data.train.labels, len(views))
        means, inverse = estimated(features, labels, len(self.weight), shrinks=not self.for_new)
        weight = means @ inverse
        self.weight[...] = jnp.asarray(weight, jnp.float32)
        self.bias[...] = jnp.asarray(-np.sum(weight * means, axis=1) / 2, jnp.float32)
        if self.for_new:
            self.features.set_value(jnp.asarray(features))
        assert data.val is not None
        accuracies = self.accuracies(clip, data.val)
        best = int(np.argmax(accuracies))
        alpha = self.alphas[best] if accuracies[best] > 0 else FIRST_ALPHA
        self.alpha[...] = jnp.float32(alpha)
        logger.info(
            "GDA: alpha = %g, few-shot validation accuracy %.1f %%", alpha, accuracies[best]
        )
        return data

    def accuracies(self, clip: CLIP, split: Split) -> Float[np.ndarray, " alphas"]:
        """Return the accuracy on a split in percent at every alpha."""
        zero_shot, likelihoods = self.parts(clip, self.texts(clip, None), split.images())
        predicted = [
            np.argmax(np.asarray(zero_shot + jnp.float32(alpha) * likelihoods), axis=1)
            for alpha in self.alphas
        ]
        return 100 * np.mean(np.stack(predicted) == split.labels, axis=1)


def estimated(
    features: Float[np.ndarray, "images embedding"],
    labels: Int[np.ndarray, " images"],
    classes: int,
    *,
    shrinks: bool,
) -> tuple[Float[np.ndarray, "classes embedding"], Float[np.ndarray, "embedding embedding"]]:
    """Return the means of the classes and the precision that they share, float64.

    Args:
        features: of training images, normalised.
        labels: of each.
        classes: their number.
        shrinks: whether the covariance is that of all images about their means, shrunk; else it is
            the mean of the classes' own, and directions in which float32 features do not vary do
            not count.

    Raises:
        InputError: a class has fewer than two features, or all features of every class are the
            same.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 2:
        raise InputError(
            "GDA: expected at least two augmented views of training images of every class, got"
            f" {counts.min()} of class {counts.argmin()}; add images or raise augmented_passes"
        )
    size = features.shape[1]
    means, total = np.empty((classes, size)), np.zeros((size, size))
    groups = np.split(features[np.argsort(labels, kind="stable")], np.cumsum(counts)[:-1])
    for label, group in enumerate(groups):
        rows = group.astype(np.float64)
        means[label] = rows.mean(axis=0)
        scatter = (rows - means[label]).T @ (rows - means[label])
        total += scatter if shrinks else scatter / (len(rows) - 1) / classes
    if not shrinks:
        cutoff = size * np.finfo(np.float32).eps
        return means, np.linalg.pinv(total, rcond=cutoff, hermitian=True)
    shrinkage = np.trace(total) / (len(labels) - 1)
    if not shrinkage > np.finfo(np.float32).eps ** 2:
        raise InputError(
            "GDA: expected training features that differ within a class, got the same for all of"
            " its images; add others"
        )
    return means, size * np.linalg.inv(total + shrinkage * np.eye(size))


def synthesized(
    texts: Float[Array, "classes embedding"],
    features: Float[Array, "images embedding"],
    nearest: int,
    text_repeats: int,
) -> tuple[Float[Array, "classes embedding"], Float[Array, "embedding embedding"]]:
    """Return means and the shared precision of classes of which there are only text features.

    A class's mean is that of the training features nearest to its text feature, all there are at
    most, and of copies of the latter. Its covariance is taken about the text feature and shrunk;
    the precisions of all classes are averaged.

    Args:
        texts: normalised text features.
        features: normalised training features.
        nearest: number of training features for each class.
        text_repeats: number of copies.
    """
    count, size = min(nearest, len(features)), texts.shape[1]
    places = jax.lax.top_k(jnp.dot(texts, features.T, precision=EXACT), count)[1]

    def add(total: Array, near: tuple[Array, Array]) -> tuple[Array, Array]:
        text, rows = near[0], features[near[1]]
        scatter = jnp.dot((rows - text).T, rows - text, precision=EXACT)
        shrunk = scatter + jnp.trace(scatter) / (count - 1) * jnp.eye(size)
        mean = (rows.sum(axis=0) + text_repeats * text) / (count + text_repeats)
        return total + jnp.linalg.inv(shrunk), mean

    total, means = jax.lax.scan(add, jnp.zeros((size, size)), (texts, places))
    return means, size * total / len(texts)
