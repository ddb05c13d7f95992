"""A cache of unlabelled images that speak for their classes: what TFUP and TFUP-T share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Method

EXACT = precision(jnp.float32)

SHARPNESS = 10.0
"""The factor on cosines whose softmax tells how alike images are; not the CLIP's logit scale."""

CANDIDATES = 2
"""As many times more likely images of a class than are chosen, among which they are chosen."""

CACHE_SHARE, CACHE_SHOTS = 0.3, (9, 16)
"""The share of a class's images in a cache, and its bounds, where no number is said."""

WARM_UP = 0.3, 1.0
"""Alpha and beta of the labels of TFUP-T's warm-up, whatever the settings are."""

AT_ONCE = 4096
"""Images whose logits are in memory at a time."""

LIMITS = {"cache_shots": (0, 10**6)}


def default_config() -> dict[str, Any]:
    """Return the settings of both methods, those of the official code.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        cache_shots: images that are chosen for each class; 0 for 0.3 of the images for a class, at
            least 9 and at most 16.
        alpha: weight of the cache.
        beta: how sharply its weights fall with the distance.
    """
    return {"templates": (), "cache_shots": 0, "alpha": 0.3, "beta": 1.0}


class Chosen(NamedTuple):
    """The images that were chosen for the classes, class by class; one may stand for several."""

    places: Int[np.ndarray, " chosen"]
    labels: Int[np.ndarray, " chosen"]


