"""What learns inside the towers, and what is read of them, against the plain forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_clip
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import RANK, SCALE, Bottleneck, close, draw, factors, prompts
from oracle import (
    normalised,
    numbers,
    plain_image_features,
    plain_norm,
    plain_text_features,
    plain_vision_tokens,
)

from coop_jax.clip.config import PixelConfig
from coop_jax.clip.packing import pack
from coop_jax.clip.preprocess import normalize
from coop_jax.clip.text import Deep, Inserted
from coop_jax.clip.transformer import part
from coop_jax.errors import InputError
from coop_jax.methods import layers


@pytest.fixture(scope="module")
def resnet(tiny_tokenizer):
    return make_clip(tiny_tokenizer, "resnet")


@pytest.fixture(scope="module")
def images():
    return draw(0, 3, 32, 32, 3)


def wrapped(clip, kind):
    """A CLIP with learned parts in both towers, and what the plain forms of these take."""
    clip, inside = nnx.clone(clip), {}
    for name in ("text", "vision"):
        tower, config = getattr(clip, name), getattr(clip.config, name).transformer
        inside[name] = {}
        if kind in ("low rank", "both"):
            thirds, updates = factors(config, layers.THIRDS)
            output, update = factors(config, ("output",), seed=5)
            blocks = tower.blocks
            blocks.query_key_value = layers.LowRank(blocks.query_key_value, thirds, SCALE)
            blocks.attention_output = layers.LowRank(
                blocks.attention_output, output, SCALE, parts=("output",)
            )
            inside[name]["low_rank"] = updates | update
        if kind in ("adapter", "both"):
            down = draw(30, config.layers, config.width, RANK)
            up = draw(31, config.layers, RANK, config.width)
            tower.blocks = layers.WithAdapter(tower.blocks, Bottleneck(down, up))
            inside[name]["adapter"] = down, up
    return clip, inside


def packed(clip, embeddings, end, split, deep=None, **how):
    """Features of whole prompts, of which the first `split` tokens are the shared prefix."""
    rest, lengths = embeddings[:, split:], end + 1 - split
    packing = pack(lengths, **how)
    index = np.arange(rest.shape[0] * rest.shape[1]).reshape(rest.shape[:2])
    laid = packing.lay(index[:, : packing.parts.places.shape[-1]])
    inserted = Inserted(jnp.asarray(rest.reshape(1, -1, rest.shape[-1])), laid)
    prefix = jnp.asarray(embeddings[0, :split])
    return clip.text.encode(prefix, jnp.zeros_like(laid), packing, inserted, deep=deep)


@pytest.mark.parametrize("kind", ["low rank", "adapter", "both"])
@pytest.mark.parametrize("how", [{}, {"limit": 7}, {"shards": 2}])
def test_blocks_in_a_module_pass_through_the_packed_text_tower(
    tiny_clip, tiny_tokenizer, kind, how
):
    clip, inside = wrapped(tiny_clip, kind)
    embeddings, end = prompts(tiny_clip, tiny_tokenizer, draw(2, 4, 32))
    expected = plain_text_features(tiny_clip, embeddings, end, **inside["text"])
    frozen = plain_text_features(tiny_clip, embeddings, end)
    assert np.abs(expected - frozen).max() > 0.01 * np.abs(frozen).max()
    close(jax.jit(lambda: packed(clip, embeddings, end, 5, **how))(), expected)


def test_blocks_in_a_module_read_tokenised_texts(tiny_clip, tiny_tokenizer):
    clip, inside = wrapped(tiny_clip, "both")
    tokens = tiny_tokenizer(["a photo of a seven.", "a circle"])
    embeddings = np.asarray(tiny_clip.text.token_embedding[...])[tokens]
    end = np.argmax(tokens == tiny_tokenizer.end, axis=1)
    close(
        clip.encode_text(tokens), plain_text_features(tiny_clip, embeddings, end, **inside["text"])
    )


@pytest.mark.parametrize("kind", ["low rank", "adapter", "both"])
def test_blocks_in_a_module_pass_through_the_vision_tower(tiny_clip, images, kind):
    clip, inside = wrapped(tiny_clip, kind)
    tokens = plain_vision_tokens(tiny_clip, images, **inside["vision"])
    expected, frozen = (
        plain_image_features(tiny_clip, each)
        for each in (tokens, plain_vision_tokens(tiny_clip, images))
    )
    assert np.abs(expected - frozen).max() > 0.01 * np.abs(frozen).max()
    close(jax.jit(lambda images: clip.encode_image(images))(images), expected)


@settings(max_examples=6)
@given(
    count=st.integers(1, 4),
    start=st.integers(1, 4),
    active=st.lists(st.booleans(), min_size=3, max_size=3),
    how=st.sampled_from([{}, {"limit": 9}, {"shards": 3}]),
)
def test_deep_text_prompts_equal_the_plain_form(
    tiny_clip, tiny_tokenizer, count, start, active, how
):
    count = min(count, 5 - start)
    embeddings, end = prompts(tiny_clip, tiny_tokenizer, draw(2, 4, 32))
    vectors, active = draw(3, 3, count, 32), np.asarray(active)
    deep = Deep(jnp.asarray(vectors), jnp.asarray(active), start)
    expected = plain_text_features(tiny_clip, embeddings, end, deep=(vectors, active, start))
    close(jax.jit(lambda: packed(tiny_clip, embeddings, end, 5, deep, **how))(), expected)


def test_deep_text_prompts_pass_through_blocks_in_a_module(tiny_clip, tiny_tokenizer):
    clip, inside = wrapped(tiny_clip, "both")
    embeddings, end = prompts(tiny_clip, tiny_tokenizer, draw(2, 4, 32))
    vectors, active = draw(3, 3, 4, 32), np.asarray([False, True, True])
    expected = plain_text_features(
        tiny_clip, embeddings, end, deep=(vectors, active, 1), **inside["text"]
    )
    close(jax.jit(lambda: packed(clip, embeddings, end, 5, Deep(vectors, active)))(), expected)


def test_inactive_deep_text_prompts_change_no_bit(tiny_clip, tiny_tokenizer):
    embeddings, end = prompts(tiny_clip, tiny_tokenizer, draw(2, 4, 32))
    deep = Deep(jnp.asarray(draw(3, 3, 4, 32)), jnp.zeros(3, bool))
    without = jax.jit(lambda: packed(tiny_clip, embeddings, end, 5))()
    np.testing.assert_array_equal(
        jax.jit(lambda: packed(tiny_clip, embeddings, end, 5, deep))(), without
    )


@pytest.mark.parametrize("own", [False, True])
def test_a_batch_of_prefixes_with_deep_prompts_is_one_call_each(tiny_clip, own):
    prefixes, deep = draw(0, 2, 5, 32), draw(1, 3, 2, 4, 32)
    deep = deep if own else deep[:, :1]
    active = jnp.asarray([False, True, True])
    packing = pack(np.asarray([2, 3]))
    tokens = packing.lay(np.asarray([[4, 5, 0], [6, 7, 8]]))

    def encode(prefix, vectors):
        return tiny_clip.text.encode(prefix, tokens, packing, deep=Deep(vectors, active))

    together = encode(jnp.asarray(prefixes), jnp.asarray(deep))
    for index in range(2):
        alone = encode(jnp.asarray(prefixes[index]), jnp.asarray(deep[:, index if own else 0]))
        close(together[index], np.asarray(alone))


@pytest.mark.parametrize(
    ("count", "start", "depth", "message"),
    [
        (4, 2, 3, "deep vectors for tokens 2 to 5 are outside a prefix of 5"),
        (4, -1, 3, "deep vectors for tokens -1 to 2 are outside a prefix of 5"),
        (4, 1, 2, "deep vectors for 2 layers, 2 of them active or not, do not fit a tower of 3"),
    ],
)
def test_deep_text_prompts_that_do_not_fit_are_refused(
    tiny_clip, tiny_tokenizer, count, start, depth, message
):
    embeddings, end = prompts(tiny_clip, tiny_tokenizer, draw(2, 4, 32))
    deep = Deep(jnp.asarray(draw(3, depth, count, 32)), jnp.ones(depth, bool), start)
    with pytest.raises(ValueError, match=message):
        packed(tiny_clip, embeddings, end, 5, deep)


@settings(max_examples=4)
@given(count=st.integers(1, 4), active=st.lists(st.booleans(), min_size=2, max_size=2))
def test_deep_vision_prompts_equal_the_plain_form(tiny_clip, images, count, active):
    shallow, vectors, active = draw(3, count, 32), draw(4, 2, count, 32), np.asarray(active)
    expected = plain_vision_tokens(tiny_clip, images, shallow, deep=(vectors, active, 17))
    got = layers.prompted_tokens(
        tiny_clip.vision,
        jnp.asarray(images),
        jnp.asarray(shallow),
        (jnp.asarray(vectors), jnp.asarray(active)),
    )
    close(got, expected)
    close(tiny_clip.vision.pool(got), plain_image_features(tiny_clip, expected))


def test_shallow_vision_prompts_equal_the_plain_form(tiny_clip, images):
    shallow = draw(3, 4, 32)
    got = layers.prompted_tokens(tiny_clip.vision, jnp.asarray(images), jnp.asarray(shallow))
    close(got, plain_vision_tokens(tiny_clip, images, shallow))


def test_every_image_may_have_vision_prompts_of_its_own(tiny_clip, images):
    shallow, vectors, active = draw(3, 3, 4, 32), draw(4, 2, 3, 4, 32), jnp.asarray([False, True])

    def encode(images, shallow, vectors):
        return layers.prompted_tokens(tiny_clip.vision, images, shallow, (vectors, active))

    together = encode(images, shallow, jnp.asarray(vectors))
    for index in range(3):
        alone = encode(images[index : index + 1], shallow[index], jnp.asarray(vectors[:, index]))
        close(together[index : index + 1], np.asarray(alone))


def test_vision_prompts_pass_through_blocks_in_a_module(tiny_clip, images):
    clip, inside = wrapped(tiny_clip, "both")
    vectors, active = draw(4, 2, 2, 32), np.asarray([True, True])
    clip.vision.blocks = layers.PromptedBlock(clip.vision.blocks, vectors, active, start=1)
    expected = plain_vision_tokens(tiny_clip, images, deep=(vectors, active, 1), **inside["vision"])
    close(clip.vision.tokens(jnp.asarray(images)), expected)


def test_what_is_read_of_the_vision_tower(tiny_clip, images):
    vision, config = tiny_clip.vision, tiny_clip.config.vision.transformer
    tokens = plain_vision_tokens(tiny_clip, images)
    unprojected = plain_norm(vision, config, tokens[:, 0], "final_norm")
    projected = plain_norm(vision, config, tokens, "final_norm") @ numbers(vision)("projection")
    close(vision.tokens(images), tokens)
    close(vision.unprojected(images), unprojected)
    close(vision.to_embedding(vision.unprojected(images)), projected[:, 0])
    close(vision.to_embedding(vision.final_norm(vision.tokens(images))), projected)
    close(tiny_clip.encode_image(images), projected[:, 0])
    close(vision.patches(images), projected[:, 1:])


def test_the_parts_of_the_vision_tower_make_the_whole_to_the_last_bit(tiny_clip, images):
    vision = tiny_clip.vision

    @jax.jit
    def parts(images):
        return vision.pool(vision.layers(vision.initial_norm(vision.embed(images))))

    np.testing.assert_array_equal(parts(images), jax.jit(lambda images: vision(images))(images))


def test_local_features_of_a_vision_transformer(tiny_clip, images):
    """GalLoP: in the last block every patch takes its own value, nothing is mixed."""
    vision, config = tiny_clip.vision, tiny_clip.config.vision.transformer
    array = numbers(vision)
    short = nnx.clone(vision)
    short.blocks = part(vision.blocks, slice(0, 1))
    x = np.asarray(short.tokens(images), np.float64)[:, 1:]

    def norm(x, name):
        scale, bias = (array("blocks", name, "norm", key)[-1] for key in ("scale", "bias"))
        return normalised(x, config.epsilon) * scale + bias

    def linear(x, name, columns=slice(None)):
        kernel = array("blocks", name, "kernel")[-1, :, columns]
        return x @ kernel + array("blocks", name, "bias")[-1, columns]

    value = linear(norm(x, "attention_norm"), "query_key_value", slice(2 * config.width, None))
    x = x + linear(value, "attention_output")
    inner = linear(norm(x, "mlp_norm"), "mlp_input")
    x = x + linear(inner / (1 + np.exp(-1.702 * inner)), "mlp_output")
    close(vision.local(images), plain_norm(vision, config, x, "final_norm"))


def test_what_is_read_of_a_resnet(resnet):
    vision, images = resnet.vision, draw(0, 3, 64, 64, 3)

    @jax.jit
    def read(images):
        trunk = vision.trunk(images)
        outputs = trunk, vision.tokens(images), vision.local(images), vision.pool(trunk)
        return *outputs, vision.unprojected(images)

    trunk, tokens, local, pooled, unprojected = read(images)
    array = numbers(vision.pool)
    assert trunk.shape == (3, 2, 2, 256)
    expected = np.asarray(trunk, np.float64).reshape(3, 4, 256)
    close(tokens, expected)
    values = expected @ array("value", "kernel") + array("value", "bias")
    close(local, values @ array("output", "kernel") + array("output", "bias"))
    close(pooled, np.asarray(jax.jit(lambda images: vision(images))(images)))
    assert unprojected.shape == (3, 256)
    projected = np.asarray(unprojected, np.float64) @ array("output", "kernel")
    close(pooled, projected + array("output", "bias"))

    x = np.concatenate([expected.mean(axis=1, keepdims=True), expected], axis=1)
    x = x + array("positional_embedding")
    query, key, value = (
        (x @ array(name, "kernel") + array(name, "bias")).reshape(3, 5, 4, -1)
        for name in ("query", "key", "value")
    )
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    attended = np.einsum("bhqk,bkhd->bqhd", shares, value).reshape(3, 5, -1)
    everywhere = attended @ array("output", "kernel") + array("output", "bias")
    # Scores are in the thousands with these weights, and lose digits.
    close(pooled, everywhere[:, 0], 3e-4)
    close(jax.jit(vision.patches)(images), everywhere[:, 1:], 3e-4)


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_pixels_are_normalised_as_the_checkpoint_says(tiny_tokenizer, vision):
    clip = make_clip(tiny_tokenizer, vision)
    pixels = PixelConfig(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    clip.config = dataclasses.replace(clip.config, pixels=pixels)
    size = clip.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    encode = jax.jit(lambda images: clip.encode_image(images))
    expected = encode(normalize(pixels, clip.config.pixels.mean, clip.config.pixels.std))
    close(encode(pixels), np.asarray(expected))
    with pytest.raises(InputError, match="expected uint8 pixels"):
        clip.encode_image(pixels.astype(np.int32))
