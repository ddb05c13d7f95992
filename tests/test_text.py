"""The shared-prefix form of the text tower against the plain 77-token form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, make_clip
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import plain_prompts, plain_text_features, products

from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.clip.packing import pack
from coop_jax.clip.text import Inserted, _encode
from coop_jax.methods import Images, text

WORDS = ("seven", "circle", "hen-of-the-woods", "a", "x", "very very long name")


def encode(clip, prefix, whole, end, **packed):
    """Features of the prefix with each class's embeddings `[classes, length, width]` behind it."""
    packing = pack(end + 1, **packed)
    index = np.arange(whole.shape[0] * whole.shape[1]).reshape(whole.shape[:2])
    laid = packing.lay(jnp.asarray(index[:, : packing.parts.places.shape[-1]]))
    inserted = Inserted(whole.reshape(1, -1, whole.shape[-1]), laid)
    return clip.text.encode(prefix, jnp.zeros_like(laid), packing, inserted)


def features(clip, prefix, suffix, end, **packed):
    return np.asarray(jax.jit(lambda *parts: encode(clip, *parts, end, **packed))(prefix, suffix))


def coop(clip, tokenizer, names=CLASS_NAMES, **config):
    return methods.create("coop", clip, tokenizer, names, config, seed=3)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 5, 16])
def test_coop_equals_the_plain_form(tiny_clip, tiny_tokenizer, position, class_specific, n_ctx):
    method = coop(
        tiny_clip,
        tiny_tokenizer,
        n_ctx=n_ctx,
        class_token_position=position,
        class_specific=class_specific,
    )
    embeddings, end = plain_prompts(
        tiny_clip, tiny_tokenizer, CLASS_NAMES, method.context[...], position
    )
    assert embeddings.shape[1] == 77
    expected = plain_text_features(tiny_clip, embeddings, end)
    got = np.asarray(method.texts(tiny_clip, None))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("position", ["end", "middle"])
def test_what_all_names_begin_with_is_computed_once(tiny_clip, tiny_tokenizer, position):
    names = ["a very fine cat", "a very fine dog", "a very"]
    method = coop(tiny_clip, tiny_tokenizer, names, n_ctx=4, class_token_position=position)
    beginning = len(tiny_tokenizer.ids("a very"))
    if position == "end":
        lengths = [len(tiny_tokenizer.ids(f"{name}.")) + 1 - beginning for name in names]
        assert method.prompts.packed.tokens.shape == (1, 1, sum(lengths))
    embeddings, end = plain_prompts(tiny_clip, tiny_tokenizer, names, method.context[...], position)
    expected = plain_text_features(tiny_clip, embeddings, end)
    got = np.asarray(method.texts(tiny_clip, None))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_gradient_equals_that_of_the_unshared_form(tiny_clip, tiny_tokenizer):
    method = coop(tiny_clip, tiny_tokenizer, n_ctx=4)
    target = jax.random.normal(jax.random.key(1), (len(CLASS_NAMES), 24))
    tokens = tiny_tokenizer([f"X X X X {name}." for name in CLASS_NAMES])
    table = tiny_clip.text.token_embedding[...]
    end = np.argmax(tokens == tiny_tokenizer.end, axis=1)

    def shared(context):
        start, suffix = table[tokens[0, :1]], table[tokens[:, 5:]]
        prefix = jnp.concatenate([start, context])
        return jnp.vdot(encode(tiny_clip, prefix, suffix, end - 5), target)

    def whole(context):
        prompts = table[tokens].at[:, 1:5].set(context)
        nothing = jnp.zeros((0, table.shape[1]))
        return jnp.vdot(encode(tiny_clip, nothing, prompts, end), target)

    context = method.context[...]
    got, expected = jax.jit(jax.grad(shared))(context), jax.jit(jax.grad(whole))(context)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@settings(max_examples=12)
@given(split=st.integers(0, 6), cut=st.integers(0, 9), seed=st.integers(0, 100))
def test_where_the_prefix_ends_and_what_follows_the_end_change_nothing(tiny_clip, split, cut, seed):
    width = tiny_clip.config.text.transformer.width
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(6, width)).astype(np.float32)
    rest = rng.normal(size=(3, 10, width)).astype(np.float32)
    end = np.asarray([cut, min(cut, 2), 0], np.int32)
    whole = np.concatenate([np.broadcast_to(shared, (3, 6, width)), rest], axis=1)
    expected = features(tiny_clip, whole[0, :0], whole, end + 6)
    changed = rest.copy()
    for row, position in zip(changed, end, strict=True):
        row[position + 1 :] = rng.normal(size=(9 - position, width))
    suffix = np.concatenate([np.broadcast_to(shared[split:], (3, 6 - split, width)), changed], 1)
    suffix = suffix[:, : 6 - split + int(end.max()) + 1]
    got = features(tiny_clip, shared[:split], suffix, end + 6 - split)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@settings(max_examples=6)
