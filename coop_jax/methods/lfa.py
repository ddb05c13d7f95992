"""LFA: one matrix that turns image features towards the texts (Ouali et al., ICCV 2023)."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax import optim
from coop_jax.clip import CLIP, unit
from coop_jax.methods import alignment, base, layers, text
from coop_jax.methods.alignment import Fit, Steps
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Stage

NAME = "LFA"
PAPER = "Ouali et al., ICCV 2023"

SEEN = 0.75
"""The part of the images that a step sees, where each has one view."""

REFINEMENT = ("weight_decay", "neighbors", "margin", "noise", "dropout")
"""Settings of the steps."""

SCHEDULE = {"schedule_by": "step", "warmup_epochs": 0, "final_learning_rate": 1e-7}

logger = logging.getLogger(__name__)

LIMITS = {
    "augmented_passes": (0, 1000),
    "beta": (0, 1),
    "tries": (1, 1000),
    "splits": (1, 1000),
    "steps": (1, 10**6),
    "neighbors": (1, 10**6),
    "margin": (0, 100),
    "dropout": (0, 0.99),
}


def default_config() -> dict[str, Any]:
    """Return LFA's settings, those of the official code for ImageNet with all classes.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        augmented_passes: augmented views of each training image, beside the image itself.
        cross_validate: choose beta on splits of the training images; then they alone are fitted,
            without their views, before the matrix is refined.
        beta: how much of the identity there is in the first matrix, without cross-validation.
        tries: values of beta from 0 to 1 that are tried.
        splits: for each of them.
        steps: of the refinement.
        learning_rate: of AdamW, first.
        weight_decay: of AdamW.
        neighbors: texts nearest to an image that its own should be nearer than.
        margin: by how much, times what two texts' cosine lacks to one.
        noise: the deviation of what is added to features in half of the steps.
        dropout: of features in half of the steps.
    """
    return {
        "templates": (),
        "augmented_passes": 4,
        "cross_validate": True,
        "beta": 0.9,
        "tries": 25,
        "splits": 3,
        "steps": 200,
        "learning_rate": 5e-4,
        "weight_decay": 5e-4,
        "neighbors": 3,
        "margin": 0.25,
        "noise": 0.035,
        "dropout": 0.05,
    }


def recipe() -> dict[str, Any]:
    """Return large crops, as near to the official five crops as random ones are."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Method(base.Method):
    """Cosines of texts and of image features times a matrix.

    It serves any class names. Where a class was not trained on, the moving average of the matrix
    counts, for all classes.

    Attributes:
        bank: text features `[classes, embedding]`.
        matrix, average: `[embedding, embedding]`, the identity until `prepare`.
        seed: of the splits and the steps.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        self.bank = Fixed(unit(text.hand_crafted_features(given, *config["templates"])))
        size = self.bank.shape[1]
        self.matrix, self.average = (Kept(jnp.eye(size, dtype=jnp.float32)) for _ in range(2))
        self.seed = Kept(jax.random.randint(given.rngs.params(), (), 0, 2**31 - 1, jnp.int32))
        self.passes, self.count, self.rate = (
            config[name] for name in ("augmented_passes", "steps", "learning_rate")
        )
        self.beta = None if config["cross_validate"] else config["beta"]
        self.tries, self.splits = config["tries"], config["splits"]
        self.refinement = tuple((name, config[name]) for name in REFINEMENT)
        self.is_known = all(given.classes.seen)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps of the frame: `prepare` takes its own."""
        return (Stage(epochs=0),)

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosines."""
        matrix = self.matrix[...] if self.is_known else self.average[...]
        return clip.logits(layers.product(unit(jnp.asarray(images.features)), matrix), texts)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Fit the matrix in closed form, then refine it."""
        views, labels = self.views_of(data), np.asarray(data.train.labels)
        rng = np.random.default_rng(int(self.seed[...]))
        start = self.first(views, labels, rng)
        fit = self.refined(start, views, labels, self.steps_of(views, rng))
        self.matrix[...], self.average[...] = fit.matrix, fit.average
        logger.info("LFA: loss %.4g after %d steps", fit.losses[-1], len(fit.losses))
        return data

    def views_of(self, data: Data) -> Float[np.ndarray, "views images embedding"]:
        """Return features of length one, of the images themselves and of their augmented views."""
        return np.asarray(unit(jnp.asarray(data.train.with_augmented(self.passes).features)))

    def first(
        self,
        views: Float[np.ndarray, "views images embedding"],
        labels: Int[np.ndarray, " images"],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "embedding embedding"]:
        """Return the matrix before the refinement."""
        texts = np.asarray(self.bank[...])
        if self.beta is not None:
            rows, all_labels = views.reshape(-1, views.shape[-1]), np.tile(labels, len(views))
            return alignment.aligned(rows, texts[all_labels], self.beta)
        count = self.tries * self.splits
        orders = np.stack([rng.permutation(len(labels)) for _ in range(count)])
        betas, scores = alignment.cross_validated(
            views[0], labels, texts, orders.reshape(self.tries, self.splits, -1)
        )
        best = int(np.argmax(scores))
        logger.info("LFA: beta = %.4g, accuracy %.1f %% on splits", betas[best], scores[best])
        return alignment.aligned(views[0], texts[labels], float(betas[best]))

    def steps_of(
        self, views: Float[np.ndarray, "views images embedding"], rng: np.random.Generator
    ) -> Steps:
        """Return random steps: all images in one of several views, or a part of the images."""
        steps, count = self.count, views.shape[1]
        size = count if len(views) > 1 else max(int(SEEN * count), 1)
        images = np.stack([rng.permutation(count)[:size] for _ in range(steps)])
        return self.steps(rng.integers(len(views), size=steps), images)

    def steps(self, view: Int[np.ndarray, " steps"], images: Int[np.ndarray, "..."]) -> Steps:
        """Return steps with their rates and keys."""
        config = optim.OptimizerConfig(learning_rate=self.rate, **SCHEDULE)
        rates = optim.learning_rates(config, len(view), 1)
        with jax.threefry_partitionable(True):
            key = jax.random.key(self.seed[...], impl="threefry2x32")
            keys = jax.random.split(key, len(view))
        return Steps(jnp.asarray(view), jnp.asarray(images), jnp.asarray(rates, jnp.float32), keys)

    def refined(
        self,
        start: Float[np.ndarray, "embedding embedding"],
        views: Float[np.ndarray, "views images embedding"],
        labels: Int[np.ndarray, " images"],
        steps: Steps,
    ) -> Fit:
        """Return the matrix and its average after these steps."""
        momenta = jnp.asarray(alignment.momenta_of(len(steps.view)), jnp.float32)
        given = (jnp.asarray(start, jnp.float32), jnp.asarray(views), jnp.asarray(labels))
        return alignment.refine(*given, self.bank[...], steps, momenta, **dict(self.refinement))
