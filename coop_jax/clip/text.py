"""CLIP's causal text tower, entered with a shared prefix and the rest of every class's prompt."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from coop_jax.clip.config import TextConfig
from coop_jax.clip.packing import Packing, Parts, gather, spread, take
from coop_jax.clip.transformer import Block, LayerNorm, attend, precision, scan, stack


class Inserted(NamedTuple):
    """Vectors that stand in place of tokens: at each token the number of one, or -1 for none.

    Either all shards have the same vectors (one group), or each shard has its own.
    """

    vectors: Float[Array, "groups vectors width"]
    number: Int[Array, "chunks shards tokens"]


class TextTower(nnx.Module):
    """Text embeddings to text features, `[..., length, width]` to `[..., embedding]`."""

    def __init__(self, config: TextConfig, embedding: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.transformer.width
        self.config = config
        self.dtype = dtype
        tokens, positions = (config.vocabulary_size, width), (config.context_length, width)
        initial = nnx.initializers.normal(0.02, jnp.float32)
        self.token_embedding = nnx.Param(initial(rngs(), tokens))
        initial = nnx.initializers.normal(0.01, jnp.float32)
        self.positional_embedding = nnx.Param(initial(rngs(), positions))
        self.blocks = stack(config.transformer, dtype, rngs=rngs)
        self.final_norm = LayerNorm(width, config.transformer.epsilon, rngs=rngs)
        self.projection = nnx.Param(
            nnx.initializers.normal(width**-0.5)(rngs(), (width, embedding), dtype)
        )

    def embed(self, tokens: Int[Array | np.ndarray, "*texts"]) -> Float[Array, "*texts width"]:
        """Token embeddings, without positions."""
        return jnp.take(self.token_embedding[...], tokens, axis=0).astype(self.dtype)

    def end(self, tokens: Int[Array, "texts length"]) -> Int[Array, " texts"]:
        """Where the text feature is read: the first end token of each text."""
        if self.config.end_token is None:
            return jnp.argmax(tokens, axis=-1)
        return jnp.argmax(tokens == self.config.end_token, axis=-1)

    def encode(
        self,
        prefix: Float[Array, "*batch prefix width"],
        tokens: Int[Array, "chunks shards tokens"],
        packing: Packing,
        inserted: Inserted | None = None,
        *,
        head: Callable[[Array], Array] = lambda features: features,
    ) -> Float[Array, "*batch classes width"]:
        """Unnormalised features of prompts given in two parts, or what a head makes of them.

        All classes share the prefix, and the tower is causal, so the prefix is computed once and
        the rest of every class's prompt, laid end to end, attends to its keys and values: exactly
        what the whole prompts would give (DESIGN section 2). The feature is read at the last token
        of each class's part. If there are several chunks, the gradient computes each chunk's
        activations again, so that those of one chunk are in memory at a time.

        Args:
            prefix: embeddings without positions.
            tokens: ids of the rest of the prompts.
            packing: where the tokens of every class lie.
            inserted: vectors in place of some tokens.
            head: from features `[*batch, shards, rows, embedding]` to `[*batch, shards, rows,
                width]`, on the devices where each class's features are.

        Raises:
            ValueError: the two parts together are longer than the tower's context.
        """
        split, length = prefix.shape[-2], prefix.shape[-2] + packing.parts.places.shape[-1]
        if length > self.config.context_length:
            raise ValueError(
                f"prompts of {length} tokens do not fit the context of {self.config.context_length}"
            )
        positions = self.positional_embedding[...].astype(self.dtype)
        first = jnp.broadcast_to(positions[:split], prefix.shape)
        shared = self._keys_and_values(prefix.astype(self.dtype) + first)

        def encode_chunk(chunk: tuple[Array, Array | None, Parts]) -> Array:
            tokens, number, parts = chunk
            x = self.embed(tokens)
            if inserted is not None and number is not None:
                vectors = inserted.vectors.astype(self.dtype)
                vectors = jnp.broadcast_to(vectors, (len(number), *vectors.shape[1:]))
                x = jnp.where((number >= 0)[..., None], take(vectors, number), x)
            x = x + positions[split + parts.position]
            x = jnp.broadcast_to(x, (*prefix.shape[:-2], *x.shape))
            return head(self._rest(x, shared, parts))

        chunks = tokens, inserted and inserted.number, packing.parts
        if len(tokens) == 1:
            only = jax.tree.map(lambda chunk: chunk[0], chunks)
            return packing.collect(encode_chunk(only)[None])
        return packing.collect(jax.lax.map(jax.checkpoint(encode_chunk), chunks))

    def _keys_and_values(self, prefix: Float[Array, "*batch prefix width"]) -> tuple[Array, Array]:
        """Keys and values `[layers, *batch, prefix, heads, dim]`, which all prompts attend to."""
        causal = jnp.tril(jnp.ones((prefix.shape[-2],) * 2, bool))

        def step(block: Block, x: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            query, key, value = block.project(x)
            return block.finish(x, attend(query, key, value, causal)), (key, value)

        return scan(self.blocks, step, prefix)[1]

    def _rest(
        self,
        x: Float[Array, "*batch shards tokens width"],
        shared: tuple[Array, Array],
        parts: Parts,
    ) -> Float[Array, "*batch shards rows embedding"]:
        """Features of one chunk."""

        def step(block: Block, x: Array, shared: tuple[Array, Array]) -> tuple[Array, None]:
            return block.finish(x, attend_packed(*block.project(x), *shared, parts)), None

        x, _ = scan(self.blocks, step, x, shared)
        features = self.final_norm(take(x, parts.end))
        return jnp.dot(features, self.projection[...], precision=precision(self.dtype))

    def __call__(self, tokens: Int[Array, "texts length"]) -> Float[Array, "texts embedding"]:
        """Unnormalised features of tokenised texts, padding included.

        Where the lengths are known before compilation, `encode` is several times as fast.
        """
        nothing = jnp.zeros((0, self.config.transformer.width), self.dtype)
        texts, length = tokens.shape
        places = jnp.arange(texts * length).reshape(1, 1, texts, length)
        parts = Parts(
            position=(places % length).reshape(1, 1, -1),
            slots=places.reshape(1, 1, -1),
            places=places,
            within=jnp.ones_like(places, bool),
            end=places[..., 0] + self.end(tokens)[None, None],
        )
        rows = jnp.arange(texts)
        whole = Packing(parts, rows.reshape(1, 1, -1), rows)
        return self.encode(nothing, tokens.reshape(1, 1, texts * length), whole)


def attend_packed(
    query: Float[Array, "*batch shards tokens heads dim"],
    key: Float[Array, "*batch shards tokens heads dim"],
    value: Float[Array, "*batch shards tokens heads dim"],
    shared_key: Float[Array, "*batch prefix heads dim"],
    shared_value: Float[Array, "*batch prefix heads dim"],
    parts: Parts,
) -> Float[Array, "*batch shards tokens heads*dim"]:
    """Causal attention of packed texts, each to itself and to the prefix that all share.

    One softmax, in float32, over both groups of keys, without joining them.
    """
    *batch, shards, _, heads, dim = query.shape
    rows, longest = parts.places.shape[-2:]
    places, within = (
        array.reshape(shards, rows * longest) for array in (parts.places, parts.within)
    )

    def by_place(x: Array) -> Array:
        flat = x.reshape(*batch, shards, -1, heads * dim)
        return spread(flat, places, parts.slots).reshape(*batch, shards, rows, longest, heads, dim)

    exact, dtype = precision(query.dtype), query.dtype
    query = by_place(query * dim**-0.5)
    key, value = by_place(key), by_place(value)
    own = jnp.einsum("...gcqhd,...gckhd->...gchqk", query, key, precision=exact)
    of_prefix = jnp.einsum("...gcqhd,...khd->...gchqk", query, shared_key, precision=exact)
    causal = jnp.tril(jnp.ones((longest, longest), bool))
    own = jnp.where(causal, own.astype(jnp.float32), -jnp.inf)
    of_prefix = of_prefix.astype(jnp.float32)
    largest = own.max(axis=-1, keepdims=True)
    if shared_key.shape[-3]:
        largest = jnp.maximum(largest, of_prefix.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)
    own, of_prefix = jnp.exp(own - largest), jnp.exp(of_prefix - largest)
    total = own.sum(axis=-1, keepdims=True) + of_prefix.sum(axis=-1, keepdims=True)
    own, of_prefix = (own / total).astype(dtype), (of_prefix / total).astype(dtype)
    mixed = jnp.einsum("...gchqk,...gckhd->...gcqhd", own, value, precision=exact)
    mixed += jnp.einsum("...gchqk,...khd->...gcqhd", of_prefix, shared_value, precision=exact)
    mixed = mixed.reshape(*batch, shards, rows * longest, heads * dim)
    return gather(mixed, parts.slots, places, within)
