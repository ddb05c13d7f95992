"""DePT: a linear head beside CoOp that keeps what is specific to the base classes (CVPR 2024)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.methods import layers, text
from coop_jax.methods.base import Batch, Given, Images, Learned, Terms, cross_entropy

NAME = "DePT"
PAPER = "Zhang et al., CVPR 2024"

LIMITS = {"weight": (0, 1), "rate": (1e-6, 1e6)}


def default_config() -> dict[str, Any]:
    """Return the settings of DePT on CoOp, those of its official scripts.

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        class_token_position: "end", "middle" or "front".
        class_specific: one context per class (CSC) instead of one for all.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
        weight: of the linear head, in the loss and in the logits; CoOp has what is left of one.
        rate: of the head, as a factor on the context's learning rate.
    """
    return {
        "n_ctx": 16,
        "class_token_position": "end",
        "class_specific": False,
        "context_init": "",
        "weight": 0.7,
        "rate": 6.5,
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 10 epochs of batches of 4 images."""
    return {"epochs": 10, "batch_size": 4, "optimizer": {"learning_rate": 0.0035}}


class Channelwise(nnx.Module):
    """A learned scale and shift of each channel of features (FiLM, Perez et al., AAAI 2018)."""

    def __init__(self, size: int, rate: float):
        self.scale = Learned(jnp.ones(size, jnp.float32), rate=rate)
        self.bias = Learned(jnp.zeros(size, jnp.float32), rate=rate)

    def __call__(self, features: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
        """Return the features scaled and shifted, in the dtype of the variables."""
        return features.astype(self.scale.dtype) * self.scale[...] + self.bias[...]


class Head(nnx.Module):
    """Linear logits of images and of texts, both scaled and shifted before, unnormalised.

    What belongs to a class moves with it; of others there are no logits.
    """

    def __init__(self, given: Given, rate: float):
        size, count = given.clip.config.embedding, len(given.classes)
        self.of_texts, self.of_images = Channelwise(size, rate), Channelwise(size, rate)
        marks = {"per_class": True, "unseen": "initial", "rate": rate}
        drawn = layers.linear_init(given.rngs.params(), (count, size), size)
        self.weight = Learned(drawn, **marks)
        self.bias = Learned(layers.linear_init(given.rngs.params(), (count,), size), **marks)

    def logits(self, features: Float[Array, "rows size"]) -> Float[Array, "rows classes"]:
        """Return float32 logits of features that are scaled and shifted."""
        product = layers.product(features, self.weight[...].T)
        return (product + self.bias[...]).astype(jnp.float32)


class Method(text.Prompted):
    """CoOp's logits and those of a linear head, weighted.

    The head learns to tell images apart and, as well, the text features of their labels. Where a
    class was not trained on, CoOp's logits alone count, for all classes.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        others = {"weight", "rate"}
        words = {name: value for name, value in config.items() if name not in others}
        self.context, self.prompts = text.learned_prompts(given, **words)
        self.head = Head(given, config["rate"])
        self.weight, self.fuses = config["weight"], all(given.classes.seen)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the weighted sum of both kinds of logits; of new classes, cosines alone."""
        similar = clip.logits(images.features, texts)
        if not self.fuses:
            return similar
        return (1 - self.weight) * similar + self.weight * self.linear(images)

    def linear(self, images: Images) -> Float[Array, "batch classes"]:
        """Return the linear head's logits of images."""
        return self.head.logits(self.head.of_images(jnp.asarray(images.features)))

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the weighted cross-entropies of cosines and of the head, over texts and images."""
        labels, weights = batch.labels, batch.weights
        similar = clip.logits(batch.images.features, texts)
        of_labels = self.head.logits(self.head.of_texts(texts[labels]))
        both = jnp.concatenate([of_labels, self.linear(batch.images)])
        twice = jnp.concatenate([labels, labels]), jnp.concatenate([weights, weights])
        return {
            "cross_entropy": (1 - self.weight) * cross_entropy(similar, labels, weights),
            "linear": self.weight * cross_entropy(both, *twice),
        }
