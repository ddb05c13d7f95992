"""PLOT: several prompts, matched with the patches of an image by optimal transport (ICLR 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.clip.model import cosines
from coop_jax.errors import InputError
from coop_jax.methods import base, text, transport
from coop_jax.methods.base import Given, Images, Learned

NAME = "PLOT"
PAPER = "Chen et al., ICLR 2023"

LIMITS = {"prompts": (0, 256)}


def default_config() -> dict[str, Any]:
    """Return PLOT's settings, those of its official scripts.

    Settings:
        prompts: how many contexts there are, each shared by all classes.
        n_ctx: number of context vectors M of each.
        global_logits: add the logits of whole images and the mean of the prompts' text features, as
            the official code does on ImageNet alone.
        stop_together: as in the official code, all plans of a batch have as many iterations, and
            the logits of an image depend on those beside it, and a little on the number of devices,
            since copies of images fill the batch up to a multiple of that.
    """
    return {"prompts": 4, "n_ctx": 16, "global_logits": False, "stop_together": False}


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 50 epochs of batches of 128."""
    return {"epochs": 50, "batch_size": 128}


class Method(base.Method):
    """Logits of the similarities of patches and prompts, weighted by their transport plan.

    `context` is `[prompts, M, width]`. A ResNet's patches are what all positions of its attention
    pooling attend to, a vision transformer's the projected outputs of its last block.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        count, n_ctx = config["prompts"], config["n_ctx"]
        if min(count, n_ctx) < 1:
            raise InputError(
                f"PLOT: expected at least one prompt and one context vector, got {count} and"
                f" {n_ctx}; raise prompts or n_ctx"
            )
        assert given.clip.vision.local_width  # refuses towers whose patches have no projection
        shape = (count, n_ctx, given.clip.config.text.transformer.width)
        drawn = 0.02 * jax.random.normal(given.rngs.params(), shape, jnp.float32)
        self.context = Learned(drawn)
        self.prompts = text.Prompts(given, text.placeholder(given, n_ctx), n_ctx)
        self.stop_together = config["stop_together"]
        self.adds_global = config["global_logits"]
        self.takes = ("features", "patches") if self.adds_global else ("patches",)

    def word_vectors(self) -> dict[str, Array]:
        """Return the context of every prompt."""
        contexts = enumerate(self.context[...], start=1)
        return {f"prompt {number}": context for number, context in contexts}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "prompts classes embedding"]:
        """Return unnormalised text features of all classes under every prompt."""
        return self.prompts.encode(clip, self.context[...])

    def logits(
        self, clip: CLIP, texts: Float[Array, "prompts classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the scaled similarities under the plans, float32."""
        patches = jnp.asarray(images.patches)
        similarities = transport.similarity(patches, texts, stop_together=self.stop_together)
        if self.adds_global:
            whole = texts.astype(jnp.float32).mean(axis=0)
            similarities += cosines(jnp.asarray(images.features), whole)
        return clip.scaled(similarities)
