"""Prompts: hand-crafted ones, and ones with places for context vectors, laid out for the tower."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.classes import spelled
from coop_jax.clip import CLIP, unit
from coop_jax.clip.features import needed
from coop_jax.clip.packing import TOKENS_AT_ONCE, Packing, Parts, pack
from coop_jax.clip.text import Deep, Inserted, Later
from coop_jax.errors import InputError
from coop_jax.methods.base import Fixed, Given, Learned, Method
from coop_jax.methods.layout import Layout, extents, layout

logger = logging.getLogger(__name__)


class Packed(nnx.Module):
    """The token ids of class-dependent texts, laid end to end for the text tower."""

    def __init__(
        self,
        tokens: Int[np.ndarray, "classes suffix"],
        lengths: Int[np.ndarray, " classes"],
        shards: int,
        *,
        same_classes: bool = False,
        read: Int[np.ndarray, " classes"] | None = None,
    ):
        packing = pack(lengths, shards=shards, same_classes=same_classes, read=read)
        for field in dataclasses.fields(Parts):
            setattr(self, field.name, self.sharded(getattr(packing.parts, field.name)))
        self.label = self.sharded(packing.label)
        self.row = Fixed(jax.device_put(packing.row))
        self.tokens = self.lay(tokens)

    def lay(self, values: Int[np.ndarray, "classes suffix"]) -> Fixed:
        """Return what belongs to each token, given for each place of each class's text."""
        return self.sharded(self.packing.lay(values.astype(np.int32)))

    @staticmethod
    def sharded(value: Array | np.ndarray) -> Fixed:
        """A variable whose second axis, the shards of the classes, may be split over devices."""
        return Fixed(jax.device_put(value), shard_axis=1)

    @property
    def packing(self) -> Packing:
        """The places of the tokens."""
        parts = {field.name: getattr(self, field.name)[...] for field in dataclasses.fields(Parts)}
        return Packing(Parts(**parts), self.label[...], self.row[...])


