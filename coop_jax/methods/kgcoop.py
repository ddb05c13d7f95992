"""KgCoOp: CoOp kept near hand-crafted prompts (Yao et al., CVPR 2023)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.methods import text
from coop_jax.methods.base import Batch, Fixed, Given, Terms, cross_entropy

NAME = "KgCoOp"
PAPER = "Yao et al., CVPR 2023"


def default_config() -> dict[str, Any]:
    """Return KgCoOp's settings, those of its official scripts.

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        class_specific: one context per class (CSC) instead of one for all.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
        weight: of the distance to the hand-crafted prompts' text features, which is one minus the
            mean cosine (8 here is 4 for the paper's squared Euclidean distance).
        template: the hand-crafted prompt, with {} for the class name (empty: the dataset's own).
    """
    return {
        "n_ctx": 4,
        "class_specific": False,
        "context_init": "a photo of a",
        "weight": 8.0,
        "template": "",
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 100 epochs of batches of 128 images."""
    return {"epochs": 100, "batch_size": 128}


class Method(text.Prompted):
    """CoOp whose text features must not go far from `bank`, those of hand-crafted prompts."""

    def __init__(self, given: Given, config: dict[str, Any]):
        self.context, self.prompts = text.learned_prompts(
            given,
            config["n_ctx"],
            context_init=config["context_init"],
            class_specific=config["class_specific"],
        )
        self.bank = Fixed(text.hand_crafted_features(given, config["template"]))
        self.weight = config["weight"]

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy and the weighted distance, over all classes of every step."""
        logits = self.logits(clip, texts, batch.images)
        cosines = jnp.sum(unit(texts) * self.bank[...], axis=-1)
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "knowledge": self.weight * (1 - cosines.mean()),
        }
