"""TIP-X: a cache of a support set, compared also by what texts say of images (SuS-X, ICCV 2023)."""

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
from coop_jax.methods import base, text, unlabeled
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Split, Stage

NAME = "TIP-X"
PAPER = "Udandarao et al., ICCV 2023"

EXACT = precision(jnp.float32)

LOWEST = {"alpha": 0.1, "beta": 1.0, "gamma": 0.1}
"""The values that a search begins with."""

logger = logging.getLogger(__name__)

STEPS = ("alpha_steps", "beta_steps", "gamma_steps")

LIMITS = {**dict.fromkeys(STEPS, (0, 1000)), "temperature": (1e-3, 1e3)}


def default_config() -> dict[str, Any]:
    """Return the settings, those of the official code.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        temperature: of the probabilities that images are compared by, of plain cosines.
        alpha, beta, gamma: weight of the cache, how sharply its weights fall with the distance, and
            the weight of how alike images are to the texts; before a search.
        search: choose them on validation images.
        alpha_steps, beta_steps, gamma_steps: values of each that the search tries.
        alpha_scale, beta_scale, gamma_scale: where these end, themselves excluded; they begin at
            0.1, 1 and 0.1.
    """
    return {
        "templates": (),
        "temperature": 0.5,
        "alpha": 0.1,
        "beta": 1.0,
        "gamma": 0.1,
        "search": True,
        "alpha_steps": 20,
        "alpha_scale": 50.0,
        "beta_steps": 200,
        "beta_scale": 50.0,
        "gamma_steps": 50,
        "gamma_scale": 30.0,
    }


class Compared(NamedTuple):
    """The logits of images by the texts alone, and how they compare with the support set."""

    zero_shot: Float[Array, "images classes"]
    cosines: Float[Array, "images keys"]
    divergences: Float[Array, "images keys"]


