"""Prompts whose context depends on the image: what CoCoOp and DePT on CoCoOp share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.methods import layers, text
from coop_jax.methods.base import Given, Learned, Method

REDUCTION = 16
"""The meta-net's hidden layer is this much narrower than the image features."""


class Conditioned(Method):
    """A method whose context is shifted by what a meta-net makes of each image.

    Attributes:
        context: `[M, width]`.
        prompts: what holds it.
        meta_net: from image features of length one to what is added to every context vector.
    """

    texts_per_image = True

    def __init__(self, given: Given, config: dict[str, Any]):
        """Make the prompts, from the settings `context_init` and `n_ctx`.

        Raises:
            InputError: there would be no vector, or prompts that are too long.
        """
        context, placeholder = text.initial_context(given, config["context_init"], config["n_ctx"])
        self.context = Learned(context)
        self.prompts = text.Prompts(given, placeholder, len(context))
        embedding, width = given.clip.config.embedding, context.shape[-1]
        hidden = embedding // REDUCTION
        self.meta_net = layers.TwoLayers(given.rngs, embedding, hidden, width)

    def settings(self) -> dict[str, Any]:
        """Return M, as a phrase may have changed it."""
        return {"n_ctx": self.context.shape[-2]}

    def shifted(self, images: Float[Array, "some embedding"]) -> Float[Array, "some M width"]:
        """Return the context of each image, given features of length one."""
        return self.context[...][None] + self.meta_net(images)[:, None]

    def cosines(
        self, clip: CLIP, features: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch classes"]:
        """Return cosine similarities of each image with its own prompts, float32.

        As many images are worked on at once as their texts' tokens allow.

        Args:
            clip: the CLIP.
            features: of images, of length one.
        """

        def of_images(images: Float[Array, "some embedding"]) -> Float[Array, "some classes"]:
            def similarity(texts: Float[Array, "some shards rows embedding"]) -> Array:
                exact = precision(jnp.float32)
                return jnp.einsum("be,bgre->bgr", images, unit(texts), precision=exact)[..., None]

            return self.prompts.encode(clip, self.shifted(images), head=similarity)[..., 0]

        return self._in_groups(of_images, features)

    def with_labels(
        self,
        clip: CLIP,
        features: Float[Array, "batch embedding"],
        labels: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch classes"], Float[Array, "batch embedding"]]:
        """Return the cosines, and the unnormalised text feature of each image's label.

        Args:
            clip: the CLIP.
            features: of images, of length one.
            labels: of the images.
        """

        def of_images(images: Array, labels: Array) -> tuple[Array, Array]:
            texts = self.prompts.encode(clip, self.shifted(images))
            exact = precision(jnp.float32)
            similar = jnp.einsum("be,bce->bc", images, unit(texts), precision=exact)
            return similar, jnp.take_along_axis(texts, labels[:, None, None], axis=1)[:, 0]

        return self._in_groups(of_images, features, labels)

    def _in_groups(self, function: Callable[..., Any], *arrays: Array) -> Any:
        """Return what a function makes of images, of as many at once as memory allows."""
        at_once = self.prompts.at_once
        if len(arrays[0]) <= at_once:
            return function(*arrays)

        def of_one(image: tuple[Array, ...]) -> Any:
            made = function(*(array[None] for array in image))
            return jax.tree.map(lambda array: array[0], made)

        return jax.lax.map(jax.checkpoint(of_one), arrays, batch_size=at_once)
