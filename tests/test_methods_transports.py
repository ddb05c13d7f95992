"""PLOT and PLOT++: what must hold whatever the official code does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, make_clip, moved
from flax import nnx
from recorded import split

from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.clip import unit
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, text, transport


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def close(got, expected, tolerance=3e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


# Transport.

COSINES = 0.7 + 0.3 * jnp.tanh(drawn(0, 3, 5, 9, 4))
"""Of 3 images, 5 classes, 9 patches and 4 prompts; so high that the iteration ends early."""


@pytest.mark.parametrize("together", [False, True])
def test_plans_are_optimal_for_the_masses_that_they_move(together):
    """They are a scaled kernel, so that what is left of the logarithm has no interaction."""
    plans = np.asarray(transport.plans(COSINES, stop_together=together), np.float64)
    np.testing.assert_allclose(plans.sum(axis=-2), 1 / 4, rtol=1e-5)
    np.testing.assert_allclose(plans.sum(axis=-1), 1 / 9, rtol=0.2)
    left = np.log(plans) - (COSINES - 1) / transport.REGULARISATION
    left = left - left.mean(axis=-1, keepdims=True)
    left = left - left.mean(axis=-2, keepdims=True)
    np.testing.assert_allclose(left, 0, atol=1e-4)


def test_iterations_end_early_and_go_on_to_even_rows(monkeypatch):
    early = np.asarray(transport.plans(COSINES, stop_together=False))
    monkeypatch.setattr(transport, "ENOUGH", 0.0)
    monkeypatch.setattr(transport, "MOST_STEPS", 400)
    late = np.asarray(transport.plans(COSINES, stop_together=False))
    np.testing.assert_allclose(late.sum(axis=-1), 1 / 9, rtol=1e-4)
    assert 1e-4 < np.abs(early - late).max() < 0.01


def test_plans_of_an_image_know_nothing_of_others_unless_they_stop_together():
    images = jnp.concatenate([COSINES, 0.01 * COSINES[:1]])
    whole = np.asarray(transport.plans(images, stop_together=False))
    for place, image in enumerate(images):
        alone = transport.plans(image[None], stop_together=False)[0]
        np.testing.assert_allclose(whole[place], alone, rtol=1e-5)
        np.testing.assert_allclose(
            alone, transport.plans(image[None], stop_together=True)[0], rtol=1e-5
        )
    together = np.asarray(transport.plans(images, stop_together=True))
    assert np.abs(together - whole).max() > 1e-5


def test_with_one_prompt_all_patches_count_the_same():
    patches, texts = drawn(1, 3, 7, 6), drawn(2, 1, 4, 6)
    cosines = np.einsum("bpe,ce->bcp", unit(patches), unit(texts[0]))
    close(transport.similarity(patches, texts), cosines.mean(axis=-1))


def test_a_plan_finds_similar_pairs_in_any_order():
    patches, texts = drawn(1, 3, 7, 6), drawn(2, 4, 5, 6)
    similarities = transport.similarity(patches, texts)
    cosines = np.einsum("bpe,nce->bcpn", unit(patches), unit(texts))
    assert (similarities > cosines.mean(axis=(2, 3)) + 0.05).all()
    assert (similarities <= cosines.max(axis=(2, 3))).all()
    close(transport.similarity(patches[:, ::-1], texts[::-1]), similarities)
    close(transport.similarity(3 * patches, 0.2 * texts), similarities)


def test_no_gradient_goes_through_a_plan():
    patches, texts = drawn(1, 3, 7, 6), drawn(2, 4, 5, 6)

    def cosines(texts):
        return jnp.einsum("bpe,nce->bcpn", unit(patches), unit(texts), precision="highest")

    plan = transport.plans(cosines(texts), stop_together=False)
    expected = jax.grad(lambda texts: jnp.sum(plan * cosines(texts)))(texts)
    close(jax.grad(lambda texts: transport.similarity(patches, texts).sum())(texts), expected)


# PLOT.


@pytest.fixture
def made(tiny_clip, tiny_tokenizer):
    """A function from a method's name, classes and settings to the method."""

    def make(name, classes=CLASS_NAMES, clip=None, **settings):
        clip = tiny_clip if clip is None else clip
        return methods.create(name, clip, tiny_tokenizer, classes, settings, seed=3)

    return make


@pytest.fixture
def logits(tiny_clip, one_device):
    """A function from a method and images to logits."""
    return lambda method, images: evaluate.logits(method, tiny_clip, images, one_device)


SEEN = Images(features=drawn(4, 6, 24), patches=drawn(5, 6, 16, 24))


def test_plot_is_coop_where_all_patches_and_prompts_are_the_same(made, logits):
    method, coop = made("plot", n_ctx=3, prompts=2), made("coop", n_ctx=3)
    method.context[...] = jnp.tile(coop.context[...], (2, 1, 1))
    same = Images(patches=jnp.repeat(SEEN.features[:, None], 5, axis=1))
    expected = logits(coop, Images(features=SEEN.features))
    close(logits(method, same), expected)


def test_global_logits_are_those_of_the_mean_text_features(made, logits, tiny_clip):
    method, without = (made("plot", n_ctx=3, global_logits=adds) for adds in (True, False))
    assert method.takes == ("features", "patches") and without.takes == ("patches",)
    texts = method.texts(tiny_clip, None).mean(axis=0)
    added = tiny_clip.logits(SEEN.features, texts)
    close(logits(method, SEEN) - logits(without, SEEN), added, 1e-4)


