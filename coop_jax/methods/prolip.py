"""ProLIP: the last projection of the image tower, trained near where it was (Fahes et al.)."""

import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax import optim
from coop_jax.clip import CLIP
from coop_jax.clip.config import ViTConfig
from coop_jax.clip.transformer import precision
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
    Stage,
    Terms,
    cross_entropy,
)

NAME = "ProLIP"
PAPER = "Fahes et al., arXiv 2410.05270"

EXACT = precision(jnp.float32)

RULES = ("inverse", "inverse_square", "constant")

EPSILON = 1e-4
"""Of Adam."""

logger = logging.getLogger(__name__)

LIMITS = {"search_steps": (0, 10**5), "search_views": (0, 1000)}


def default_config() -> dict[str, Any]:
    """Return ProLIP's settings, those of the official scripts without validation images.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        weight_rule: of the distance to CLIP's projection: "inverse" for one over the shots,
            "inverse_square" for one over their square, or "constant" for `weight`.
        weight: of the distance, with the rule "constant".
        search: choose learning rate and weight on validation images instead; then each pair is
            trained for `search_steps`, all of `search_views` in turn, and the run's epochs and
            optimizer do not count.
        search_steps: steps of each training, on all images at once.
        search_views: augmented views of each training image, which are all kept in memory.
        rates: learning rates that the search tries.
        weights: weights that it tries at each.
    """
    return {
        "templates": (),
        "weight_rule": "inverse",
        "weight": 0.1,
        "search": False,
        "search_steps": 300,
        "search_views": 300,
        "rates": (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8),
        "weights": (10.0, 1.0, 0.1, 0.01, 0.001, 0.0001, 0.0),
    }


def recipe() -> dict[str, Any]:
    """Return what the official code trains with: 300 epochs of one step on all images by Adam."""
    return {
        "epochs": 300,
        "batch_size": 10**6,
        "optimizer": {
            "name": "adam",
            "learning_rate": 1e-5,
            "epsilon": EPSILON,
            "weight_decay": 0.0,
            "warmup_epochs": 0,
        },
        "augmentation": {"scale": (0.5, 1.0)},
    }


class Search(NamedTuple):
    """Validation accuracy in percent by rate and weight, and the best projection, the first."""

    accuracy: Float[np.ndarray, "rates weights"]
    kernel: Float[Array, "width embedding"]


