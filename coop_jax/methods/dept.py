"""DePT: a linear head beside CoOp that keeps what is specific to the base classes (CVPR 2024)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.methods import layers, text
from coop_jax.methods.base import Batch, Given, Images, Terms

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


class Method(text.Prompted):
    """CoOp's logits and those of a linear head, weighted.

    The head learns to tell images apart and, as well, the text features of their labels. Where a
    class was not trained on, CoOp's logits alone count, for all classes.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        others = {"weight", "rate"}
        words = {name: value for name, value in config.items() if name not in others}
        self.context, self.prompts = text.learned_prompts(given, **words)
        self.head = layers.DecoupledHead(given, config["weight"], config["rate"])

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the weighted sum of both kinds of logits; of new classes, cosines alone."""
        features = jnp.asarray(images.features)
        return self.head.fused(clip.logits(features, texts), features)

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the weighted cross-entropies of cosines and of the head, over texts and images."""
        features, labels = jnp.asarray(batch.images.features), batch.labels
        similar = clip.logits(features, texts)
        return self.head.losses(similar, texts[labels], features, labels, batch.weights)
