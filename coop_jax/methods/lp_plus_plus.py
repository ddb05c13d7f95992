"""LP++: a linear probe beside text features, with step sizes that the images say (CVPR 2024)."""

import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Stage

NAME = "LP++"
PAPER = "Huang et al., CVPR 2024"

EXACT = precision(jnp.float32)

MOMENTUM = 0.9
"""Of weight and bias; alpha has none."""

ALPHA_EVERY = 10
"""Steps of weight and bias for each of alpha."""

FIRST_ALPHA = 250
"""The first alpha, over the mean cosine of images with the text of their class."""

logger = logging.getLogger(__name__)

LIMITS = {"steps": (0, 10**5)}


def default_config() -> dict[str, Any]:
    """Return LP++'s settings.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        steps: of gradient descent, each on all images.
        select: keep the step that is best on the validation images, the last among equals; else the
            last.
        accumulate: as in the official code, which never clears the gradient of alpha, alpha moves
            by the sum of its gradients since the first step; else by that of the step.
    """
    return {"templates": (), "steps": 300, "select": True, "accumulate": False}


def recipe() -> dict[str, Any]:
    """Return how the official code crops the training images."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Probe(NamedTuple):
    """An affine map of normalised image features, and the weights of their cosines with texts."""

    weight: Float[Array, "classes embedding"]
    bias: Float[Array, " classes"]
    alpha: Float[Array, " classes"]


class Rates(NamedTuple):
    """The step sizes of weight and bias, and of alpha."""

    probe: float
    alpha: float


class Fit(NamedTuple):
    """Gradient descent: the last values, the best, the loss of each step and its alpha."""

    last: Probe
    best: Probe
    losses: Float[Array, " steps"]
    alphas: Float[Array, "steps classes"]


class Method(base.Method):
    """Logits affine in normalised image features, plus alpha times the cosines with the texts.

    Weight and bias descend with momentum on one augmented view of all images, from the sums of each
    class's features and, as a linear layer of PyTorch, a small random bias; every tenth step alpha
    does. Classes that were not trained on are refused.

    Attributes:
        bank: normalised text features `[classes, embedding]`.
        weight, bias, alpha: as `Probe`; before `prepare` zero, random, and the CLIP's logit scale.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["steps"] < 1:
            raise InputError(f"steps: expected at least 1, got {config['steps']}; raise it")
        self.bank = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        classes, size = self.bank.shape
        bias = layers.linear_init(given.rngs.params(), (classes,), size)
        scale = jnp.exp(given.clip.logit_scale[...])
        self.weight = Kept(jnp.zeros((classes, size), jnp.float32), per_class=True)
        self.bias = Kept(bias, per_class=True)
        self.alpha = Kept(jnp.full(classes, scale, jnp.float32), per_class=True)
        self.steps, self.accumulate = config["steps"], config["accumulate"]
        self.uses = frozenset({"validation"}) if config["select"] else frozenset()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps of the frame: `prepare` takes its own."""
        return (Stage(epochs=0),)

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the probe's logits."""
        probe = Probe(self.weight[...], self.bias[...], self.alpha[...])
        features = unit(jnp.asarray(images.features))
        return logits_of(probe, features, jnp.dot(features, texts.T, precision=EXACT))

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Descend, and keep the values that the settings ask for.

        Raises:
            InputError: a class has no training image.
        """
        features = unit(jnp.asarray(data.train.images(1).features[0]))
        labels, texts = np.asarray(data.train.labels), self.bank[...]
        start = first(features, labels, texts, self.bias[...])
        val_features, val_labels = features[:0], labels[:0]
        if self.uses:
            assert data.val is not None
            val_features = unit(jnp.asarray(data.val.images().features))
            val_labels = np.asarray(data.val.labels)
        fit = descend(
            start,
            step_sizes(features, texts),
            (features, labels),
            (val_features, val_labels),
            texts,
            steps=self.steps,
            accumulate=self.accumulate,
        )
        self.weight[...], self.bias[...], self.alpha[...] = fit.best
        logger.info("LP++: loss %.4g after %d steps", fit.losses[-1], self.steps)
        return data


def logits_of(
    probe: Probe,
    features: Float[Array, "images embedding"],
    cosines: Float[Array, "images classes"],
) -> Float[Array, "images classes"]:
    """Return the logits of normalised features, given their cosines with the texts."""
    affine = jnp.dot(features, probe.weight.T, precision=EXACT) + probe.bias
    return affine + probe.alpha * cosines


def first(
    features: Float[Array, "images embedding"],
    labels: Int[np.ndarray, " images"],
    texts: Float[Array, "classes embedding"],
    bias: Float[Array, " classes"],
) -> Probe:
    """Return what the descent starts from: sums of features, and one alpha for all classes.

    Raises:
        InputError: a class has no image.
    """
    rows, classes = np.asarray(features, np.float64), len(texts)
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise InputError(
            f"LP++: expected training images of every class, got none of class {counts.argmin()};"
            " add some"
        )
    weight = np.zeros((classes, rows.shape[1]))
    np.add.at(weight, labels, rows)
    right = np.sum(rows * np.asarray(texts, np.float64)[labels], axis=1)
    alpha = FIRST_ALPHA * np.mean(np.bincount(labels, right) / counts)
    return Probe(
        jnp.asarray(weight, jnp.float32), bias, jnp.full(classes, alpha, dtype=jnp.float32)
    )


def step_sizes(
    features: Float[Array, "images embedding"], texts: Float[Array, "classes embedding"]
) -> Rates:
    """Return what the curvature of the cross-entropy on these images allows, in float64.

    The official code multiplies by 4 for weight and bias, and divides by it for alpha.
    """
    rows = np.asarray(features, np.float64)
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    largest = np.linalg.eigvalsh(gram)[-1]
    cosines = rows @ np.asarray(texts, np.float64).T
    count = len(rows)
    return Rates(4 * count / largest, count / (4 * np.max(np.sum(cosines**2, axis=0))))


@functools.partial(jax.jit, static_argnames=("steps", "accumulate"))
def descend(
    start: Probe,
    rates: Rates,
    train: tuple[Float[Array, "images embedding"], Int[Array, " images"]],
    val: tuple[Float[Array, "others embedding"], Int[Array, " others"]],
    texts: Float[Array, "classes embedding"],
    *,
    steps: int,
    accumulate: bool,
) -> Fit:
    """Descend on the mean cross-entropy of all training images at once.

    Args:
        start: where.
        rates: the step sizes.
        train: normalised features, and labels.
        val: those by which the best step is chosen; of none the last step is.
        texts: normalised text features.
        steps: their number.
        accumulate: as `default_config`.
    """
    (features, labels), (val_features, val_labels) = train, val
    cosines, val_cosines = (jnp.dot(f, texts.T, precision=EXACT) for f in (features, val_features))

    def loss(probe: Probe) -> Array:
        everyone = jnp.ones(len(labels), jnp.float32)
        return base.cross_entropy(logits_of(probe, features, cosines), labels, everyone)

    def step(carry: Any, number: Array) -> tuple[Any, tuple[Array, Array]]:
        probe, speed, total, best, most = carry
        value, gradient = jax.value_and_grad(loss)(probe)
        speed = jax.tree.map(lambda old, new: MOMENTUM * old + new, speed, gradient[:2])
        total = total + gradient.alpha if accumulate else gradient.alpha
        due = (number + 1) % ALPHA_EVERY == 0
        new = Probe(
            probe.weight - rates.probe * speed[0],
            probe.bias - rates.probe * speed[1],
            jnp.where(due, probe.alpha - rates.alpha * total, probe.alpha),
        )
        predicted = jnp.argmax(logits_of(new, val_features, val_cosines), axis=-1)
        right = jnp.sum(predicted == val_labels)
        best = jax.tree.map(lambda old, new: jnp.where(right >= most, new, old), best, new)
        return (new, speed, total, best, jnp.maximum(right, most)), (value, probe.alpha)

    still = jax.tree.map(jnp.zeros_like, start)
    begun = (start, still[:2], still.alpha, start, 0)
    (last, _, _, best, _), (losses, alphas) = jax.lax.scan(step, begun, jnp.arange(steps))
    return Fit(last, best, losses, alphas)
