"""CoCoOp: a context conditioned on the image (Zhou et al., CVPR 2022)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer, unit
from coop_jax.clip.packing import TOKENS_AT_ONCE
from coop_jax.clip.transformer import precision
from coop_jax.methods import prompts
from coop_jax.methods.base import Derived, Learned

REDUCTION = 16
"""The meta-net's hidden layer is this much narrower than the image features."""


def default_config() -> dict[str, Any]:
    """CoCoOp's settings (coop_protocol section 9).

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
    """
    return {"n_ctx": 4, "context_init": "a photo of a"}


class MetaNet(nnx.Module):
    """Image features `[batch, embedding]` to what is added to the context, `[batch, width]`.

    Two linear layers with a ReLU between them; PyTorch's default initialisation, uniform within
    the inverse root of the number of inputs.
    """

    def __init__(self, embedding: int, width: int, *, rngs: nnx.Rngs):
        hidden = embedding // REDUCTION

        def uniform(inputs: int, *shape: int) -> Learned:
            bound = inputs**-0.5
            key, span = rngs.params(), (-bound, bound)
            return Learned(jax.random.uniform(key, shape, jnp.float32, *span))

        self.kernel1 = uniform(embedding, embedding, hidden)
        self.bias1 = uniform(embedding, hidden)
        self.kernel2 = uniform(hidden, hidden, width)
        self.bias2 = uniform(hidden, width)

    def __call__(self, features: Float[Array, "batch embedding"]) -> Float[Array, "batch width"]:
        """What the images add to every context vector, in the dtype of the net's variables."""
        dtype = self.kernel1.dtype
        features, exact = features.astype(dtype), precision(dtype)
        hidden = jnp.dot(features, self.kernel1[...], precision=exact) + self.bias1[...][None]
        shift = jnp.dot(jax.nn.relu(hidden), self.kernel2[...], precision=exact)
        return shift + self.bias2[...][None]


class Method(nnx.Module):
    """Logits of prompts whose context `[M, width]` is shifted by each image's meta-net output."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        config: dict[str, Any],
        *,
        rngs: nnx.Rngs,
        shards: int = 1,
    ):
        width = clip.config.text.transformer.width
        context, placeholder = prompts.initial_context(
            clip, tokenizer, config["context_init"], (config["n_ctx"], width), rngs
        )
        layout = prompts.layout(
            tokenizer, class_names, placeholder, context.shape[-2], "end", shared=True
        )
        self.context = Learned(context)
        self.meta_net = MetaNet(clip.config.embedding, width, rngs=rngs)
        self.start = Derived(clip.text.embed(np.asarray([tokenizer.start], np.int32)))
        self.packed = prompts.Packed(layout.tokens, layout.lengths, shards)

    def settings(self) -> dict[str, Any]:
        """M; the class token stands at the end and the context is one for all classes."""
        return {
            "n_ctx": self.context.shape[-2],
            "class_token_position": "end",
            "class_specific": False,
        }

    def encode_classes(self, clip: CLIP) -> tuple[()]:
        """Nothing: every image has its own prompts."""
        return ()

    def logits(
        self, clip: CLIP, classes: tuple[()], image_features: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch classes"]:
        """Scaled cosine similarities of each image with its own prompts, float32.

        As many images are worked on at once as their texts' tokens allow.
        """
        start, packed = self.start[...], self.packed

        def of_images(images: Float[Array, "some embedding"]) -> Float[Array, "some classes"]:
            context = self.context[...][None] + self.meta_net(images)[:, None]
            shared = jnp.broadcast_to(start, (len(images), *start.shape))
            prefix = jnp.concatenate([shared, context.astype(start.dtype)], axis=1)

            def similarity(texts: Float[Array, "some shards rows embedding"]) -> Array:
                exact = precision(jnp.float32)
                return jnp.einsum("be,bgre->bgr", images, unit(texts), precision=exact)[..., None]

            tokens, packing = packed.tokens[...], packed.packing
            return clip.text.encode(prefix, tokens, packing, head=similarity)[..., 0]

        images = unit(image_features)
        at_once = max(TOKENS_AT_ONCE // packed.tokens.shape[-1], 1)
        if len(images) > at_once:
            grouped = jax.checkpoint(lambda image: of_images(image[None])[0])
            similarity = jax.lax.map(grouped, images, batch_size=at_once)
        else:
            similarity = of_images(images)
        return jnp.exp(clip.logit_scale[...]) * similarity
