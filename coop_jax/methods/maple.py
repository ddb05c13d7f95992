"""MaPLe: image prompts that follow the text prompts (Khattak et al., CVPR 2023)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.clip.transformer import precision
from coop_jax.methods import deep, layers, text
from coop_jax.methods.base import Given, Images, Learned

NAME = "MaPLe"
PAPER = "Khattak et al., CVPR 2023"


def default_config() -> dict[str, Any]:
    """Return MaPLe's settings, those of its official scripts.

    Settings:
        n_ctx: number of context vectors, and of prompts of the vision tower.
        depth: layers of both towers that have prompts, from the first on.
        context_init: a phrase whose first `n_ctx` tokens start the context, if that are 4 or
            fewer; empty: normal with deviation 0.02.
    """
    return {"n_ctx": 2, "depth": 9, "context_init": "a photo of a"}


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with from base to new classes."""
    return {"epochs": 5, "batch_size": 4, "optimizer": {"learning_rate": 0.0035}}


class Coupling(nnx.Module):
    """Linear maps from text prompts to image prompts, `[maps, width, vision width]`."""

    def __init__(self, given: Given, maps: int):
        rngs, width = given.rngs, given.clip.config.text.transformer.width
        outputs = layers.vision_config(given, NAME).width
        kernel = layers.linear_init(rngs.params(), (width, outputs), width)
        bias = layers.linear_init(rngs.params(), (outputs,), width)
        # The official maps of all layers are copies of one.
        self.kernel = Learned(jnp.broadcast_to(kernel, (maps, width, outputs)))
        self.bias = Learned(jnp.broadcast_to(bias, (maps, outputs)))

    def __call__(self, prompts: Float[Array, "maps n width"]) -> Float[Array, "maps n outputs"]:
        """Return the image prompts that belong to each layer's text prompts."""
        exact = precision(jnp.float32)
        mapped = jnp.einsum("mnw,mwv->mnv", prompts, self.kernel[...], precision=exact)
        return mapped + self.bias[...][:, None]


class Method(text.Prompted):
    """Logits of prompts that are learned in the text tower and mapped into the vision tower."""

    takes = ("pixels",)

    def __init__(self, given: Given, config: dict[str, Any]):
        depth = config["depth"]
        deep.check(given, NAME, {"depth (text)": depth, "depth (vision)": depth})
        context, self.prompts = deep.first_context(given, config["context_init"], config["n_ctx"])
        self.context, self.coupling = Learned(context), Coupling(given, 1)
        self.deep_context = deep.deeper(given, depth, *context.shape)
        self.deep_coupling = Coupling(given, depth - 1) if depth > 1 else None

    def settings(self) -> dict[str, Any]:
        """Return nothing: all settings are as they were asked for."""
        return {}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return unnormalised text features of the prompts."""
        deeper = deep.deep_text(self.deep_context, clip)
        return self.prompts.encode(clip, self.context[...], deep=deeper)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities, float32."""
        deeper = None
        if self.deep_context is not None and self.deep_coupling is not None:
            deeper = self.deep_coupling(self.deep_context[...])
        prompts = self.coupling(self.context[...][None])[0]
        return clip.logits(deep.image_features(clip, images, prompts, deeper), texts)