class HandCrafted(nnx.Module):
    """Hand-crafted prompts of all classes; text features that are given stand for them.

    Args:
        given: what the method is made of.
        templates: with {} for the class name.

    Raises:
        InputError: there is no template, or one without {} or with several; or another than the
            dataset's own where text features are given.
    """

    def __init__(self, given: Given, templates: Sequence[str]):
        templates = tuple(templates)
        check_templates(templates)
        if given.texts is not None:
            if templates != (given.template,):
                raise InputError(
                    "templates: expected none where text features are given, got"
                    f" {', '.join(map(repr, templates))}; leave them out"
                )
            self.given = Fixed(jnp.asarray(given.texts, jnp.float32))
            return
        tokenizer, names = needed(given.tokenizer), given.classes.spelled
        tokens = tokenizer(
            [template.replace("{}", name) for template in templates for name in names]
        )
        self.templates = len(templates)
        first = len(tokenizer.starts)
        self.start = Fixed(given.clip.text.embed(tokens[0, :first]))
        lengths, read = extents(tokens, tokenizer.end, given.clip.config.text)
        self.packed = Packed(tokens[:, first:], lengths - first, given.shards, read=read - first)

    def encode(
        self, clip: CLIP, *, now: bool = False
    ) -> Float[Array, "templates classes embedding"]:
        """Return unnormalised text features; `now` is for where nothing around it is compiled."""
        if hasattr(self, "given"):
            return self.given[...]
        encode = clip.text.encode_now if now else clip.text.encode
        features = encode(self.start[...], self.packed.tokens[...], self.packed.packing)
        return features.reshape(self.templates, -1, features.shape[-1])


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates without {} or with several, and none at all.

    Raises:
        InputError: there is none, or such a one.
    """
    faulty = [template for template in templates if template.count("{}") != 1]
    if not templates or faulty:
        raise InputError(
            "templates: expected at least one, each with one {}, got"
            f" {', '.join(map(repr, faulty)) or 'none'!s:.80}; correct them"
        )


class Prompts(nnx.Module):
    """Prompts of all classes with places for context vectors.

    Args:
        given: what the method is made of.
        placeholder: text that holds the context's place, from `initial_context`.
        n_ctx: number of context vectors M.
        position: class token position: "end", "middle" (after the first M // 2 context vectors)
            or "front"; or the number of context vectors in front of the class name.
        shared: whether all classes have the same context.
        names: of the classes; by default as prompts spell them.
        ending: what follows the class name.
        reads_end: read the feature at the end token; else at the token before it.

    Raises:
        InputError: no such position, or a prompt that is longer than the tokenizer's context.
    """

    def __init__(
        self,
        given: Given,
        placeholder: str,
        n_ctx: int,
        position: str | int = "end",
        *,
        shared: bool = True,
        names: Sequence[str] = (),
        ending: str = ".",
        reads_end: bool = True,
    ):
        tokenizer = needed(given.tokenizer)
        tower, names = given.clip.config.text, names or given.classes.spelled
        laid = layout(
            tokenizer, tower, names, placeholder, n_ctx, position, shared=shared, ending=ending
        )
        if not reads_end:
            laid = dataclasses.replace(laid, read=laid.read - 1)
        alike = laid.alike if laid.shared_context else 0
        self.shared_context = laid.shared_context
        self.start = Fixed(given.clip.text.embed(np.asarray(tokenizer.starts, np.int32)))
        self.common = Fixed(jnp.asarray(laid.tokens[0, :alike], jnp.int32))
        laid = laid.after(alike)
        # Each device can keep the contexts of its own classes if they have the same number of them.
        self.groups = 1 if shared or len(names) % given.shards else given.shards
        self.packed = Packed(
            laid.tokens, laid.lengths, given.shards, same_classes=self.groups > 1, read=laid.read
        )
        self.inserted = self._numbers(laid, None if shared else n_ctx)

    @property
    def at_once(self) -> int:
        """The number of images with contexts of their own may be worked on at once, at least 1."""
        return max(TOKENS_AT_ONCE // self.packed.tokens.shape[-1], 1)

    def _numbers(self, laid: Layout, n_ctx: int | None) -> Fixed | None:
        """Return the number of the context vector at each token; None if all are in the prefix.

        It is -1 where there is none. A class-specific context's vectors, `n_ctx` for each class,
        are counted within each group of classes.
        """
        if not (laid.context >= 0).any():
            return None
        numbers = laid.context
        if n_ctx is not None:
            place = np.arange(len(numbers)) % (len(numbers) // self.groups)
            numbers = np.where(numbers >= 0, numbers + place[:, None] * n_ctx, -1)
        return self.packed.lay(numbers)

    def encode(
        self,
        clip: CLIP,
        context: Float[Array, "*batch context width"],
        *,
        deep: Deep | None = None,
        later: Later | None = None,
        head: Callable[[Array], Array] = lambda features: features,
    ) -> Float[Array, "*batch classes embedding"]:
        """Return unnormalised text features of the prompts with this context.

        Args:
            clip: the CLIP.
            context: `[M, width]`; or `[classes, M, width]` class-specific; or `[batch, M, width]`
                for several contexts, at the class token position "end".
            deep: vectors that replace those of the context at some layers.
            later: those `[classes, M, width]` that replace a class-specific context at a layer.
            head: as `TextTower.encode` takes it.
        """
        prefix = self.start[...]
        if deep is not None:
            deep = deep._replace(start=len(prefix))
        inserted = None
        if self.inserted is not None:
            vectors = context.reshape(self.groups, -1, context.shape[-1])
            inserted = Inserted(vectors, self.inserted[...])
        if self.shared_context:
            shared = context[..., : self.shared_context, :].astype(prefix.dtype)
            start, common = (
                jnp.broadcast_to(part, (*context.shape[:-2], *part.shape))
                for part in (prefix, clip.text.embed(self.common[...]))
            )
            prefix = jnp.concatenate([start, shared, common], axis=-2)
        if later is not None:
            vectors = later.vectors.reshape(self.groups, -1, later.vectors.shape[-1])
            later = later._replace(vectors=vectors)
        packed = self.packed
        return clip.text.encode(
            prefix, packed.tokens[...], packed.packing, inserted, deep=deep, later=later, head=head
        )


def hand_crafted_features(
    given: Given, *templates: str, normalized: bool = True
) -> Float[Array, "classes embedding"]:
    """Return the frozen CLIP's text features of all classes: normalised, averaged over templates.

    Args:
        given: what the method is made of.
        templates: with {} for the class name; where there is none but "", the dataset's own.
        normalized: whether features are normalised before they are averaged; else float32 all the
            same.

    Raises:
        InputError: there is a template without {} or with several.
    """
    prompts = HandCrafted(given, list(filter(None, templates)) or (given.template,))
    features = prompts.encode(given.clip, now=True)
    return (unit(features) if normalized else features.astype(jnp.float32)).mean(axis=0)


def plain_features(
    given: Given, texts: Sequence[str], *, truncate: bool = False
) -> Float[Array, "texts embedding"]:
    """Return the frozen CLIP's unnormalised features of any texts, as they stand.

    Args:
        given: what the method is made of.
        texts: at least one.
        truncate: cut a text that is too long, keeping its end token.

    Raises:
        InputError: a text is too long and `truncate` is off, or there is no text tower.
    """
    tokenizer, tower = needed(given.tokenizer), given.clip.text
    tokens, first = tokenizer(texts, truncate=truncate), len(tokenizer.starts)
    lengths, read = extents(tokens, tokenizer.end, given.clip.config.text)
    packed = Packed(tokens[:, first:], lengths - first, given.shards, read=read - first)
    return tower.encode_now(tower.embed(tokens[0, :first]), packed.tokens[...], packed.packing)


class Prompted(Method):
    """A method whose text features are those of prompts with one learned context.

    Attributes:
        context: `[M, width]`, or `[classes, M, width]` class-specific.
        prompts: what holds it.
    """

    context: Learned
    prompts: Prompts

    def settings(self) -> dict[str, Any]:
        """Return M and whether the context is class-specific, as a phrase may have changed them."""
        return {"n_ctx": self.context.shape[-2], "class_specific": self.context.ndim == 3}

    def word_vectors(self) -> dict[str, Array]:
        """Return the context."""
        return {"context": self.context[...]}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return unnormalised text features of the learned prompts."""
        return self.prompts.encode(clip, self.context[...])


def learned_prompts(
    given: Given,
    n_ctx: int,
    *,
    context_init: str = "",
    class_specific: bool = False,
    class_token_position: str | int = "end",
    at_least: int = 0,
) -> tuple[Learned, Prompts]:
    """Return a context before training, and the prompts that hold it.

    Args:
        given: what the method is made of.
        n_ctx: number of context vectors M, where there is no phrase.
        context_init: the phrase of `initial_context`; empty for none.
        class_specific: one context per class; ignored where there is a phrase.
        class_token_position: as `Prompts` takes it.
        at_least: vectors; where a phrase has fewer words, vectors of zeros stand in front.

    Raises:
        InputError: there would be no vector, or prompts that are too long; no such position.
    """
    if context_init and class_specific:
        logger.warning("context_init gives a shared context: class_specific is ignored")
    shared = bool(context_init) or not class_specific
    context, holder = initial_context(given, context_init, n_ctx, class_specific=not shared)
    if context_init and (missing := at_least - len(context)) > 0:
        context = jnp.pad(context, ((missing, 0), (0, 0)))
        holder = " ".join([placeholder(given, missing), holder])
    learned = Learned(context, per_class=not shared, shard_axis=None if shared else 0)
    position = class_token_position
    return learned, Prompts(given, holder, context.shape[-2], position, shared=shared)


def initial_context(
    given: Given, phrase: str, n_ctx: int, *, class_specific: bool = False
) -> tuple[Float[Array, "*classes context width"], str]:
    """Return context vectors before training, float32, and the text that holds their place.

    They are `[n_ctx, width]`, or class-specific `[classes, n_ctx, width]`, normal with deviation
    0.02; or, where there is a phrase, `[words, width]`: the embeddings of its first tokens, as many
    as it has words (coop_protocol section 5). Where a word is several tokens, the last ones are not
    learned but stay in the prompt, as in the official code; the log points that out.

    Raises:
        InputError: there would be no vector.
    """
    words = spelled([phrase])[0].split()
    n_ctx = len(words) if phrase else n_ctx
    if n_ctx < 1:
        raise InputError(f"expected at least one context vector, got {n_ctx}; raise n_ctx")
    if not phrase:
        width = given.clip.config.text.transformer.width
        shape = (len(given.classes),) * class_specific + (n_ctx, width)
        drawn = 0.02 * jax.random.normal(given.rngs.params(), shape, jnp.float32)
        return drawn, placeholder(given, n_ctx)
    text = " ".join(words)
    vectors = embedded_words(given, text)
    if len(vectors) != n_ctx:
        logger.warning(
            "context_init %r has more tokens (%d) than words (%d): as in the official code, only as"
            " many are learned as there are words, the first",
            text,
            len(vectors),
            n_ctx,
        )
    return vectors[:n_ctx], text


def placeholder(given: Given, n_ctx: int) -> str:
    """Return a text of so many tokens, which holds the place of as many context vectors."""
    return " ".join([needed(given.tokenizer).placeholder] * n_ctx)


def embedded_words(given: Given, phrase: str) -> Float[Array, "tokens width"]:
    """Return the token embeddings of a phrase, float32.

    Raises:
        InputError: the phrase has no token.
    """
    ids = np.asarray(needed(given.tokenizer).ids(spelled([phrase])[0]), np.int32)
    if not len(ids):
        raise InputError(f"expected a phrase to start the context from, got {phrase!r}; give one")
    return given.clip.text.token_embedding[...][ids].astype(jnp.float32)
