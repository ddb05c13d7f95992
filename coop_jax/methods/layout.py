"""The layout of prompts: which tokens and context vectors stand where, and what a tower needs."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from coop_jax.clip import Tokenizer
from coop_jax.clip.config import TextConfig
from coop_jax.errors import InputError


def extents(
    tokens: Int[np.ndarray, "texts length"], end: int, tower: TextConfig
) -> tuple[Int[np.ndarray, " texts"], Int[np.ndarray, " texts"]]:
    """Return how many tokens of each text the tower needs, and at which its feature is read.

    Args:
        tokens: ids, padded.
        end: the end token's id.
        tower: whether it sees the padding, and where it reads.
    """
    ends = np.argmax(tokens == end, axis=-1).astype(np.int32)
    whole = np.full_like(ends, tokens.shape[-1])
    lengths = whole if tower.sees_padding else ends + 1
    return lengths, ends if tower.pooling == "end" else lengths - 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places of tokens and context vectors in each class's prompt (coop_protocol section 5).

    All classes share a prefix: the start token, if any, and the first `shared_context` context
    vectors. What follows differs by class, ends with the end token (or, in a tower that sees it,
    with the padding), and holds at each place either the token of `tokens` or, where `context` is
    not negative, that context vector. The feature is read at the place `read`.
    """

    shared_context: int
    tokens: Int[np.ndarray, "classes suffix"]
    context: Int[np.ndarray, "classes suffix"]
    lengths: Int[np.ndarray, " classes"]
    read: Int[np.ndarray, " classes"]

    @property
    def alike(self) -> int:
        """The number of tokens right behind the prefix that are the same for all classes."""
        same = ((self.tokens == self.tokens[:1]) & (self.context < 0)).all(axis=0)
        return min(int(np.append(same, False).argmin()), int(self.read.min()))

    def after(self, count: int) -> "Layout":
        """Return the places behind the first tokens of what follows the prefix."""
        return Layout(
            self.shared_context,
            self.tokens[:, count:],
            self.context[:, count:],
            self.lengths - count,
            self.read - count,
        )


def layout(
    tokenizer: Tokenizer,
    tower: TextConfig,
    class_names: Sequence[str],
    placeholder: str,
    n_ctx: int,
    position: str | int,
    *,
    shared: bool,
    ending: str = ".",
) -> Layout:
    """Lay out the prompts "placeholder class name." with `n_ctx` context vectors.

    Args:
        tokenizer: the CLIP's tokenizer.
        tower: what its text tower needs of a text.
        class_names: one per label.
        placeholder: text of at least `n_ctx` tokens; the first ones hold the context's place.
        n_ctx: number of context vectors M.
        position: class token position: "end", "middle" (after the first M // 2 context vectors)
            or "front"; or the number of context vectors in front of the class name.
        shared: whether all classes have the same context, which may then stand in the prefix.
        ending: what follows the class name.

    Raises:
        InputError: no such position, or a prompt that is longer than the tokenizer's context.
    """
    counts = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}
    before = position if isinstance(position, int) else counts.get(position)
    if before is None:
        raise InputError(
            f"class_token_position: expected one of {', '.join(counts)}, got {position!r:.80};"
            " choose one"
        )
    texts = [f"{placeholder} {name}{ending}".strip() for name in class_names]
    tokens = tokenizer(texts)
    lengths, read = extents(tokens, tokenizer.end, tower)
    places = np.empty_like(tokens)
    context = np.full_like(tokens, -1)
    first = len(tokenizer.starts)  # the placeholder's token, and so the first context vector's
    for row, name in enumerate(class_names):
        name_length = tokenizer.name_tokens(placeholder, name, ending)
        order = np.arange(tokens.shape[1])
        order[first : first + n_ctx + name_length] = first + np.concatenate(
            [np.arange(before), n_ctx + np.arange(name_length), np.arange(before, n_ctx)]
        )
        places[row] = tokens[row, order]
        is_context = (order >= first) & (order < first + n_ctx)
        context[row, is_context] = order[is_context] - first
    shared_context = before if shared else 0
    stop = int(lengths.max())
    whole = Layout(shared_context, places[:, :stop], context[:, :stop], lengths, read)
    return whole.after(first + shared_context)