def test_contexts_of_plot_start_apart_and_serve_new_classes(made, logits):
    method = made("plot", n_ctx=3)
    assert method.context.shape == (4, 3, 32)
    assert len(np.unique(np.asarray(method.context[...])[:, 0, 0])) == 4
    names = ("circle", *CLASS_NAMES[1:3])
    fresh = made("plot", names, n_ctx=3)
    other = methods.move(method, fresh, Classes(CLASS_NAMES), moved(names))
    close(logits(other, SEEN)[:, 1:], logits(method, SEEN)[:, 1:3])
    assert {*method.word_vectors()} == {f"prompt {number}" for number in (1, 2, 3, 4)}


@pytest.mark.parametrize("settings", [{"prompts": 0}, {"n_ctx": 0}])
def test_settings_of_plot_that_will_not_do(made, settings):
    with pytest.raises(InputError, match="PLOT: expected at least one prompt and one context"):
        made("plot", **settings)


# PLOT++.

PIXELS = drawn(6, 3, 32, 32, 3)
PHRASES = ("a photo of a", "this is one photo of the", "a drawing of the")
SOME = {"context_inits": PHRASES, "image_prompts": 2, "n_image_ctx": 3}


def test_contexts_of_plot_plus_plus_start_as_the_prompts_of_their_phrases(
    made, tiny_clip, tiny_tokenizer
):
    """Also where a phrase has more tokens than vectors, and its last ones stay."""
    method = made("plot_plus_plus", **SOME)
    assert method.context.shape == (3, 4, 32)
    templates = tuple(f"{phrase} {{}}." for phrase in PHRASES)
    given = methods.Given(tiny_clip, tiny_tokenizer, Classes(CLASS_NAMES), nnx.Rngs(0))
    expected = text.HandCrafted(given, templates).encode(tiny_clip)
    close(method.texts(tiny_clip, None), expected)
    turned = made("plot_plus_plus", **SOME | {"context_inits": PHRASES[::-1]})
    assert turned.context.shape[1] == 4
    close(turned.texts(tiny_clip, None)[::-1], method.texts(tiny_clip, None))


def test_image_prompts_have_no_positions_and_no_order(made, tiny_clip, logits):
    method = made("plot_plus_plus", **SOME)
    images, features = Images(pixels=PIXELS), method.encode(tiny_clip, PIXELS)
    assert features.shape == (3, 2, 24)
    frozen = tiny_clip.encode_image(PIXELS)
    assert np.abs(features - frozen[:, None]).max() > 1e-3
    assert np.abs(features[:, 0] - features[:, 1]).max() > 1e-4
    close(method.encode(tiny_clip, PIXELS[1:2]), features[1:2])
    expected = logits(method, images)
    context = method.image_context[...]
    method.image_context[...] = context[:, ::-1]
    close(method.encode(tiny_clip, PIXELS), features)
    method.image_context[...] = context[::-1]
    close(method.encode(tiny_clip, PIXELS), features[:, ::-1])
    close(logits(method, images), expected)


def test_with_one_image_prompt_all_texts_count_the_same(made, tiny_clip, logits):
    method = made("plot_plus_plus", **SOME | {"image_prompts": 1})
    texts = method.texts(tiny_clip, None)
    features = method.encode(tiny_clip, PIXELS)[:, 0]
    expected = np.mean([tiny_clip.logits(features, each) for each in texts], axis=0)
    close(logits(method, Images(pixels=PIXELS)), expected)


def test_stages_of_plot_plus_plus(made, tiny_clip, logits):
    method, images = made("plot_plus_plus", **SOME), Images(pixels=PIXELS)
    data = Data(split(np.zeros(3, np.int32), images))
    config = {"epochs": 7, "batch_size": 4, "optimizer": {}}
    first, second = method.stages(config)
    assert (first.learns, second.learns) == (("image_context",), ())
    assert first.epochs == second.epochs == 7
    alone = logits(method, images)
    method.prepare(tiny_clip, 0, data)
    whole = method.encode(tiny_clip, PIXELS).mean(axis=1)
    added = tiny_clip.logits(whole, method.texts(tiny_clip, None).mean(axis=0))
    close(logits(method, images) - alone, added, 1e-4)
    method.prepare(tiny_clip, 1, data)
    close(logits(method, images), alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_inits": ()}, "expected at least one phrase, one prompt of an image"),
        ({"image_prompts": 0}, "one vector in it, got 4, 0 and 2; raise them"),
        ({"n_image_ctx": 0}, "got 4, 4 and 0"),
        ({"context_inits": ("a photo of a", "a")}, "phrases of at least 4 tokens, as the first"),
        ({"context_inits": ("a photo of a", "")}, "a phrase to start the context from, got ''"),
    ],
)
def test_settings_of_plot_plus_plus_that_will_not_do(made, settings, message):
    with pytest.raises(InputError, match=message):
        made("plot_plus_plus", **settings)


def test_plot_plus_plus_takes_a_vision_transformer(made, tiny_tokenizer):
    with pytest.raises(InputError, match=r"PLOT\+\+: expected a CLIP with a vision transformer"):
        made("plot_plus_plus", clip=make_clip(tiny_tokenizer, "resnet"))