class Method(base.Method):
    """Zero-shot logits, a cache of the training images, and how alike images are to the texts.

    The support set is what is trained on. Of new classes there is none: they are refused.

    Attributes:
        bank: text features `[classes, embedding]`, of length one.
        keys: normalised, `[images, embedding]`, none until `prepare`.
        labels: the class of each key, as `number` counts classes.
        number: of every class among those that the keys are of.
        spans: the least and the largest divergence and cosine of validation images and keys.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        for name, low in LOWEST.items():
            if config[f"{name}_steps"] < 1:
                raise InputError(
                    f"{name}_steps: expected at least 1, got {config[f'{name}_steps']}; raise it"
                )
            if config[f"{name}_scale"] <= low:
                raise InputError(
                    f"{name}_scale: expected more than {low}, got {config[f'{name}_scale']};"
                    " raise it"
                )
        self.bank = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        classes, embedding = self.bank.shape
        self.keys = Kept(jnp.zeros((0, embedding), jnp.float32), varying=True)
        self.labels = Kept(jnp.zeros(0, jnp.int32), varying=True)
        self.number = Kept(jnp.arange(classes, dtype=jnp.int32), per_class=True)
        self.weights = Kept(jnp.asarray([config[name] for name in LOWEST], jnp.float32))
        self.spans = Kept(jnp.asarray([0, 1, 0, 1], jnp.float32))
        self.temperature = config["temperature"]
        self.values = tuple(tuple(_values(config, name)) for name in LOWEST)
        self.uses = frozenset({"validation"} if config["search"] else ())

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage, without steps."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Keep the training images, and the spans; choose the weights on validation images."""
        images = jnp.asarray(data.train.images().features)
        self.keys.set_value(unit(images))
        self.labels.set_value(jnp.asarray(data.train.labels, jnp.int32))
        if not self.uses:
            self.spans[...] = spans_of(self.compared(clip, self.bank[...], images))
            return data
        assert data.val is not None
        compared, correct = self.search(clip, data.val)
        self.spans[...] = spans_of(compared)
        alpha, beta, gamma = np.unravel_index(np.argmax(correct), correct.shape)
        chosen = self.values[0][alpha], self.values[1][beta], self.values[2][gamma]
        self.weights[...] = jnp.asarray(chosen, jnp.float32)
        what = "TIP-X: alpha %.4g, beta %.4g, gamma %.4g, few-shot validation accuracy %.1f %%"
        logger.info(what, *chosen, 100 * correct.max() / len(data.val))
        return data

    def search(
        self, clip: CLIP, val: Split
    ) -> tuple[Compared, Int[np.ndarray, "alphas betas gammas"]]:
        """Return how validation images compare, and how many are right with all weights."""
        compared = self.compared(clip, self.bank[...], jnp.asarray(val.images().features))
        values = (jnp.asarray(each, jnp.float32) for each in self.values)
        labels = jnp.asarray(val.labels, jnp.int32)
        return compared, np.asarray(count_right(compared, self.one_hot(), labels, *values))

    def one_hot(self) -> Float[Array, "keys classes"]:
        """Return the class of each key."""
        return (self.labels[...][:, None] == self.number[...]).astype(jnp.float32)

    def compared(
        self,
        clip: CLIP,
        texts: Float[Array, "classes embedding"],
        features: Float[Array, "images embedding"],
    ) -> Compared:
        """Return how images compare with the keys, by their cosines and by the texts."""
        keys, of_images = self.keys[...], unit(features)

        def said(features: Array) -> Array:
            cosines = jnp.dot(features, unit(texts).T, precision=EXACT)
            return jax.nn.log_softmax(cosines / self.temperature, axis=-1)

        cosines = jnp.dot(of_images, keys.T, precision=EXACT)
        apart = unlabeled.divergences(said(of_images), said(keys))
        return Compared(clip.logits(features, texts), cosines, apart)

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return zero-shot logits with both other terms."""
        features = jnp.asarray(images.features)
        if not len(self.keys):
            return clip.logits(features, texts)
        compared = self.compared(clip, texts, features)
        return combined(compared, self.one_hot(), self.spans[...], self.weights[...])


def _values(config: Mapping[str, Any], name: str) -> list[float]:
    """Return the values that a search tries."""
    steps, low = config[f"{name}_steps"], LOWEST[name]
    return [step * (config[f"{name}_scale"] - low) / steps + low for step in range(steps)]


def spans_of(compared: Compared) -> Float[Array, "4"]:
    """Return the least and the largest divergence, and the least and the largest cosine."""
    each = compared.divergences, compared.cosines
    return jnp.stack([bound for values in each for bound in (values.min(), values.max())])


def scaled(
    divergences: Float[Array, "images keys"], spans: Float[Array, "4"]
) -> Float[Array, "images keys"]:
    """Return divergences moved and stretched from their own span to that of the cosines."""
    low, high, least, most = spans
    return (divergences - low) / jnp.where(high > low, high - low, 1) * (most - least) + least


def combined(
    compared: Compared,
    one_hot: Float[Array, "keys classes"],
    spans: Float[Array, "4"],
    weights: Float[Array, "3"],
) -> Float[Array, "images classes"]:
    """Return the logits, given the classes of the keys, the spans, and alpha, beta and gamma."""
    alpha, beta, gamma = weights
    near = jnp.exp(-(beta - beta * compared.cosines))
    cached = jnp.dot(near, one_hot, precision=EXACT)
    alike = jnp.dot(-scaled(compared.divergences, spans), one_hot, precision=EXACT)
    return compared.zero_shot + gamma * alike + alpha * cached


@jax.jit
def count_right(
    compared: Compared,
    one_hot: Float[Array, "keys classes"],
    labels: Int[Array, " images"],
    alphas: Float[Array, " alphas"],
    betas: Float[Array, " betas"],
    gammas: Float[Array, " gammas"],
) -> Int[Array, "alphas betas gammas"]:
    """Return how many images are predicted rightly with all weights; ties go to the lowest label.

    The spans are those of these images.
    """
    alike = jnp.dot(-scaled(compared.divergences, spans_of(compared)), one_hot, precision=EXACT)

    def at_beta(beta: Array) -> Array:
        near = jnp.exp(-(beta - beta * compared.cosines))
        cached = jnp.dot(near, one_hot, precision=EXACT)

        def at_alpha(alpha: Array) -> Array:
            def at_gamma(gamma: Array) -> Array:
                logits = compared.zero_shot + gamma * alike + alpha * cached
                return jnp.sum(jnp.argmax(logits, axis=1) == labels)

            return jax.lax.map(at_gamma, gammas, batch_size=10)

        return jax.lax.map(at_alpha, alphas)

    return jnp.moveaxis(jax.lax.map(at_beta, betas), 0, 1)
