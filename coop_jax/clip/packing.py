"""Texts of different lengths laid end to end, so that no matrix product ever sees padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

TOKENS_AT_ONCE = 16384
"""Tokens of a chunk; longer class lists are cut, and their activations are computed again."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """Where the tokens of every class lie.

    Classes are cut into `shards` of consecutive ones, each for a device, and shards into `chunks`
    that are worked off one after the other. The tokens of a chunk's classes lie end to end.

    Attributes:
        position: place of every token within its class's text.
        slots: row and place of every token, as one number into `places`; behind the last token -1.
        places: where the token at every place of a row's text lies; behind the text's end 0.
        within: whether a place is within the text.
        end: where the last token of every row lies; 0 for rows without a class.
        classes: number of classes.
    """

    position: Int[Array, "chunks shards tokens"]
    slots: Int[Array, "chunks shards tokens"]
    places: Int[Array, "chunks shards rows longest"]
    within: Bool[Array, "chunks shards rows longest"]
    end: Int[Array, "chunks shards rows"]
    classes: int

    def lay(self, values: Shaped[Array, "classes longest ..."]) -> Shaped[Array, "k g tokens ..."]:
        """Values of every place of every class's text, as they belong to the tokens."""
        chunks, shards, rows, longest = self.places.shape
        per_shard = -(-self.classes // shards)
        pad = [(0, shards * per_shard - self.classes), *[(0, 0)] * (values.ndim - 1)]
        values = jnp.pad(values, pad).reshape(shards, per_shard, *values.shape[1:])
        pad = [(0, 0), (0, chunks * rows - per_shard), *[(0, 0)] * (values.ndim - 2)]
        values = jnp.pad(values, pad).reshape(shards, chunks, rows * longest, *values.shape[3:])
        return jax.vmap(jax.vmap(lambda part, slots: part.take(slots, axis=0, mode="clip")))(
            jnp.moveaxis(values, 0, 1), self.slots
        )

    def collect(
        self, features: Float[Array, "chunks *batch shards rows embedding"]
    ) -> Float[Array, "*batch classes embedding"]:
        """What was computed for every row, in the order of the classes."""
        features = jnp.moveaxis(features, 0, -3)
        *batch, shards, chunks, rows, width = features.shape
        per_shard = -(-self.classes // shards)
        features = features.reshape(*batch, shards, chunks * rows, width)[..., :per_shard, :]
        return features.reshape(*batch, shards * per_shard, width)[..., : self.classes, :]


jax.tree_util.register_dataclass(
    Packing,
    data_fields=["position", "slots", "places", "within", "end"],
    meta_fields=["classes"],
)


def pack(
    lengths: Int[np.ndarray, " classes"], *, shards: int = 1, limit: int = TOKENS_AT_ONCE
) -> Packing:
    """Lay texts end to end.

    Args:
        lengths: number of tokens of every class's text, at least 1.
        shards: number of parts, one for each device.
        limit: about how many tokens of a chunk on one device.
    """
    lengths = np.asarray(lengths)
    per_shard = -(-len(lengths) // shards)
    of_shard = np.zeros((shards, per_shard), np.int64)
    of_shard.ravel()[: len(lengths)] = lengths
    chunks = -(-int(of_shard.sum(axis=1).max()) // limit)
    rows = -(-per_shard // chunks)
    counts = np.pad(of_shard, ((0, 0), (0, chunks * rows - per_shard)))
    counts = np.moveaxis(counts.reshape(shards, chunks, rows), 0, 1)
    start = np.cumsum(counts, axis=-1) - counts
    place = np.arange(int(lengths.max()))
    within = place < counts[..., None]
    places = np.where(within, start[..., None] + place, 0)
    slots = np.full((chunks, shards, int(counts.sum(axis=-1).max())), -1)
    for part in np.ndindex(chunks, shards):
        slots[part][places[part][within[part]]] = np.flatnonzero(within[part])
    end = np.where(counts > 0, start + counts - 1, 0)
    position = np.maximum(slots, 0) % len(place)
    return Packing(
        position=jnp.asarray(position, jnp.int32),
        slots=jnp.asarray(slots, jnp.int32),
        places=jnp.asarray(places, jnp.int32),
        within=jnp.asarray(within),
        end=jnp.asarray(end, jnp.int32),
        classes=len(lengths),
    )


def take(
    rows: Shaped[Array, "*batch shards before width"], index: Int[Array, "shards after"]
) -> Shaped[Array, "*batch shards after width"]:
    """The rows at `index`, shard by shard."""
    pick = lambda part, chosen: part.take(chosen, axis=-2, mode="clip")  # noqa: E731
    return jax.vmap(pick, in_axes=(-3, 0), out_axes=-3)(rows, index)


@jax.custom_vjp
def spread(
    tokens: Float[Array, "*batch shards tokens width"],
    places: Int[Array, "shards rows_places"],
    slots: Int[Array, "shards tokens"],
) -> Float[Array, "*batch shards rows_places width"]:
    """From tokens to places; what is behind a text's end is of no account.

    Every token has one place, so that the gradient is a gather as well, not a scatter.
    """
    return take(tokens, places)


@jax.custom_vjp
def gather(
    values: Float[Array, "*batch shards rows_places width"],
    slots: Int[Array, "shards tokens"],
    places: Int[Array, "shards rows_places"],
    within: Bool[Array, "shards rows_places"],
) -> Float[Array, "*batch shards tokens width"]:
    """From places back to tokens; what is behind the last token is of no account."""
    return take(values, slots)


def _only(
    mask: Bool[Array, "shards rows"], values: Float[Array, "*batch shards rows width"]
) -> Float[Array, "*batch shards rows width"]:
    return jnp.where(mask[..., None], values, 0)


spread.defvjp(
    lambda tokens, places, slots: (take(tokens, places), slots),
    lambda slots, gradient: (_only(slots >= 0, take(gradient, slots)), None, None),
)
gather.defvjp(
    lambda values, slots, places, within: (take(values, slots), (places, within)),
    lambda known, gradient: (_only(known[1], take(gradient, known[0])), None, None, None),
)