class Cached(Method):
    """A cache of unlabelled images, and the logits that it gives.

    Attributes:
        bank: unnormalised text features `[classes, embedding]`.
        keys: normalised, `[images, embedding]`, none until `build`.
        labels: the class of each key, as `number` counts classes.
        number: of every class among those that the keys are of.
    """

    uses = frozenset({"unlabeled"})

    def __init__(self, given: Given, config: dict[str, Any]):
        """Make an empty cache, with which logits are zero-shot CLIP's.

        Args:
            given: what the method is made of.
            config: as `default_config`.
        """
        features = text.hand_crafted_features(given, *config["templates"], normalized=False)
        classes, embedding = features.shape
        self.bank = Fixed(features)
        self.keys = Kept(jnp.zeros((0, embedding), jnp.float32), varying=True)
        self.labels = Kept(jnp.zeros(0, jnp.int32), varying=True)
        self.number = Kept(jnp.arange(classes, dtype=jnp.int32), per_class=True)
        self.cache_shots = config["cache_shots"]
        self.alpha, self.beta = config["alpha"], config["beta"]

    def build(self, name: str, data: Data) -> Float[np.ndarray, "images embedding"]:
        """Fill the cache; return the features of all unlabelled images.

        Args:
            name: of the method.
            data: has them.

        Raises:
            InputError: there are none.
        """
        features = unlabeled_features(name, data)
        shots = self.cache_shots or int(
            np.clip(int(CACHE_SHARE * len(features) / len(self.number)), *CACHE_SHOTS)
        )
        chosen = representative(features, self.bank[...], shots)
        self.keys.set_value(unit(jnp.asarray(features[chosen.places])))
        self.labels.set_value(jnp.asarray(chosen.labels, jnp.int32))
        return features

    def with_cache(
        self,
        clip: CLIP,
        features: Float[Array, "images embedding"],
        texts: Float[Array, "classes embedding"],
        weights: tuple[float, float] | None = None,
    ) -> Float[Array, "images classes"]:
        """Return scaled cosines with texts, plus what the cache says.

        Args:
            clip: has the scale.
            features: of images, unnormalised.
            texts: of the classes, of any length.
            weights: alpha and beta; by default the method's own.
        """
        alpha, beta = weights or (self.alpha, self.beta)
        logits = clip.logits(features, texts)
        if not len(self.keys):
            return logits
        features, keys = unit(features), self.keys[...]
        cosines = jnp.dot(features, keys.T, precision=EXACT)
        affinity = cosines * alike(features, keys, texts)
        values = (self.labels[...][:, None] == self.number[...]).astype(jnp.float32)
        cached = jnp.dot(jnp.exp(-(beta - beta * affinity)), values, precision=EXACT)
        return logits + alpha * cached

    def pseudo_labels(
        self, clip: CLIP, features: Float[np.ndarray, "images embedding"]
    ) -> Int[np.ndarray, " images"]:
        """Return the likeliest class of images by the hand-crafted texts and the cache.

        The cache counts as `WARM_UP` says.
        """
        labels = np.empty(len(features), np.int32)
        for start in range(0, len(features), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            logits = self.with_cache(clip, jnp.asarray(features[some]), self.bank[...], WARM_UP)
            labels[some] = np.argmax(logits, axis=1)
        return labels


def unlabeled_features(name: str, data: Data) -> Float[np.ndarray, "images embedding"]:
    """Return the features of all unlabelled images, under the test transform.

    Args:
        name: of the method.
        data: has them.

    Raises:
        InputError: there are none.
    """
    if data.unlabeled is None or not len(data.unlabeled):
        raise InputError(
            f"{name}: expected unlabelled images, got none; choose a dataset that has some"
        )
    images: Images = data.unlabeled.images()
    return np.asarray(images.features, np.float32)


def log_probabilities(
    features: Float[Array, "images embedding"], texts: Float[Array, "classes embedding"]
) -> Float[Array, "images classes"]:
    """Return how likely images are of the classes, by cosines times `SHARPNESS`."""
    cosines = jnp.dot(unit(features), unit(texts).T, precision=EXACT)
    return jax.nn.log_softmax(SHARPNESS * cosines, axis=-1)


def divergences(
    one: Float[Array, "ones classes"], other: Float[Array, "others classes"]
) -> Float[Array, "ones others"]:
    """Return the Kullback-Leibler divergence of each of the others from each one.

    Args:
        one: log probabilities, by which differences are weighted.
        other: log probabilities.
    """
    # What all have in common is left out first, since the difference is small beside it.
    weights, common = jnp.exp(one), other.mean(axis=0)
    own = jnp.sum(weights * (one - common), axis=-1, keepdims=True)
    return own - jnp.dot(weights, (other - common).T, precision=EXACT)


def alike(
    features: Float[Array, "images embedding"],
    keys: Float[Array, "keys embedding"],
    texts: Float[Array, "classes embedding"],
) -> Float[Array, "images keys"]:
    """Return how alike images and keys are, from 0 for the farthest key of an image to 2.

    They are far where what the texts say of the one diverges from what they say of the other.
    """
    far = divergences(log_probabilities(features, texts), log_probabilities(keys, texts))
    lowest, highest = far.min(axis=1, keepdims=True), far.max(axis=1, keepdims=True)
    span = highest - lowest
    return 2 * (1 - (far - lowest) / jnp.where(span > 0, span, 1))


def representative(
    features: Float[np.ndarray, "images embedding"],
    texts: Float[Array, "classes embedding"],
    shots: int,
) -> Chosen:
    """Return so many images for each class: of twice as many, the likeliest, those in the middle.

    These are the ones from which the others diverge least, the most central first. Of equal ones
    the first are taken.
    """
    log = np.concatenate(
        [
            np.asarray(log_probabilities(jnp.asarray(features[start : start + AT_ONCE]), texts))
            for start in range(0, len(features), AT_ONCE)
        ]
    )
    places = []
    for label in range(log.shape[1]):
        likely = np.argsort(-log[:, label], kind="stable")[: CANDIDATES * shots]
        far = np.asarray(divergences(jnp.asarray(log[likely]), jnp.asarray(log[likely])))
        places.append(likely[np.argsort(far.sum(axis=1), kind="stable")[:shots]])
    labels = np.repeat(np.arange(len(places), dtype=np.int32), list(map(len, places)))
    return Chosen(np.concatenate(places), labels)
