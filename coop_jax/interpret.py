"""What a learned context looks like: the words nearest to its vectors (paper section 4.4)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A vocabulary word and its Euclidean distance to a context vector."""

    word: str
    distance: float


def nearest_words(
    clip: CLIP, tokenizer: Tokenizer, context: Float[Array, "*vectors width"], count: int = 1
) -> list[list[Neighbour]]:
    """For each context vector (in order, leading axes flattened) its `count` nearest words.

    Distances are Euclidean, in the space of token embeddings, as in the paper's Table 4.
    """
    words = clip.text.token_embedding[...].astype(jnp.float32)
    vectors = context.reshape(-1, context.shape[-1]).astype(jnp.float32)

    def nearest(vector: Array) -> tuple[Array, Array]:
        distances = jnp.linalg.norm(words - vector, axis=-1)
        negative, index = jax.lax.top_k(-distances, count)
        return -negative, index

    distances, indices = jax.lax.map(nearest, vectors)
    names = tokenizer.words()
    return [
        [Neighbour(names[i], float(d)) for d, i in zip(row_d, row_i, strict=True)]
        for row_d, row_i in zip(distances.tolist(), indices.tolist(), strict=True)
    ]
