"""JAX's global switches change no number: one CLIP, one context, one prompt under all of them."""

import contextlib

import jax
import numpy as np
import pytest
from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import interpret, methods, optim, parallel, states, train
from coop_jax.classes import Classes
from coop_jax.clip import fingerprint
from coop_jax.clip.preprocess import normalize
from coop_jax.evaluate import compile_logits, compile_texts
from coop_jax.methods import Images, Learned, Stage
from coop_jax.saved import Saved

CONTEXT_SUM = -0.7262596
"""Of 0.02 * normal numbers of nnx.Rngs(2**40 + 3), with JAX's switches as they are by default."""

FLOAT32 = np.dtype("float32")
PIXELS = np.zeros((2, 32, 32, 3), np.uint8)
FEATURES, LABELS = np.ones((2, 96), np.float32), np.asarray([0, 1])
NAMES = ("one", "two", "the third", "four")


@contextlib.contextmanager
def seed_offset():
    jax.config.update("jax_random_seed_offset", 7)
    try:
        yield
    finally:
        jax.config.update("jax_random_seed_offset", 0)


SWITCHES = {
    "x64": [lambda: jax.enable_x64(True)],
    "all others": [
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.default_matmul_precision("bfloat16"),
        lambda: jax.debug_nans(True),
        seed_offset,
    ],
}
METHODS = {
    "coop": {"n_ctx": 4, "class_token_position": "middle"},
    "cocoop": {"n_ctx": 3, "context_init": ""},
    "zero_shot": {},
    "linear_probe": {},
}


def learned(method):
    return {
        ".".join(map(str, path)): np.asarray(variable)
        for path, variable in nnx.to_flat_state(nnx.state(method, Learned))
    }


@pytest.fixture(scope="module")
def expected():
    """The fingerprint, what methods begin with and a prompt, where no switch is set."""
    clip, tokenizer = clip_package.load("tiny")
    made = {
        name: methods.create(name, clip, tokenizer, NAMES, settings, seed=2**40 + 3)
        for name, settings in METHODS.items()
    }
    found = {name: learned(method) for name, method in made.items()}
    given = {"name": "coop", "settings": METHODS["coop"], "backbone": "tiny"}
    prompt = Saved.of(made["coop"], clip=clip, classes=Classes(NAMES), **given)
    assert fingerprint(clip).startswith("2cd752a2")
    assert found["coop"]["context"].sum() == pytest.approx(CONTEXT_SUM, abs=1e-5)
    return fingerprint(clip), found, prompt


@pytest.mark.parametrize("switch", SWITCHES)
def test_switches_change_no_number(switch, expected, one_device):
    known, first, prompt = expected
    with contextlib.ExitStack() as stack:
        for set_switch in SWITCHES[switch]:
            stack.enter_context(set_switch())
        clip, tokenizer = clip_package.load("tiny")
        assert fingerprint(clip) == known
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip))} == {FLOAT32}
        for name, settings in METHODS.items():
            method = methods.create(name, clip, tokenizer, NAMES, settings, seed=2**40 + 3)
            jax.tree.map(np.testing.assert_array_equal, learned(method), first[name])
            assert {array.dtype for array in learned(method).values()} <= {FLOAT32}
            check_dtypes(method, clip, one_device)
        moved = prompt.for_classes(clip, tokenizer, Classes(NAMES[:2]))
        jax.tree.map(np.testing.assert_array_equal, learned(moved), prompt.learned)
        vectors = np.full((1, 96), 0.01, np.float32)
        assert interpret.nearest_words(clip, tokenizer, vectors)


def test_methods_begin_with_the_same_where_nothing_is_compiled(expected, tiny_tokenizer):
    clip, _ = clip_package.load("tiny")
    with jax.disable_jit():
        method = methods.create(
            "cocoop", clip, tiny_tokenizer, NAMES, METHODS["cocoop"], seed=2**40 + 3
        )
    jax.tree.map(np.testing.assert_array_equal, learned(method), expected[1]["cocoop"])


def check_dtypes(method, clip, mesh):
    """What is compiled for a method computes in float32, whatever the switches."""
    encoded = jax.eval_shape(lambda pixels: clip.encode_image(normalize(pixels)), PIXELS)
    assert encoded.dtype == np.float32
    method_graph, state = nnx.split(method)
    clip_graph, frozen = nnx.split(clip)
    split = parallel.over_data(mesh, 0)
    whole = parallel.replicated(mesh)
    texts = jax.eval_shape(compile_texts(method_graph, clip_graph, whole), state, frozen)
    logits_of = compile_logits(method_graph, clip_graph, whole, split)
    logits = jax.eval_shape(logits_of, state, frozen, texts, Images(features=FEATURES))
    assert {leaf.dtype for leaf in jax.tree.leaves((texts, logits))} == {FLOAT32}
    method_graph, own, fixed = nnx.split(method, Learned, ...)
    if not jax.tree.leaves(own):
        return
    before = states.initial_state(method, clip, Stage())
    steps = train.compile_steps(
        method_graph,
        clip_graph,
        optim.create(optim.OptimizerConfig()),
        (),
        mesh,
        averages=False,
        texts_per_image=method.texts_per_image,
    )
    numbers = np.ones(2, np.float32), np.float32(0.1), np.float32(0), np.zeros(2, np.uint32)
    batch = (Images(features=FEATURES), LABELS, *numbers)
    data = jax.tree.map(lambda array: array[None, None], batch)
    (after,), terms, _ = jax.eval_shape(steps, [before], fixed, frozen, data)
    assert terms["cross_entropy"].dtype == np.float32
    assert jax.tree.map(dtype_of, after) == jax.tree.map(dtype_of, before)


def dtype_of(leaf):
    return np.dtype(leaf.dtype)
