"""CLIP's causal text tower, entered with a shared prefix and one suffix per class."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from coop_jax.clip.config import TextConfig
from coop_jax.clip.transformer import Block, LayerNorm, attend, precision, scan, stack


class TextTower(nnx.Module):
    """Text embeddings to text features, `[..., length, width]` to `[..., embedding]`."""

    def __init__(self, config: TextConfig, embedding: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.transformer.width
        self.config = config
        self.dtype = dtype
        initial = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Param(initial(rngs(), (config.vocabulary_size, width)))
        self.positional_embedding = nnx.Param(
            nnx.initializers.normal(0.01)(rngs(), (config.context_length, width))
        )
        self.blocks = stack(config.transformer, dtype, rngs=rngs)
        self.final_norm = LayerNorm(width, config.transformer.epsilon, rngs=rngs)
        self.projection = nnx.Param(
            nnx.initializers.normal(width**-0.5)(rngs(), (width, embedding), dtype)
        )

    def embed(self, tokens: Int[Array, "*texts"]) -> Float[Array, "*texts width"]:
        """Token embeddings, without positions."""
        return self.token_embedding[...][tokens].astype(self.dtype)

    def end(self, tokens: Int[Array, "texts length"]) -> Int[Array, " texts"]:
        """Where the text feature is read: the first end token of each text."""
        if self.config.end_token is None:
            return jnp.argmax(tokens, axis=-1)
        return jnp.argmax(tokens == self.config.end_token, axis=-1)

    def encode(
        self,
        prefix: Float[Array, "*batch prefix width"],
        suffix: Float[Array, "*batch_or_ones classes suffix width"],
        end: Int[Array, " classes"],
    ) -> Float[Array, "*batch classes embedding"]:
        """Unnormalised features of prompts given in two parts, as embeddings without positions.

        All classes share the prefix, and the tower is causal, so the prefix is computed once and
        the suffixes attend to its keys and values: exactly what the whole prompts would give
        (DESIGN section 2). `end` is each class's end-token position within its suffix; whatever
        follows it has no influence. The batch axes of `suffix` may be ones or absent.

        Raises:
            ValueError: the two parts together are longer than the tower's context.
        """
        split, length = prefix.shape[-2], prefix.shape[-2] + suffix.shape[-2]
        if length > self.config.context_length:
            raise ValueError(
                f"prompts of {length} tokens do not fit the context of {self.config.context_length}"
            )
        positions = self.positional_embedding[...].astype(self.dtype)
        batch = prefix.shape[:-2]
        prefix = prefix[..., None, :, :].astype(self.dtype) + positions[:split]
        suffix = suffix.astype(self.dtype) + positions[split:length]
        suffix = jnp.broadcast_to(suffix, (*batch, *suffix.shape[-3:]))
        causal = jnp.tril(jnp.ones((length, length), bool))

        def step(block: Block, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            prefix, suffix = carry
            query, prefix_key, prefix_value = block.project(prefix)
            visible = causal[:split, :split]
            prefix = block.finish(prefix, attend(query, [prefix_key], [prefix_value], visible))
            query, key, value = block.project(suffix)
            attended = attend(
                query, [prefix_key, key], [prefix_value, value], visible=causal[split:]
            )
            return prefix, block.finish(suffix, attended)

        _, suffix = scan(self.blocks, step, (prefix, suffix))
        last = jnp.broadcast_to(end[:, None, None], (*suffix.shape[:-2], 1, 1))
        features = jnp.take_along_axis(suffix, last, axis=-2)[..., 0, :]
        features = self.final_norm(features)
        return jnp.dot(features, self.projection[...], precision=precision(self.dtype))

    def __call__(self, tokens: Int[Array, "texts length"]) -> Float[Array, "texts embedding"]:
        """Unnormalised features of tokenised texts."""
        nothing = jnp.zeros((0, self.config.transformer.width), self.dtype)
        return self.encode(nothing, self.embed(tokens), self.end(tokens))
