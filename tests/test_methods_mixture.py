"""MoCoOp: what must hold whatever the official code does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from coop_jax import methods
from coop_jax.clip import unit
from coop_jax.errors import InputError
from coop_jax.methods import Batch, Images, Learned

NAMES = ("red circle", "blue square", "black star")
PROMPTS = ("a photo of a {}.", "a {} in a game.", "a good {}.", "a large {}.")
SETTINGS = {"groups": (1, 1, 2), "prompts": PROMPTS}


@pytest.fixture
def create(tiny_clip, tiny_tokenizer):
    """A function from settings to MoCoOp for a few classes."""

    def create(names=NAMES, **settings):
        return methods.create("mocoop", tiny_clip, tiny_tokenizer, names, SETTINGS | settings)

    return create


def features_of(clip, *templates):
    """Return text features of length one, each template's."""
    _, tokenizer = clip
    texts = [t.format(name) for t in templates for name in NAMES]
    features = unit(clip[0].encode_text(tokenizer(texts)))
    return np.asarray(features).reshape(len(templates), len(NAMES), -1)


@pytest.mark.heavy
def test_experts_start_from_the_first_prompts_and_are_near_their_groups(
    create, tiny_clip, tiny_tokenizer
):
    method, clip = create(), (tiny_clip, tiny_tokenizer)
    got = method.texts(tiny_clip, None)
    expected = features_of(clip, "a photo of a {}", "a {} in a game", "a good {}")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    each = features_of(clip, *PROMPTS)
    groups = np.stack([each[0], each[1], each[2:].mean(axis=0)])
    groups /= np.linalg.norm(groups, axis=-1, keepdims=True)
    np.testing.assert_allclose(method.prototypes[...], groups, rtol=1e-4, atol=1e-5)
    everyone = method.texts_of_everyone(tiny_clip)
    expected = features_of(clip, *PROMPTS[:3])
    np.testing.assert_allclose(everyone, expected, rtol=1e-4, atol=1e-5)


def test_the_weights_of_two_experts_are_all_of_the_mixture(create):
    method = create()
    method.gate_kernel[...] = jnp.zeros_like(method.gate_kernel[...])
    method.gate_bias[...] = jnp.log(jnp.array([1.0, 0.5, 3.0]))
    _, shares = method.gate(jnp.ones((2, method.gate_kernel.shape[0])))
    np.testing.assert_allclose(shares, [[0.25, 0, 0.75]] * 2, rtol=1e-6)


def test_the_logits_are_weighted_cosines_with_both(create, tiny_clip):
    method = create()
    rng = np.random.default_rng(0)
    size = tiny_clip.config.vision.image_size
    images = Images(pixels=rng.integers(0, 256, (2, size, size, 3)).astype(np.uint8))
    texts, features = method.texts(tiny_clip, None), tiny_clip.encode_image(images.pixels)
    got = method.logits(tiny_clip, texts, images)
    _, shares = method.gate(unit(features))
    each = np.stack([tiny_clip.logits(features, of_expert) for of_expert in texts])
    expected = np.einsum("gbc,bg->bc", each, shares)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chosen_alone", [False, True])
def test_an_expert_that_no_image_chooses_learns_from_its_text_or_waits(
    create, tiny_clip, chosen_alone
):
    method = create(chosen_alone=chosen_alone)
    assert bool(method.experts[0].context.get_metadata().get("waits")) == chosen_alone
    method.gate_bias[...] = jnp.array([5.0, -90.0, 5.0])
    size = tiny_clip.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    batch = Batch(Images(pixels=pixels), jnp.array([0, 2]), jnp.ones(2), jax.random.key(0))
    graph, learned, rest = nnx.split(method, Learned, ...)

    def total(learned):
        merged = nnx.merge(graph, learned, rest)
        terms = merged.losses(tiny_clip, merged.texts(tiny_clip, None), batch)
        return sum(terms.values()), terms

    gradient, terms = jax.jit(jax.grad(total, has_aux=True))(learned)
    zero = [bool((gradient["experts"][i]["context"][...] == 0).all()) for i in range(3)]
    assert zero == [False, chosen_alone, False]
    if chosen_alone:
        whole = create(chosen_alone=False)
        whole.gate_bias[...] = method.gate_bias[...]
        told = whole.losses(tiny_clip, whole.texts(tiny_clip, None), batch)
        np.testing.assert_allclose(terms["cross_entropy"], told["cross_entropy"], rtol=1e-4)
        assert terms["texts"] != told["texts"]


def test_other_names_are_told_apart_and_recorded(create, tiny_clip):
    plain, more = create(), create(other_names=("seven", "Black_Star", "eight"))
    assert not plain.uses and more.uses == {"new_class_names"}
    assert more.prototypes.shape[1] == more.texts_of_everyone(tiny_clip).shape[1] == 5
    np.testing.assert_allclose(
        more.prototypes[...][:, :3], plain.prototypes[...], rtol=1e-4, atol=1e-5
    )
    assert more.texts(tiny_clip, None).shape[1] == 3


def test_as_released_a_vector_stands_in_place_of_the_end_token(create, tiny_clip, tiny_tokenizer):
    plain, released = create(), create(as_released=True)
    lengths = [[len(expert.context) for expert in each.experts] for each in (plain, released)]
    assert lengths[1] == [lengths[0][0], lengths[0][1] + 1, lengths[0][2]]
    end = tiny_clip.text.token_embedding[...][tiny_tokenizer.end]
    np.testing.assert_array_equal(released.experts[1].context[...][-1], end)
    got, expected = (each.texts(tiny_clip, None) for each in (released, plain))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": (1, 1)}, "at least 2 groups of 4 prompts together, got \\(1, 1\\)"),
        ({"groups": (4,)}, "at least 2 groups of 4 prompts together, got \\(4,\\)"),
        ({"prompts": ("{}.", *PROMPTS[1:])}, "words in the first prompt of each group, got '{}.'"),
        ({"prompts": ("a photo", *PROMPTS[1:])}, "each with one {}, got 'a photo'"),
    ],
)
def test_groups_and_prompts_that_do_not_fit_are_refused(create, settings, message):
    with pytest.raises(InputError, match=message):
        create(**settings)