@given(batch=st.integers(1, 3))
def test_a_batch_of_prefixes_is_one_call_each(tiny_clip, batch):
    width = tiny_clip.config.text.transformer.width
    rng = np.random.default_rng(batch)
    prefix = rng.normal(size=(batch, 4, width)).astype(np.float32)
    suffix = rng.normal(size=(2, 3, width)).astype(np.float32)
    end = np.asarray([1, 2], np.int32)
    together = features(tiny_clip, prefix, suffix, end)
    assert together.shape == (batch, 2, tiny_clip.config.embedding)
    for index in range(batch):
        alone = features(tiny_clip, prefix[index], suffix, end)
        np.testing.assert_allclose(together[index], alone, rtol=0, atol=1e-5 * np.abs(alone).max())


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=17),
    shards=st.integers(1, 5),
    limit=st.integers(1, 60),
)
def test_packing_keeps_every_token_once(lengths, shards, limit):
    lengths = np.asarray(lengths)
    packing = pack(lengths, shards=shards, limit=limit)
    numbers = np.arange(len(lengths) * lengths.max()).reshape(len(lengths), -1)
    laid = np.asarray(packing.lay(jnp.asarray(numbers)))
    read = np.asarray(jax.vmap(jax.vmap(jnp.take))(laid, packing.parts.places))
    kept = [
        list(row[mask])
        for row, mask in zip(
            read.reshape(-1, lengths.max()),
            np.asarray(packing.parts.within).reshape(-1, lengths.max()),
            strict=True,
        )
        if mask.any()
    ]
    assert sorted(kept) == [list(row[:n]) for row, n in zip(numbers, lengths, strict=True)]
    ends = jnp.take_along_axis(jnp.asarray(laid), packing.parts.end, axis=-1)[..., None]
    collected = np.asarray(packing.collect(ends.astype(jnp.float32)))[:, 0]
    assert collected.tolist() == [row[n - 1] for row, n in zip(numbers, lengths, strict=True)]
    assert laid.shape[1] == shards


@pytest.mark.parametrize("packed", [{"shards": 3}, {"limit": 6}, {"shards": 2, "limit": 5}])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_chunks_and_shards_change_nothing(tiny_clip, packed, batch):
    width = tiny_clip.config.text.transformer.width
    rng = np.random.default_rng(0)
    prefix = rng.normal(size=(*batch, 3, width)).astype(np.float32)
    suffix = rng.normal(size=(7, 5, width)).astype(np.float32)
    end = np.asarray([4, 0, 2, 2, 3, 1, 0])
    assert pack(end + 1, **packed).parts.slots.shape[:2] != (1, 1)
    target = rng.normal(size=(*batch, 7, tiny_clip.config.embedding)).astype(np.float32)

    def loss(prefix, suffix, packed):
        return jnp.vdot(encode(tiny_clip, prefix, suffix, end, **packed), target)

    def run(packed):
        return jax.jit(jax.value_and_grad(functools.partial(loss, packed=packed), argnums=(0, 1)))

    whole, parts = (run(chosen)(prefix, suffix) for chosen in ({}, packed))
    for got, expected in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@settings(max_examples=8)
@given(order=st.permutations(range(len(WORDS))), position=st.sampled_from(["end", "middle"]))
def test_permuting_classes_permutes_logits(tiny_clip, tiny_tokenizer, one_device, order, position):
    images = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)

    def logits(names):
        method = coop(tiny_clip, tiny_tokenizer, names, n_ctx=3, class_token_position=position)
        return evaluate.logits(method, tiny_clip, Images(features=images), one_device)

    permuted = logits([WORDS[index] for index in order])
    np.testing.assert_allclose(permuted, logits(WORDS)[:, order], rtol=1e-4, atol=1e-4)


def test_texts_that_are_encoded_now_are_compiled_once(tiny_clip, tiny_tokenizer):
    prompts = (
        text.HandCrafted(methods.Given(tiny_clip, tiny_tokenizer, classes, nnx.Rngs(0)), ["a {}."])
        for classes in map(Classes, (CLASS_NAMES, CLASS_NAMES[::-1]))
    )
    first, second = (one.encode(tiny_clip, now=True) for one in prompts)
    assert np.abs(np.asarray(first - second)).max() > 1e-3
    compiled = _encode._cache_size()
    again = text.HandCrafted(
        methods.Given(tiny_clip, tiny_tokenizer, Classes(CLASS_NAMES), nnx.Rngs(0)), ["a {}."]
    )
    np.testing.assert_array_equal(again.encode(tiny_clip, now=True), first)
    assert _encode._cache_size() == compiled
    np.testing.assert_allclose(again.encode(tiny_clip), first, rtol=0, atol=1e-5)


def test_prompts_longer_than_the_context_are_refused(tiny_clip):
    width = tiny_clip.config.text.transformer.width
    with pytest.raises(ValueError, match="78 tokens do not fit the context of 77"):
        encode(tiny_clip, jnp.zeros((70, width)), jnp.zeros((2, 8, width)), np.asarray([0, 7]))


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_every_float32_product_asks_for_float32(tiny_tokenizer, vision):
    clip = make_clip(tiny_tokenizer, vision)
    method = coop(clip, tiny_tokenizer, n_ctx=4, class_token_position="middle")
    graph, learned, rest = nnx.split(method, methods.Learned, ...)
    size = clip.config.vision.image_size

    def loss(learned, images):
        method = nnx.merge(graph, learned, rest)
        features = clip.encode_image(images)
        return method.logits(clip, method.texts(clip, None), Images(features=features)).sum()

    program = jax.make_jaxpr(jax.grad(loss))(learned, np.zeros((2, size, size, 3), np.float32))
    found = list(products(program.jaxpr))
    assert len(found) > 20
    highest = jax.lax.Precision.HIGHEST
    assert {equation.params["precision"] for equation in found} == {(highest, highest)}
