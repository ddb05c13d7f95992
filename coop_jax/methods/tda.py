"""TDA: caches of test images, filled as they come (Karmanov et al., CVPR 2024)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import Given, Images, Stage, Views
from coop_jax.methods.views import confident_count, marginal_entropy, most_confident

NAME = "TDA"
PAPER = "Karmanov et al., CVPR 2024"

EXACT = precision(jnp.float32)

LIMITS = {
    **dict.fromkeys(("positive_capacity", "negative_capacity"), (1, 1024)),
    **dict.fromkeys(("entropy_range", "probability_range", "confident_share"), (0, 1)),
    "views": (1, 1024),
}


def default_config() -> dict[str, Any]:
    """Return TDA's settings, those of the official code for ImageNet.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        positive_capacity: images of each class that the positive cache holds.
        positive_alpha: weight of the positive cache; 0 does without it.
        positive_beta: how sharply its weights fall with the distance.
        negative_capacity, negative_alpha, negative_beta: the same of the negative cache.
        entropy_range: entropies, in nats over log2 of the number of classes, between which an image
            enters the negative cache.
        probability_range: probabilities between which the negative cache speaks against a class.
        views: of every test image; 64 in the official code for ImageNet and its variants.
        confident_share: of several views, those of lowest entropy, whose mean counts.
    """
    return {
        "templates": (),
        "positive_capacity": 3,
        "positive_alpha": 2.0,
        "positive_beta": 5.0,
        "negative_capacity": 2,
        "negative_alpha": 0.117,
        "negative_beta": 1.0,
        "entropy_range": (0.2, 0.5),
        "probability_range": (0.03, 1.0),
        "views": 1,
        "confident_share": 0.1,
    }


class Seen(NamedTuple):
    """CLIP's outputs for an image: the mean over its confident views.

    `feature` is a mean of normalised ones and not normalised again; `entropy` is of the mean
    probabilities, in nats.
    """

    feature: Float[Array, "*images embedding"]
    logits: Float[Array, "*images classes"]
    entropy: Float[Array, "*images"]
    probabilities: Float[Array, "*images classes"]


class Cache(NamedTuple):
    """The images of lowest entropy that were predicted as each class, the lowest first.

    `entropy` is infinite where there is none yet. `classes` are those that an image speaks of.
    """

    keys: Float[Array, "classes capacity embedding"]
    classes: Bool[Array, "classes capacity classes"] | None
    entropy: Float[Array, "classes capacity"]


class Memory(NamedTuple):
    """The two caches; in the positive one an image speaks of the class it was predicted as."""

    positive: Cache
    negative: Cache


class Method(base.Method):
    """Zero-shot logits, plus what a positive cache says, minus what a negative one says."""

    uses = frozenset({"test_images"})

    def __init__(self, given: Given, config: dict[str, Any]):
        for name in ("entropy_range", "probability_range"):
            if len(config[name]) != 2 or config[name][0] > config[name][1]:
                raise InputError(
                    f"{name}: expected its lowest and highest value, got {config[name]}; correct it"
                )
        self.prompts = text.HandCrafted(given, config["templates"] or (given.template,))
        self.shape = (len(given.classes), given.clip.config.embedding)
        self.positive, self.negative = (
            tuple(config[f"{name}_{part}"] for part in ("capacity", "alpha", "beta"))
            for name in ("positive", "negative")
        )
        self.entropy_range = tuple(config["entropy_range"])
        self.probability_range = tuple(config["probability_range"])
        views = config["views"]
        self.views = Views(test=views)
        self.confident = confident_count(views, config["confident_share"]) if views > 1 else 1

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return no stage."""
        return ()

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features: each template's normalised, averaged over templates."""
        return unit(self.prompts.encode(clip)).mean(axis=0)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return zero-shot logits, without a memory."""
        return self.see(clip, texts, images).logits

    def see(self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images) -> Seen:
        """Return what the CLIP makes of each image."""
        features = jnp.asarray(images.features)

        def of_image(views: Float[Array, "views embedding"]) -> Seen:
            logits = clip.logits(views, texts)
            chosen = most_confident(logits, self.confident)
            views, logits = unit(views)[chosen], logits[chosen]
            return Seen(
                views.mean(axis=0),
                logits.mean(axis=0),
                marginal_entropy(logits),
                jax.nn.softmax(logits, axis=-1).mean(axis=0),
            )

        return jax.vmap(of_image)(features.reshape(len(features), self.views.test, -1))

    def start_stream(self) -> Memory:
        """Return empty caches."""
        (classes, embedding), caches = self.shape, []
        for capacity, is_negative in ((self.positive[0], False), (self.negative[0], True)):
            rows = (classes, capacity)
            keys = jnp.zeros((*rows, embedding), jnp.float32)
            spoken_of = jnp.zeros((*rows, classes), bool) if is_negative else None
            caches.append(Cache(keys, spoken_of, jnp.full(rows, jnp.inf, jnp.float32)))
        return Memory(*caches)

    def stream(
        self,
        clip: CLIP,
        texts: Float[Array, "classes embedding"],
        images: Images,
        memory: Memory,
    ) -> tuple[Float[Array, "one classes"], Memory]:
        """Put the next image into the caches; return its logits with them, and the caches."""
        seen = jax.tree.map(lambda array: array[0], self.see(clip, texts, images))
        feature, logits, entropy, probabilities = seen
        predicted = jnp.argmax(logits)
        (low, high), (least, most) = self.entropy_range, self.probability_range
        share = entropy / jnp.log2(len(logits))
        is_unsure = (low < share) & (share < high)
        likely = (least < probabilities) & (probabilities < most)
        memory = Memory(
            remember(memory.positive, predicted, Cache(feature, None, entropy)),
            remember(
                memory.negative,
                predicted,
                Cache(feature, likely, jnp.where(is_unsure, entropy, jnp.inf)),
            ),
        )
        _, alpha, beta = self.positive
        logits = logits + alpha * near(memory.positive, feature, beta).sum(axis=1)
        _, alpha, beta = self.negative
        against = near(memory.negative, feature, beta)
        against = jnp.einsum("ck,ckn->n", against, memory.negative.classes, precision=EXACT)
        return (logits - alpha * against)[None], memory


def remember(cache: Cache, label: Int[Array, ""], image: Cache) -> Cache:
    """Return the cache with an image in its class's row, if its entropy is low enough.

    Args:
        cache: what it may enter; of two images of one entropy the older one stays in front.
        label: the class that it was predicted as.
        image: a row for it; one of infinite entropy does not enter.
    """
    capacity = cache.entropy.shape[1]
    order = jnp.argsort(jnp.append(cache.entropy[label], image.entropy), stable=True)[:capacity]

    def insert(array: Array, new: Array) -> Array:
        return array.at[label].set(jnp.concatenate([array[label], new[None]])[order])

    return jax.tree.map(insert, cache, image)


def near(
    cache: Cache, feature: Float[Array, " embedding"], beta: float
) -> Float[Array, "classes capacity"]:
    """Return weights that fall with the distance of a cache's images; 0 where there is none."""
    affinity = jnp.einsum("cke,e->ck", cache.keys, feature, precision=EXACT)
    return jnp.where(jnp.isfinite(cache.entropy), jnp.exp(-beta * (1 - affinity)), 0)
