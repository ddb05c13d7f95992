"""Texts of different lengths laid end to end, so that no matrix product ever sees padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

TOKENS_AT_ONCE = 16384
"""Tokens of a chunk; longer class lists are cut, and their activations are computed again."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Parts:
    """Places of the tokens of the classes of every part: of each chunk, shard by shard.

    Attributes:
        position: place of every token within its class's text.
        slots: row and place of every token, as one number into `places`; behind the last token -1.
        places: where the token at every place of a row's text lies; behind the text's end 0.
        within: whether a place is within the text.
        end: where the feature of every row is read; 0 for rows without a class.
    """

    position: Int[Array | np.ndarray, "*chunks shards tokens"]
    slots: Int[Array | np.ndarray, "*chunks shards tokens"]
    places: Int[Array | np.ndarray, "*chunks shards rows longest"]
    within: Bool[Array | np.ndarray, "*chunks shards rows longest"]
    end: Int[Array | np.ndarray, "*chunks shards rows"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packing:
    """Texts laid end to end.

    Classes are cut into shards of consecutive ones, each for a device, and shards into chunks that
    are worked off one after the other. A part is what a shard has of a chunk; its classes' tokens
    lie end to end.

    Attributes:
        parts: where the tokens lie.
        label: the class of every row, or -1.
        row: where every class's row lies among those of all shards, chunk by chunk.
    """

    parts: Parts
    label: Int[Array | np.ndarray, "chunks shards rows"]
    row: Int[Array | np.ndarray, " classes"]

    def lay(
        self, values: Shaped[np.ndarray, "classes longest ..."]
    ) -> Shaped[Array, "k g tokens ..."]:
        """Return values of every place of every class's text, as they belong to the tokens."""
        longest = self.parts.places.shape[-1]
        labels, places = jnp.divmod(jnp.maximum(self.parts.slots, 0), longest)
        label = jnp.take_along_axis(jnp.asarray(self.label), labels, axis=-1)
        return jnp.asarray(values)[label, places]

    def collect(
        self, features: Float[Array, "chunks *batch shards rows embedding"]
    ) -> Float[Array, "*batch classes embedding"]:
        """Return what was computed for every row, in the order of the classes."""
        features = jnp.moveaxis(features, 0, -3)
        features = features.reshape(*features.shape[:-4], -1, features.shape[-1])
        return arrange(features, self.row, jnp.swapaxes(self.label, 0, 1).reshape(-1))


def pack(
    lengths: Int[np.ndarray, " classes"],
    *,
    shards: int = 1,
    limit: int = TOKENS_AT_ONCE,
    same_classes: bool = False,
    read: Int[np.ndarray, " classes"] | None = None,
) -> Packing:
    """Lay texts end to end.

    Args:
        lengths: number of tokens of every class's text, at least 1.
        shards: number of parts, one for each device.
        limit: about how many tokens of a chunk on one device.
        same_classes: give shards the same number of classes, not of tokens.
        read: at which place of its text every class's feature is read; by default the last.
    """
    lengths = np.asarray(lengths)
    read = lengths - 1 if read is None else np.asarray(read)
    chunks = max(-(-int(lengths.sum()) // (shards * limit)), 1)
    of_shard = _cut(np.ones_like(lengths) if same_classes else lengths, shards)
    parts = [[first[part] for part in _cut(lengths[first], chunks)] for first in of_shard]
    label = np.full((chunks, shards, max(len(part) for row in parts for part in row)), -1)
    for shard, chunk in np.ndindex(shards, chunks):
        part = parts[shard][chunk]
        label[chunk, shard, : len(part)] = part
    counts = np.where(label >= 0, lengths[label], 0)
    start = np.cumsum(counts, axis=-1) - counts
    place = np.arange(int(lengths.max()))
    within = place < counts[..., None]
    places = np.where(within, start[..., None] + place, 0)
    slots = np.full((chunks, shards, int(counts.sum(axis=-1).max())), -1)
    for at in np.ndindex(chunks, shards):
        slots[at][places[at][within[at]]] = np.flatnonzero(within[at])
    end = np.where(counts > 0, start + read[label], 0)
    row = np.argsort(label.swapaxes(0, 1), axis=None)[-len(lengths) :]
    return Packing(
        parts=Parts(
            position=(np.maximum(slots, 0) % len(place)).astype(np.int32),
            slots=slots.astype(np.int32),
            places=places.astype(np.int32),
            within=within,
            end=end.astype(np.int32),
        ),
        label=label.astype(np.int32),
        row=row.astype(np.int32),
    )


def _cut(weights: Int[np.ndarray, " items"], parts: int) -> list[Int[np.ndarray, " some"]]:
    """Cut items into consecutive parts of about the same weight; the items' numbers."""
    middles = np.cumsum(weights) - weights / 2
    bounds = weights.sum() * np.arange(1, parts) / parts
    return np.split(np.arange(len(weights)), np.searchsorted(middles, bounds))


def take(
    rows: Shaped[Array, "*batch shards before width"],
    index: Int[Array | np.ndarray, "shards after"],
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


@jax.custom_vjp
def arrange(
    features: Float[Array, "*batch rows width"],
    row: Int[Array, " classes"],
    label: Int[Array, " rows"],
) -> Float[Array, "*batch classes width"]:
    """From rows to classes; rows without a class are of no account."""
    return features.take(row, axis=-2)


def _only(
    mask: Bool[Array, "*shards rows"], values: Float[Array, "*batch rows width"]
) -> Float[Array, "*batch rows width"]:
    return jnp.where(mask[..., None], values, 0)


spread.defvjp(
    lambda tokens, places, slots: (take(tokens, places), slots),
    lambda slots, gradient: (_only(slots >= 0, take(gradient, slots)), None, None),
)
gather.defvjp(
    lambda values, slots, places, within: (take(values, slots), (places, within)),
    lambda known, gradient: (_only(known[1], take(gradient, known[0])), None, None, None),
)
arrange.defvjp(
    lambda features, row, label: (features.take(row, axis=-2), label),
    lambda label, gradient: (_only(label >= 0, gradient.take(label, axis=-2)), None, None),
)
