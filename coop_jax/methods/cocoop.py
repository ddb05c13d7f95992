"""CoCoOp: a context conditioned on the image (Zhou et al., CVPR 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.classes import spelled
from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Given, Images, Learned

NAME = "CoCoOp"
PAPER = "Zhou et al., CVPR 2022"

REDUCTION = 16
"""The meta-net's hidden layer is this much narrower than the image features."""


def default_config() -> dict[str, Any]:
    """Return CoCoOp's settings (coop_protocol section 9).

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
    """
    return {"n_ctx": 4, "context_init": "a photo of a"}


def recipe() -> dict[str, Any]:
    """Return what the paper trains with: 10 epochs of batches of one image."""
    return {"batch_size": 1, "epochs": 10}


def label(settings: Mapping[str, Any]) -> str:
    """Return what reports call CoCoOp with these settings."""
    phrase = spelled([settings["context_init"]])[0].strip()
    parts = [NAME, f"M = {settings['n_ctx']}", "end"]
    return ", ".join([*parts, *[f'from "{phrase}"'] * bool(phrase)])


class Method(base.Method):
    """Logits of prompts whose context `[M, width]` is shifted by each image's meta-net output."""

    texts_per_image = True

    def __init__(self, given: Given, config: dict[str, Any]):
        context, placeholder = text.initial_context(given, config["context_init"], config["n_ctx"])
        self.context = Learned(context)
        self.prompts = text.Prompts(given, placeholder, len(context))
        embedding, width = given.clip.config.embedding, context.shape[-1]
        hidden = embedding // REDUCTION
        self.meta_net = layers.TwoLayers(given.rngs, embedding, hidden, width)

    def settings(self) -> dict[str, Any]:
        """Return M, as a phrase may have changed it."""
        return {"n_ctx": self.context.shape[-2]}

    def logits(self, clip: CLIP, texts: tuple[()], images: Images) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities of each image with its own prompts, float32.

        As many images are worked on at once as their texts' tokens allow.
        """

        def of_images(images: Float[Array, "some embedding"]) -> Float[Array, "some classes"]:
            context = self.context[...][None] + self.meta_net(images)[:, None]

            def similarity(texts: Float[Array, "some shards rows embedding"]) -> Array:
                exact = precision(jnp.float32)
                return jnp.einsum("be,bgre->bgr", images, unit(texts), precision=exact)[..., None]

            return self.prompts.encode(clip, context, head=similarity)[..., 0]

        features = unit(images.features)
        at_once = self.prompts.at_once
        if len(features) > at_once:
            grouped = jax.checkpoint(lambda image: of_images(image[None])[0])
            similarity = jax.lax.map(grouped, features, batch_size=at_once)
        else:
            similarity = of_images(features)
        return clip.scaled(similarity)
