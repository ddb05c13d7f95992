"""DePT on CoCoOp: a linear head beside contexts conditioned on the image (CVPR 2024)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.methods import conditioned, layers
from coop_jax.methods.base import Batch, Given, Images, Terms

NAME = "DePT on CoCoOp"
PAPER = "Zhang et al., CVPR 2024"

LIMITS = {"weight": (0, 1), "rate": (1e-6, 1e6)}


def default_config() -> dict[str, Any]:
    """Return CoCoOp's settings and DePT's.

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
        weight: of the linear head, in the loss and in the logits; CoCoOp has what is left of one.
        rate: of the head, as a factor on the learning rate of context and meta-net.
    """
    return {"n_ctx": 4, "context_init": "a photo of a", "weight": 0.7, "rate": 6.5}


def recipe() -> dict[str, Any]:
    """Return what CoCoOp trains with: 10 epochs of batches of one image."""
    return {"batch_size": 1, "epochs": 10}


class Method(conditioned.Conditioned):
    """CoCoOp's logits and those of a linear head, weighted.

    The head learns to tell images apart and, as well, the text features that their labels have for
    them. Where a class was not trained on, CoCoOp's logits alone count, for all classes.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config)
        self.head = layers.DecoupledHead(given, config["weight"], config["rate"])

    def logits(self, clip: CLIP, texts: tuple[()], images: Images) -> Float[Array, "batch classes"]:
        """Return the weighted sum of both kinds of logits; of new classes, cosines alone."""
        features = jnp.asarray(images.features)
        similar = clip.scaled(self.cosines(clip, unit(features)))
        return self.head.fused(similar, features)

    def losses(self, clip: CLIP, texts: tuple[()], batch: Batch) -> Terms:
        """Return the weighted cross-entropies of cosines and of the head, over texts and images."""
        features, labels = jnp.asarray(batch.images.features), batch.labels
        similar, of_labels = self.with_labels(clip, unit(features), labels)
        return self.head.losses(clip.scaled(similar), of_labels, features, labels, batch.weights)
