"""What prompt learners share: tokenised prompts with places for context vectors."""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, Tokenizer
from coop_jax.clip.packing import Packing, Parts, pack
from coop_jax.errors import InputError
from coop_jax.methods.base import Derived, readable

logger = logging.getLogger(__name__)

POSITIONS = ("end", "middle", "front")


def end_positions(tokens: Int[np.ndarray, "*texts length"], end: int) -> Int[np.ndarray, "*texts"]:
    """The position of each text's end token."""
    return np.argmax(tokens == end, axis=-1).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where tokens and context vectors stand in each class's prompt (coop_protocol section 5).

    All classes share a prefix: the start token and the first `shared_context` context vectors.
    What follows differs by class, ends with the end token, and holds at each place either the
    token of `tokens` or, where `context` is not negative, that context vector.
    """

    shared_context: int
    tokens: Int[np.ndarray, "classes suffix"]
    context: Int[np.ndarray, "classes suffix"]
    lengths: Int[np.ndarray, " classes"]


class Packed(nnx.Module):
    """The token ids of class-dependent texts, laid end to end for the text tower."""

    def __init__(
        self,
        tokens: Int[np.ndarray, "classes suffix"],
        lengths: Int[np.ndarray, " classes"],
        shards: int,
        *,
        same_classes: bool = False,
    ):
        packing = pack(lengths, shards=shards, same_classes=same_classes)
        for field in dataclasses.fields(Parts):
            setattr(self, field.name, self.sharded(getattr(packing.parts, field.name)))
        self.label = self.sharded(packing.label)
        self.row = Derived(jax.device_put(packing.row))
        self.tokens = self.lay(tokens)

    def lay(self, values: Int[np.ndarray, "classes suffix"]) -> Derived:
        """What belongs to each token, given for each place of each class's text."""
        return self.sharded(self.packing.lay(values.astype(np.int32)))

    @staticmethod
    def sharded(value: Array | np.ndarray) -> Derived:
        """A variable whose second axis, the shards of the classes, may be split over devices."""
        return Derived(jax.device_put(value), shard_axis=1)

    @property
    def packing(self) -> Packing:
        """Where the tokens lie."""
        parts = {field.name: getattr(self, field.name)[...] for field in dataclasses.fields(Parts)}
        return Packing(Parts(**parts), self.label[...], self.row[...])


def layout(
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    placeholder: str,
    n_ctx: int,
    position: str,
    *,
    shared: bool,
) -> Layout:
    """Lay out the prompts "placeholder class name." with `n_ctx` context vectors.

    Args:
        tokenizer: the CLIP's tokenizer.
        class_names: one per label.
        placeholder: text of at least `n_ctx` tokens; the first ones hold the context's place.
        n_ctx: number of context vectors M.
        position: class token position: "end", "middle" (after the first M // 2 context vectors)
            or "front".
        shared: whether all classes have the same context, which may then stand in the prefix.

    Raises:
        InputError: no such position, or a prompt that is longer than the tokenizer's context.
    """
    if position not in POSITIONS:
        raise InputError(
            f"class_token_position: expected one of {', '.join(POSITIONS)}, got {position!r}"
        )
    texts = [f"{placeholder} {readable(name)}.".strip() for name in class_names]
    tokens = tokenizer(texts)
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    places = np.empty_like(tokens)
    context = np.full_like(tokens, -1)
    for row, name in enumerate(class_names):
        name_length = len(tokenizer.ids(readable(name)))
        order = np.arange(tokens.shape[1])
        # Token positions 1..n_ctx are the placeholder's: the context vectors in order.
        order[1 : 1 + before + name_length + n_ctx - before] = np.concatenate(
            [
                np.arange(before) + 1,
                np.arange(name_length) + 1 + n_ctx,
                np.arange(before, n_ctx) + 1,
            ]
        )
        places[row] = tokens[row, order]
        is_context = (order >= 1) & (order <= n_ctx)
        context[row, is_context] = order[is_context] - 1
    shared_context = before if shared else 0
    start = 1 + shared_context
    lengths = end_positions(tokens, tokenizer.end) + 1 - start
    stop = start + int(lengths.max())
    return Layout(shared_context, places[:, start:stop], context[:, start:stop], lengths)


def initial_context(
    clip: CLIP, tokenizer: Tokenizer, phrase: str, shape: tuple[int, ...], rngs: nnx.Rngs
) -> tuple[Float[Array, "*classes context width"], str]:
    """Context vectors before training, float32, and the text that holds their place.

    They are normal with deviation 0.02 in the given shape or, where there is a phrase, the
    embeddings of its first tokens, as many as it has words (coop_protocol section 5). Where a word
    is several tokens, the phrase's last ones are therefore not learned but stay in the prompt, in
    front of the class name's own: the official code's behaviour, which the log points out.

    Raises:
        InputError: there would be no vector.
    """
    words = readable(phrase).split()
    n_ctx = len(words) if phrase else shape[-2]
    if n_ctx < 1:
        raise InputError(f"expected at least one context vector, got {n_ctx}; raise n_ctx")
    if not phrase:
        drawn = 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)
        return drawn, " ".join(["X"] * n_ctx)
    text = " ".join(words)
    ids = np.asarray(tokenizer.ids(text), np.int32)
    if len(ids) != n_ctx:
        logger.warning(
            "context_init %r has more tokens (%d) than words (%d): as in the official code, only as"
            " many are learned as there are words, the first",
            text,
            len(ids),
            n_ctx,
        )
    return clip.text.token_embedding[...][ids[:n_ctx]].astype(jnp.float32), text
