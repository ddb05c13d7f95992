"""The text tower, entered with a prefix that all classes share and the rest of their prompts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from coop_jax.clip.config import TextConfig
from coop_jax.clip.packing import Packing, Parts, gather, spread, take
from coop_jax.clip.transformer import Block, LayerNorm, attend, precision, replace, scan, stack


class Inserted(NamedTuple):
    """Vectors that stand in place of tokens: at each token the number of one, or -1 for none.

    Either all shards have the same vectors (one group), or each shard has its own.
    """

    vectors: Float[Array, "groups vectors width"]
    number: Int[Array, "chunks shards tokens"]


class Deep(NamedTuple):
    """Vectors that replace tokens of the shared prefix at the input of some layers.

    At the input of each layer l where `active[l]`, the prefix has `vectors[l]` from token `start`
    on. They cost nothing per class. With a batch of prefixes each may have its own.
    """

    vectors: Float[Array, "layers *batch vectors width"]
    active: Bool[Array, " layers"]
    start: int = 1


class Later(NamedTuple):
    """Vectors that replace those of `Inserted`, number by number, at the input of a later layer.

    They may differ by class, as those may; layers count from 0.
    """

    vectors: Float[Array, "groups vectors width"]
    layer: int


class Replacing(NamedTuple):
    """The last tokens of a chunk at the input of a layer, where the mask is true."""

    vectors: Float[Array, "*places width"]
    mask: Bool[Array, "*places 1"]
    layer: int

    def apply(
        self, x: Float[Array, "*batch length width"], layer: Int[Array, ""]
    ) -> Float[Array, "*batch length width"]:
        """Return the input of a layer, replaced where it is the one."""
        start = x.shape[-2] - self.vectors.shape[-2]
        kept, mask = x[..., start:, :], self.mask & (layer == self.layer)
        return x.at[..., start:, :].set(jnp.where(mask, self.vectors, kept))


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    graphdef: Any, state: Any, prefix: Array, tokens: Array, packing: Packing
) -> Float[Array, "classes embedding"]:
    return nnx.merge(graphdef, state).encode(prefix, tokens, packing)


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
        self.blocks: Any = stack(config.transformer, dtype, rngs=rngs)
        self.final_norm = LayerNorm(width, config.transformer.epsilon, rngs=rngs)
        if config.projection != "none":
            initial = nnx.initializers.normal(width**-0.5)
            self.projection = nnx.Param(initial(rngs(), (width, embedding), dtype))
        if config.projection == "linear":
            self.projection_bias = nnx.Param(jnp.zeros(embedding, dtype))

    def embed(self, tokens: Int[Array | np.ndarray, "*texts"]) -> Float[Array, "*texts width"]:
        """Return token embeddings, without positions."""
        return jnp.take(self.token_embedding[...], tokens, axis=0).astype(self.dtype)

    def end(self, tokens: Int[Array, "texts length"]) -> Int[Array, " texts"]:
        """Return where the text feature is read: the first end token, or the last position."""
        if self.config.pooling == "last":
            return jnp.full(len(tokens), tokens.shape[-1] - 1)
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
        deep: Deep | None = None,
        later: Later | None = None,
        head: Callable[[Array], Array] = lambda features: features,
    ) -> Float[Array, "*batch classes width"]:
        """Return unnormalised features of prompts given in two parts, or what a head makes of them.

        All classes share the prefix. In a causal tower it is computed once in a chunk, and the
        rest of every class's prompt, laid end to end behind it, attends to its keys and values:
        exactly what the whole prompts would give (DESIGN section 2). In a tower that is not, all
        tokens of a class's prompt, its padding and its own copy of the prefix attend to each other.
        The feature is read where the packing says. If there are several chunks, the gradient
        computes each chunk's activations again, so that those of one are in memory at a time.

        Args:
            prefix: embeddings without positions.
            tokens: ids of the rest of the prompts, with their padding where the tower sees it.
            packing: where the tokens of every class lie. Where the tower is not causal, all classes
                have the same number.
            inserted: vectors in place of some tokens.
            deep: vectors in place of tokens of the prefix, at some layers.
            later: vectors in place of the inserted ones, at a layer.
            head: from features `[*batch, shards, rows, embedding]` to `[*batch, shards, rows,
                width]`, on the devices where each class's features are.

        Raises:
            ValueError: the two parts together are longer than the tower's context, or there are
                deep vectors for other layers, or for tokens that the prefix does not have; or later
                vectors for another layer, or in place of none.
        """
        split, length = prefix.shape[-2], prefix.shape[-2] + packing.parts.places.shape[-1]
        if length > self.config.context_length:
            raise ValueError(
                f"prompts of {length} tokens do not fit the context of {self.config.context_length}"
            )
        if deep is not None:
            _check_deep(deep, self.config.transformer.layers, split)
        if later is not None:
            _check_later(later, self.config.transformer.layers, inserted)
        positions = self.positional_embedding[...].astype(self.dtype)
        first = prefix.astype(self.dtype) + jnp.broadcast_to(positions[:split], prefix.shape)

        def encode_chunk(chunk: tuple[Array, Array | None, Parts]) -> Array:
            tokens, number, parts = chunk
            x = self.embed(tokens)
            replacing = None
            if inserted is not None and number is not None:
                is_inserted = (number >= 0)[..., None]
                x = jnp.where(is_inserted, self._of_tokens(inserted.vectors, number), x)
                if later is not None:
                    vectors = self._of_tokens(later.vectors, number)
                    replacing = Replacing(vectors, is_inserted, later.layer)
            x = x + positions[split + parts.position]
            x = jnp.broadcast_to(x, (*prefix.shape[:-2], *x.shape))
            return head(self._chunk(first, x, parts, deep, replacing))

        chunks = tokens, inserted and inserted.number, packing.parts
        if len(tokens) == 1:
            only = jax.tree.map(lambda chunk: chunk[0], chunks)
            return packing.collect(encode_chunk(only)[None])
        return packing.collect(jax.lax.map(jax.checkpoint(encode_chunk), chunks))

    def encode_now(
        self,
        prefix: Float[Array, "prefix width"],
        tokens: Int[Array, "chunks shards tokens"],
        packing: Packing,
    ) -> Float[Array, "classes embedding"]:
        """Return `encode`'s features, compiled once for all texts of these shapes.

        For what is encoded once, outside of any compiled function: there every call of `encode`
        compiles its layers again.
        """
        return _encode(*nnx.split(self), prefix, tokens, packing)

    def _of_tokens(
        self,
        vectors: Float[Array, "groups vectors width"],
        number: Int[Array, "shards tokens"],
    ) -> Float[Array, "shards tokens width"]:
        """Return the vector at each token of a chunk; where there is none, any."""
        vectors = vectors.astype(self.dtype)
        return take(jnp.broadcast_to(vectors, (len(number), *vectors.shape[1:])), number)

    def _chunk(
        self,
        prefix: Float[Array, "*batch prefix width"],
        rest: Float[Array, "*batch shards tokens width"],
        parts: Parts,
        deep: Deep | None,
        replacing: Replacing | None,
    ) -> Float[Array, "*batch shards rows embedding"]:
        """Return the features of one chunk."""
        tower = self._causal if self.config.causal else self._bidirectional
        features = self.final_norm(take(tower(prefix, rest, parts, deep, replacing), parts.end))
        if self.config.projection == "none":
            return features
        projected = jnp.dot(features, self.projection[...], precision=precision(self.dtype))
        is_linear = self.config.projection == "linear"
        return projected + self.projection_bias[...] if is_linear else projected

    def _causal(
        self,
        prefix: Float[Array, "*batch prefix width"],
        rest: Float[Array, "*batch shards tokens width"],
        parts: Parts,
        deep: Deep | None,
        replacing: Replacing | None,
    ) -> Float[Array, "*batch shards tokens width"]:
        """Return the last block's outputs; the prefix goes along, in front of every shard."""
        split, width = prefix.shape[-2:]
        shared = jnp.broadcast_to(prefix[..., None, :, :], (*rest.shape[:-2], split, width))
        x = jnp.concatenate([shared, rest], axis=-2)
        attention = functools.partial(attend_packed, split=split, parts=parts)
        return self._layers(x, attention, deep, (-3,), replacing)[..., split:, :]

    def _bidirectional(
        self,
        prefix: Float[Array, "*batch prefix width"],
        rest: Float[Array, "*batch shards tokens width"],
        parts: Parts,
        deep: Deep | None,
        replacing: Replacing | None,
    ) -> Float[Array, "*batch shards tokens width"]:
        """Return the last block's outputs; the prefix goes along, in front of every text."""
        (split, width), (shards, rows, longest) = prefix.shape[-2:], parts.places.shape
        places, within = (
            array.reshape(shards, rows * longest) for array in (parts.places, parts.within)
        )

        def by_place(x: Array) -> Array:
            placed = spread(x, places, parts.slots)
            return placed.reshape(*x.shape[:-2], rows, longest, x.shape[-1])

        texts = by_place(rest)
        if replacing is not None:
            mask = by_place(replacing.mask.astype(rest.dtype)) > 0
            replacing = Replacing(by_place(replacing.vectors), mask, replacing.layer)
        shared = prefix[..., None, None, :, :]
        shared = jnp.broadcast_to(shared, (*texts.shape[:-2], split, width))
        x = jnp.concatenate([shared, texts], axis=-2)
        x = self._layers(x, attend, deep, (-4, -3), replacing)[..., split:, :]
        x = x.reshape(*x.shape[:-3], rows * longest, width)
        return gather(x, parts.slots, places, within)

    def _layers(
        self,
        x: Float[Array, "*batch length width"],
        attention: Callable[[Array, Array, Array], Array],
        deep: Deep | None,
        axes: tuple[int, ...],
        replacing: Replacing | None,
    ) -> Float[Array, "*batch length width"]:
        """Return the last block's outputs; deep vectors are the same along `axes`."""

        def step(block: Block, x: Array, at: Any) -> tuple[Array, None]:
            replaced, layer = at
            if deep is not None:
                vectors, active = replaced
                x = replace(x, deep.start, jnp.expand_dims(vectors, axes), active)
            if replacing is not None:
                x = replacing.apply(x, layer)
            return block.finish(x, attention(*block.project(x))), None

        of_deep = None if deep is None else (deep.vectors, deep.active)
        layers = None if replacing is None else jnp.arange(self.config.transformer.layers)
        return scan(self.blocks, step, x, (of_deep, layers))[0]

    def __call__(self, tokens: Int[Array, "texts length"]) -> Float[Array, "texts embedding"]:
        """Return unnormalised features of tokenised texts, padding included.

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


def _check_deep(deep: Deep, layers: int, prefix: int) -> None:
    """Raise a ValueError unless the vectors are for these layers and inside such a prefix."""
    stop = deep.start + deep.vectors.shape[-2]
    if not 0 <= deep.start <= stop <= prefix:
        raise ValueError(
            f"deep vectors for tokens {deep.start} to {stop - 1} are outside a prefix of {prefix}"
        )
    if not len(deep.vectors) == len(deep.active) == layers:
        raise ValueError(
            f"deep vectors for {len(deep.vectors)} layers, {len(deep.active)} of them active or"
            f" not, do not fit a tower of {layers}"
        )


def _check_later(later: Later, layers: int, inserted: Inserted | None) -> None:
    """Raise a ValueError unless there are vectors to replace, and such a layer."""
    if inserted is None or not 0 <= later.layer < layers:
        raise ValueError(
            f"later vectors for layer {later.layer} of a tower of {layers} need inserted ones, and"
            " a layer that there is"
        )


@jax.named_scope("attention")
def attend_packed(
    query: Float[Array, "*batch shards tokens heads dim"],
    key: Float[Array, "*batch shards tokens heads dim"],
    value: Float[Array, "*batch shards tokens heads dim"],
    split: int,
    parts: Parts,
) -> Float[Array, "*batch shards tokens heads*dim"]:
    """Return causal attention of a prefix of `split` tokens and of packed texts behind it."""
    cut = lambda x: (x[..., :split, :, :], x[..., split:, :, :])  # noqa: E731
    (query, queries), (key, keys), (value, values) = cut(query), cut(key), cut(value)
    causal = jnp.tril(jnp.ones((split, split), bool))
    of_prefix = attend(query, key, value, causal)
    of_texts = _attend_texts(queries, keys, values, key, value, parts)
    return jnp.concatenate([of_prefix, of_texts], axis=-2)


def _attend_texts(
    query: Float[Array, "*batch shards tokens heads dim"],
    key: Float[Array, "*batch shards tokens heads dim"],
    value: Float[Array, "*batch shards tokens heads dim"],
    prefix_key: Float[Array, "*batch shards prefix heads dim"],
    prefix_value: Float[Array, "*batch shards prefix heads dim"],
    parts: Parts,
) -> Float[Array, "*batch shards tokens heads*dim"]:
    """Return causal attention of packed texts, each to itself and to the prefix that all share.

    One softmax, in float32, over both groups of keys, without joining them. Only the products of a
    text with itself are of padded texts; all else is of tokens.
    """
    *batch, shards, tokens, heads, dim = query.shape
    rows, longest = parts.places.shape[-2:]
    places, within = (
        array.reshape(shards, rows * longest) for array in (parts.places, parts.within)
    )

    def by_place(x: Array) -> Array:
        placed = spread(x.reshape(*batch, shards, tokens, -1), places, parts.slots)
        return placed.reshape(*batch, shards, rows, longest, heads, -1)

    def by_token(x: Array) -> Array:
        flat = x.reshape(*batch, shards, rows * longest, -1)
        laid = gather(flat, parts.slots, places, within)
        return laid.reshape(*batch, shards, tokens, heads, -1)

    exact, dtype = precision(query.dtype), query.dtype
    query = query * dim**-0.5
    own = jnp.einsum("...qhd,...khd->...qhk", by_place(query), by_place(key), precision=exact)
    of_prefix = jnp.einsum("...qhd,...khd->...qhk", query, prefix_key, precision=exact)
    place = jnp.arange(longest).reshape(1, 1, 1, longest)
    visible = place <= parts.position[..., None, None]
    own = jnp.where(visible, by_token(own).astype(jnp.float32), -jnp.inf)
    of_prefix = of_prefix.astype(jnp.float32)
    largest = own.max(axis=-1, keepdims=True)
    if prefix_key.shape[-3]:
        largest = jnp.maximum(largest, of_prefix.max(axis=-1, keepdims=True))
    largest = jax.lax.stop_gradient(largest)
    own, of_prefix = jnp.exp(own - largest), jnp.exp(of_prefix - largest)
    total = own.sum(axis=-1, keepdims=True) + of_prefix.sum(axis=-1, keepdims=True)
    own, of_prefix = (own / total).astype(dtype), (of_prefix / total).astype(dtype)
    mixed = jnp.einsum("...qhk,...khd->...qhd", by_place(own), by_place(value), precision=exact)
    of_prefix = jnp.einsum("...qhk,...khd->...qhd", of_prefix, prefix_value, precision=exact)
    return (by_token(mixed) + of_prefix).reshape(*batch, shards, tokens, heads * dim)