class Method(base.Method):
    """Cosines of hand-crafted text features and image features through a trained projection.

    Of a ResNet the kernel of the attention pooling's output is trained, and its bias stays. It
    serves any class names.

    Attributes:
        bank: text features `[classes, embedding]`.
        kernel: the projection `[width, embedding]`.
        weight: of the distance, a scalar, as `prepare` sets it.
    """

    takes = ("unprojected",)

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["weight_rule"] not in RULES:
            raise InputError(
                f"weight_rule: expected one of {', '.join(RULES)}, got"
                f" {config['weight_rule']!r:.80}; choose one"
            )
        for name in ("search_steps", "search_views"):
            if config[name] < 1:
                raise InputError(f"{name}: expected at least 1, got {config[name]}; raise it")
        for name in ("rates", "weights"):
            if not config[name]:
                raise InputError(f"{name}: expected at least one, got none; give some")
        kernel, _ = projection(given.clip)
        self.bank = Fixed(text.hand_crafted_features(given, *config["templates"]))
        self.kernel = Learned(jnp.array(kernel, jnp.float32))
        self.weight = Kept(jnp.float32(config["weight"]))
        self.rule = config["weight_rule"]
        self.searches = config["search"]
        self.steps, self.views_kept = config["search_steps"], config["search_views"]
        self.rates, self.weights = tuple(config["rates"]), tuple(config["weights"])
        self.uses = frozenset({"validation"}) if self.searches else frozenset()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage: of the run's steps or, with a search, of none."""
        return (Stage(epochs=0) if self.searches else Stage.of(config),)

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosines."""
        return projected_logits(clip, self.kernel[...], texts, jnp.asarray(images.unprojected))

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy and the weighted squared distance to CLIP's projection."""
        logits = self.logits(clip, texts, batch.images)
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "distance": self.weight[...] * distance(clip, self.kernel[...]),
        }

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Set the weight of the distance; or search, and take the best projection, the first."""
        if not self.searches:
            shots = float(np.bincount(data.train.labels).max())
            if self.rule != "constant":
                weight = shots ** (-1 if self.rule == "inverse" else -2)
                self.weight[...] = jnp.float32(weight)
            return data
        found = self.search(clip, data)
        rate, weight = np.unravel_index(np.argmax(found.accuracy), found.accuracy.shape)
        self.kernel[...], self.weight[...] = found.kernel, jnp.float32(self.weights[weight])
        logger.info(
            "ProLIP: learning rate %g, weight %g, few-shot validation accuracy %.1f %%",
            self.rates[rate],
            self.weights[weight],
            found.accuracy[rate, weight],
        )
        return data

    def search(self, clip: CLIP, data: Data) -> Search:
        """Train at every learning rate with every weight, and look at the validation images."""
        assert data.val is not None
        views = jnp.asarray(data.train.images(self.views_kept).unprojected)
        others = jnp.asarray(data.val.images().unprojected)
        labels, texts = jnp.asarray(data.train.labels), self.bank[...]
        trained = jax.jit(functools.partial(fitted, clip, texts))
        accuracy, best = np.zeros((len(self.rates), len(self.weights))), self.kernel[...]
        for place, rate in enumerate(self.rates):
            config = optim.OptimizerConfig(learning_rate=rate, warmup_epochs=0)
            rates = jnp.asarray(optim.learning_rates(config, self.steps, 1), jnp.float32)
            for other, weight in enumerate(self.weights):
                kernel = trained(views, labels, rates, jnp.float32(weight))
                predicted = np.argmax(projected_logits(clip, kernel, texts, others), axis=-1)
                percent = 100 * np.mean(predicted == data.val.labels)
                best = kernel if percent > accuracy.max() else best
                accuracy[place, other] = percent
        return Search(accuracy, best)


def projection(
    clip: CLIP,
) -> tuple[Float[Array, "width embedding"], Float[Array, " embedding"] | None]:
    """Return the kernel of an image tower's last projection and, of a ResNet, its bias.

    Raises:
        InputError: the tower has none.
    """
    vision: Any = clip.vision
    if not isinstance(clip.config.vision, ViTConfig):
        return vision.pool.output.kernel[...], vision.pool.output.bias[...]
    if not clip.config.vision.projection:
        raise InputError(
            "ProLIP: expected a CLIP whose image tower ends with a projection, got one without;"
            " choose another, e.g. ViT-B/16"
        )
    return vision.projection[...], None


def projected_logits(
    clip: CLIP,
    kernel: Float[Array, "width embedding"],
    texts: Float[Array, "classes embedding"],
    images: Float[Array, "images width"],
) -> Float[Array, "images classes"]:
    """Return scaled cosines of texts and what a projection makes of images."""
    features = jnp.dot(images.astype(jnp.float32), kernel, precision=EXACT)
    bias = projection(clip)[1]
    return clip.logits(features if bias is None else features + bias, texts)


def distance(clip: CLIP, kernel: Float[Array, "width embedding"]) -> Float[Array, ""]:
    """Return the squared distance of a projection to CLIP's own, summed over all entries."""
    return jnp.sum((kernel - projection(clip)[0].astype(jnp.float32)) ** 2)


def fitted(
    clip: CLIP,
    texts: Float[Array, "classes embedding"],
    views: Float[Array, "views images width"],
    labels: Int[Array, " images"],
    rates: Float[Array, " steps"],
    weight: Float[Array, ""],
) -> Float[Array, "width embedding"]:
    """Return the projection trained on another view of all images at each step, in turn."""
    optimizer = optim.create(
        optim.OptimizerConfig(name="adam", epsilon=EPSILON, weight_decay=0.0, warmup_epochs=0)
    )
    everyone = jnp.ones(len(labels), jnp.float32)

    def loss(kernel: Array, images: Array) -> Array:
        logits = projected_logits(clip, kernel, texts, images)
        return cross_entropy(logits, labels, everyone) + weight * distance(clip, kernel)

    def step(carry: tuple[Any, Any], inputs: tuple[Array, Array]) -> tuple[tuple[Any, Any], None]:
        kernel, state = carry
        rate, place = inputs
        gradients: Any = {"learned": jax.grad(loss)(kernel, views[place]), "frozen": None}
        parameters: Any = {"learned": kernel, "frozen": None}
        updates: Any
        updates, state = optimizer.update(gradients, state, parameters, learning_rate=rate)
        return (kernel + updates["learned"], state), None

    start = projection(clip)[0].astype(jnp.float32)
    begun: Any = {"learned": start, "frozen": None}
    places = jnp.arange(len(rates)) % len(views)
    return jax.lax.scan(step, (start, optimizer.init(begun)), (rates, places))[0][0]
