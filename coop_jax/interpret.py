"""The words nearest to the vectors of a learned context (paper section 4.4)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich import box
from rich.table import Table
from rich.text import Text

from coop_jax import finite
from coop_jax.clip import CLIP, Tokenizer
from coop_jax.frozen import Frozen
from coop_jax.printing import escaped


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A vocabulary word and its Euclidean distance to a context vector."""

    word: str
    distance: float


def nearest_words(
    clip: CLIP,
    tokenizer: Tokenizer,
    context: Float[Array, "*vectors width"],
    count: int = 1,
    *,
    whole_words: bool = False,
) -> list[list[Neighbour]]:
    """Return the `count` nearest words, or all, of each context vector (leading axes flattened).

    Distances are Euclidean, in the space of token embeddings, as in the paper's Table 4. Like the
    paper's, the words are all tokens, pieces of words (which end in "-") included; `whole_words`
    leaves only tokens that are words of letters.

    Raises:
        InputError: a distance is not finite.
    """
    names = tokenizer.words()
    chosen = [i for i, name in enumerate(names) if name.isalpha() or not whole_words]
    table, vectors = (
        np.asarray(array, np.float32) for array in (clip.text.token_embedding[...], context)
    )
    count = min(count, len(chosen))
    words, vectors = jnp.asarray(table[chosen]), vectors.reshape(-1, vectors.shape[-1])

    def nearest(vector: Array) -> tuple[Array, Array]:
        distances = jnp.linalg.norm(words - vector[None], axis=-1)
        negative, index = jax.lax.top_k(-distances, count)
        return -negative, index

    distances, indices = jax.lax.map(nearest, vectors)
    advice = "; learn again, with a lower learning rate"
    finite.check({"vectors": distances}, "as distances of words", advice)
    return [
        [Neighbour(names[chosen[i]], float(d)) for d, i in zip(row_d, row_i, strict=True)]
        for row_d, row_i in zip(distances.tolist(), indices.tolist(), strict=True)
    ]


def of_method(method: Any, frozen: Frozen, class_names: Sequence[str], title: str) -> list[Table]:
    """Return the words nearest to what a method has learned in the space of token embeddings.

    Of class-specific vectors, those of the first class are shown.
    """
    if not isinstance(frozen.clip, CLIP) or frozen.tokenizer is None:
        return []
    tables = []
    for name, vectors in method.word_vectors().items():
        shown = f"{title}, {name}" if name != "context" else title
        if vectors.ndim == 3:
            shown, vectors = f"{shown} of {class_names[0]!r}", vectors[0]
        words = nearest_words(frozen.clip, frozen.tokenizer, vectors, count=3, whole_words=True)
        tables.append(table(words, shown))
    return tables


def table(neighbours: list[list[Neighbour]], title: str) -> Table:
    """Return a table as the paper's Table 4: vector number, nearest words and distances."""
    shown = Table(
        title=Text(escaped(title)),
        caption="as in the paper, few make sense: a vector may mean what no word does",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("#", justify="right")
    shown.add_column("nearest words (distance)")
    for number, row in enumerate(neighbours, start=1):
        words = (f"{near.word} ({near.distance:.4f})" for near in row)
        shown.add_row(str(number), Text(escaped(", ".join(words))))
    return shown
