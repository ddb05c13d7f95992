"""Gradients inside the towers: right, of what is learned alone, and without much memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, make_clip
from flax import nnx
from inside import RANK, SCALE, Bottleneck, close, draw, prompts
from oracle import (
    plain_image_features,
    plain_text_features,
    plain_vision_tokens,
    products,
)

from coop_jax.clip.packing import pack
from coop_jax.clip.text import Deep
from coop_jax.clip.transformer import scan
from coop_jax.methods import layers


@pytest.fixture(scope="module")
def images():
    return draw(0, 3, 32, 32, 3)


def learned_parts():
    """Everything that a method may learn inside the tiny towers."""
    text, vision = (draw(seed, rows, 32) for seed, rows in ((40, 4), (41, 3)))
    return {
        "context": text,
        "deep_text": draw(42, 3, 4, 32),
        "prompts": vision,
        "deep_vision": draw(43, 2, 3, 32),
        "down": draw(44, 2, 32, RANK),
        "up": draw(45, 2, RANK, 32),
        "low_rank_down": draw(46, 3, 32, RANK),
        "low_rank_up": draw(47, 3, RANK, 32),
    }


def learned_features(clip, tokenizer, images, learned):
    """Text and image features with all of it inside."""
    clip = nnx.clone(clip)
    text, vision = clip.text, clip.vision
    pair = learned["low_rank_down"], learned["low_rank_up"]
    blocks = text.blocks
    blocks.query_key_value = layers.LowRank(blocks.query_key_value, {"value": pair}, SCALE)
    vision.blocks = layers.WithAdapter(vision.blocks, Bottleneck(learned["down"], learned["up"]))
    tokens = tokenizer([f"X X X X {name}." for name in CLASS_NAMES])
    lengths = np.argmax(tokens == tokenizer.end, axis=1) - 4
    packing = pack(lengths)
    prefix = jnp.concatenate([text.embed(tokens[0, :1]), learned["context"]])
    laid = packing.lay(tokens[:, 5 : 5 + int(lengths.max())])
    deep = Deep(learned["deep_text"], jnp.asarray([False, True, False]))
    texts = text.encode(prefix, laid, packing, deep=deep)
    behind = learned["deep_vision"], jnp.asarray([False, True])
    return texts, vision.pool(layers.prompted_tokens(vision, images, learned["prompts"], behind))


def plain_learned_features(clip, tokenizer, images, learned):
    """The same in the plain form."""
    embeddings, end = prompts(clip, tokenizer, np.zeros_like(learned["context"]))
    embeddings = embeddings.astype(np.float64)
    embeddings[:, 1:5] = learned["context"]
    texts = plain_text_features(
        clip,
        embeddings,
        end,
        deep=(learned["deep_text"], (False, True, False), 1),
        low_rank={
            "value": SCALE * learned["low_rank_down"] @ learned["low_rank_up"],
            **dict.fromkeys(("query", "key", "output"), np.zeros((3, 32, 32))),
        },
    )
    tokens = plain_vision_tokens(
        clip,
        images,
        learned["prompts"],
        deep=(learned["deep_vision"], (False, True), 17),
        adapter=(learned["down"], learned["up"]),
    )
    return texts, plain_image_features(clip, tokens)


@pytest.mark.parametrize("name", learned_parts())
def test_gradients_equal_differences_of_the_plain_form(tiny_clip, tiny_tokenizer, images, name):
    learned = {key: value.astype(np.float64) for key, value in learned_parts().items()}
    targets = draw(50, len(CLASS_NAMES), 24), draw(51, 3, 24)
    direction = draw(52, *learned[name].shape).astype(np.float64)

    def loss(learned):
        features = learned_features(tiny_clip, tiny_tokenizer, images, learned)
        return sum(jnp.vdot(*pair) for pair in zip(features, targets, strict=True))

    def plain(step):
        moved = learned | {name: learned[name] + step * direction}
        features = plain_learned_features(tiny_clip, tiny_tokenizer, images, moved)
        return sum(np.vdot(*pair) for pair in zip(features, targets, strict=True))

    gradient = jax.jit(jax.grad(loss))(learned_parts())
    got = np.vdot(np.asarray(gradient[name], np.float64), direction)
    expected = (plain(1e-5) - plain(-1e-5)) / 2e-5
    assert abs(got - expected) < 1e-4 * np.linalg.norm(gradient[name]) * np.linalg.norm(direction)


def test_frozen_matrices_get_no_gradient(tiny_clip, tiny_tokenizer, images):
    graph, frozen = nnx.split(tiny_clip)
    matrices = {
        leaf.shape[-2:]
        for path, leaf in nnx.to_flat_state(frozen)
        if "kernel" in path and "patch_embedding" not in path
    }

    def loss(learned, frozen):
        clip = nnx.merge(graph, frozen)
        features = learned_features(clip, tiny_tokenizer, images, learned)
        return sum(feature.sum() for feature in features)

    def gradients_made(argument):
        program = jax.make_jaxpr(jax.grad(loss, argument))(learned_parts(), frozen)
        made = list(products(program.jaxpr))
        highest = jax.lax.Precision.HIGHEST
        assert {equation.params["precision"] for equation in made} == {(highest, highest)}
        shapes = {equation.outvars[0].aval.shape for equation in made}
        return {shape for shape in matrices if shape in shapes or shape[::-1] in shapes}

    assert gradients_made(1) == matrices
    assert gradients_made(0) == set()


def kept_activations(function, x):
    """How many arrays `[layers, *x.shape]` the forward pass of a gradient keeps."""
    program = jax.make_jaxpr(jax.grad(lambda x: function(x).sum()))(x)
    forward = next(each for each in program.jaxpr.eqns if each.primitive.name == "scan")
    shapes = [variable.aval.shape for variable in forward.outvars]
    return sum(math.prod(shape) for shape in shapes if shape[1:3] == x.shape[:2]) / x.size


def test_a_gradient_keeps_what_goes_into_the_blocks_alone(tiny_clip):
    vision, x = tiny_clip.vision, jnp.asarray(draw(0, 3, 17, 32))

    def plainly(x):
        return scan(vision.blocks, lambda block, x, _: (block(x), None), x)[0]

    assert kept_activations(vision.layers, x) == 2
    assert 8 < kept_activations(plainly, x) < 24
    np.testing.assert_array_equal(jax.jit(vision.layers)(x), jax.jit(plainly)(x))
    got, expected = (
        jax.jit(jax.grad(lambda x, function=function: jnp.square(function(x)).sum()))(x)
        for function in (vision.layers, plainly)
    )
    close(got, np.asarray(expected))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_so(tiny_tokenizer, dtype):
    exact, half = (make_clip(tiny_tokenizer, "vit", each) for each in (np.float32, dtype))
    images = jnp.asarray(draw(0, 2, 32, 32, 3))

    @jax.jit
    def features(clip, learned):
        return learned_features(clip, tiny_tokenizer, images, learned)

    for got, expected in zip(
        features(half, learned_parts()), features(exact, learned_parts()), strict=True
    ):
        assert got.dtype == dtype and expected.dtype == jnp.float32
        close(np.asarray(got, np.float32), np.asarray(expected), 8 * float(jnp.finfo(dtype).eps))
