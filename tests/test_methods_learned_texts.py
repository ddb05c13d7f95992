"""PRE, TCP, DePT: what must hold whatever the official code does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from inside import close
from oracle import plain_text_features

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import packing
from coop_jax.errors import InputError
from coop_jax.methods import Images, text

NAMES = ("circle", "hen-of-the-woods", "a", "seven")
COUNT = 8

SMALL = {
    "tcp": {"n_ctx": 3, "layer": 2},
    "dept": {"n_ctx": 3},
    "coop": {"n_ctx": 3},
}


@pytest.fixture
def create(tiny_clip, tiny_tokenizer):
    """A function from a method's name and settings to a small method."""

    def create_one(name, classes=NAMES, *, seed=1, **settings):
        chosen = SMALL.get(name, {}) | settings
        given = {key: chosen.pop(key) for key in ("shards",) if key in chosen}
        if "own" in chosen:
            given["template"] = chosen.pop("own")
        return methods.create(name, tiny_clip, tiny_tokenizer, classes, chosen, seed=seed, **given)

    return create_one


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def batch(**images):
    """Return a batch of images."""
    labels = jnp.arange(COUNT) % len(NAMES)
    return methods.Batch(Images(**images), labels, jnp.ones(COUNT), jax.random.key(0))


def features(seed=0):
    return draw(COUNT, 24, seed=seed)


# PRE


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_pre_adds_the_context_to_what_the_encoder_makes_of_it(create, encoder):
    added, alone = (create("pre", encoder=encoder, residual=residual) for residual in (True, False))
    np.testing.assert_array_equal(added.context[...], alone.context[...])
    close(added.encoded(), np.asarray(alone.encoded() + alone.context[...]))
    np.testing.assert_array_equal(added.word_vectors()["context"], added.encoded())
    assert np.abs(np.asarray(alone.encoded())).max() > 1e-3


def test_pre_s_mlp_sees_each_vector_alone_and_its_lstm_those_on_both_sides(create):
    for encoder, reach in (("mlp", {2}), ("lstm", {0, 1, 2, 3, 4})):
        method = create("pre", encoder=encoder, context_init="", n_ctx=5)
        before = np.asarray(method.encoded())
        method.context[...] = method.context[...].at[2].add(1.0)
        apart = np.abs(np.asarray(method.encoded()) - before).max(axis=1)
        assert set(np.flatnonzero(apart > 1e-6)) == reach, encoder


def test_pre_s_lstm_is_the_same_backwards(create):
    """With its directions exchanged, vectors in turned order give the outputs in that order."""
    method = create("pre", context_init="", n_ctx=5, residual=False)
    encoder, context = method.encoder, method.context[...]
    halves = np.split(np.asarray(method.encoded()), 2, axis=1)
    graph, one = nnx.split(encoder.forward)
    _, other = nnx.split(encoder.backward)
    forwards = nnx.merge(graph, other)
    close(forwards(context[::-1])[::-1], halves[1])
    backwards = nnx.merge(nnx.graphdef(encoder.backward), one)
    close(backwards(context[::-1])[::-1], halves[0])


def test_pre_encodes_the_context_of_each_class_alone(create):
    method = create("pre", class_specific=True, context_init="", n_ctx=3)
    assert method.context.shape == (len(NAMES), 3, 32)
    alone = [method.encoder(context) + context for context in method.context[...]]
    close(method.encoded(), np.stack(alone))


def test_pre_knows_two_encoders(create):
    with pytest.raises(InputError, match="expected one of lstm, mlp, got 'transformer'"):
        create("pre", encoder="transformer")


# TCP


@pytest.mark.parametrize("how", [{}, {"limit": 9}, {"shards": 2}])
def test_tcp_s_tokens_replace_the_context_of_their_class_at_a_layer(
    create, tiny_clip, tiny_tokenizer, monkeypatch, how
):
    """As in whole prompts, class by class, whose context a layer finds replaced."""
    shards = how.get("shards", 1)
    if "limit" in how:
        monkeypatch.setattr(text, "pack", functools.partial(packing.pack, limit=9))
    for layer in (2, 3):
        method = create("tcp", shards=shards, layer=layer, prompt="X X X {}, a thing.")
        tokens = np.asarray(method.class_tokens())
        got = jax.jit(lambda method=method: method.texts(tiny_clip, None))()
        for label, name in enumerate(NAMES):
            ids = tiny_tokenizer([f"X X X {name}, a thing."])
            embedded = np.asarray(tiny_clip.text.token_embedding[...])[ids]
            embedded[:, 1:4] = method.context[...]
            vectors = np.broadcast_to(tokens[label], (3, *tokens.shape[1:]))
            end = np.argmax(ids == tiny_tokenizer.end, axis=1)
            active = np.arange(3) == layer - 1
            expected = plain_text_features(tiny_clip, embedded, end, deep=(vectors, active, 1))
            close(got[label : label + 1], expected)


def test_tcp_takes_the_prompts_of_the_official_tables(create, tiny_tokenizer):
    texture = create("tcp", own="{} texture.")
    named = create(
        "tcp", prompt="X X X {} texture.", template="a photo of a {}, a type of texture."
    )
    np.testing.assert_array_equal(texture.bank[...], named.bank[...])
    tokens = lambda method: np.asarray(method.prompts.packed.tokens[...])  # noqa: E731
    np.testing.assert_array_equal(tokens(texture), tokens(named))
    satellite = create("tcp", own="a centered satellite photo of {}.")
    np.testing.assert_array_equal(tokens(satellite), tokens(create("tcp", prompt="X X X {}.")))
    doing = create("tcp", prompt="a photo of a person doing {}.")
    longer = len(tiny_tokenizer.ids("a photo of a person doing")) - 3
    assert (
        doing.prompts.packed.places.shape[-1] == longer + satellite.prompts.packed.places.shape[-1]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 4}, "expected layer from 2 to 3, .* got 4"),
        ({"layer": 1}, "expected layer from 2 to 3, .* got 1"),
        ({"prompt": "a photo."}, r"expected a text with one \{\}, got 'a photo.'"),
    ],
)
def test_bad_settings_of_tcp(create, settings, message):
    with pytest.raises(InputError, match=message):
        create("tcp", **settings)


# DePT


def test_dept_is_coop_beside_a_linear_head(create, tiny_clip):
    images = Images(features=features())
    coop = create("coop")
    texts = coop.texts(tiny_clip, None)
    similar = np.asarray(coop.logits(tiny_clip, texts, images))
    for weight in (0.0, 0.3, 1.0):
        method = create("dept", weight=weight)
        method.context[...], linear = (
            coop.context[...],
            np.asarray(method.head.linear(images.features)),
        )
        expected = images.features @ np.asarray(method.head.weight[...]).T + method.head.bias[...]
        close(linear, np.asarray(expected))
        got = method.logits(tiny_clip, method.texts(tiny_clip, None), images)
        close(got, (1 - weight) * similar + weight * linear)
        terms = method.losses(tiny_clip, texts, batch(features=images.features))
        loss = coop.losses(tiny_clip, texts, batch(features=images.features))["cross_entropy"]
        close(terms["cross_entropy"], np.asarray((1 - weight) * loss))


def test_dept_s_head_learns_images_and_the_texts_of_their_labels_alike(create, tiny_clip):
    method = create("dept", weight=1.0)
    texts, seen = method.texts(tiny_clip, None), batch(features=features())
    method.head.of_texts.scale[...] *= 2.0
    method.head.of_images.bias[...] += 1.0
    weight, bias = np.asarray(method.head.weight[...]), np.asarray(method.head.bias[...])
    rows = np.concatenate([2 * np.asarray(texts)[seen.labels], seen.images.features + 1])
    labels = np.concatenate([seen.labels, seen.labels])
    expected = optax.softmax_cross_entropy_with_integer_labels(rows @ weight.T + bias, labels)
    close(method.losses(tiny_clip, texts, seen)["linear"], np.asarray(expected.mean()))


def test_dept_s_head_counts_where_all_classes_were_trained_on(create, tiny_clip):
    trained, images = Classes(NAMES), Images(features=features())
    method = create("dept")
    logits = method.logits(tiny_clip, method.texts(tiny_clip, None), images)

    def moved(*names):
        wanted = Classes(names).moved_from(trained)
        fresh = methods.move(method, create("dept", wanted, seed=5), trained, wanted)
        return fresh, fresh.logits(tiny_clip, fresh.texts(tiny_clip, None), images)

    _, some = moved("seven", "circle")
    close(some, np.asarray(logits)[:, [3, 0]])
    fresh, mixed = moved("seven", "tench")
    close(mixed, np.asarray(tiny_clip.logits(images.features, fresh.texts(tiny_clip, None))))
    assert np.abs(np.asarray(mixed)[:, 0] - np.asarray(some)[:, 0]).max() > 1e-2


def test_dept_on_cocoop_is_cocoop_beside_a_linear_head(create, tiny_clip):
    images, seen = Images(features=features()), batch(features=features())
    cocoop = create("cocoop")
    similar = np.asarray(cocoop.logits(tiny_clip, (), images))
    for weight in (0.0, 0.3, 1.0):
        method = create("dept_cocoop", weight=weight)
        linear = np.asarray(method.head.linear(images.features))
        expected = images.features @ np.asarray(method.head.weight[...]).T + method.head.bias[...]
        close(linear, np.asarray(expected))
        got = method.logits(tiny_clip, (), images)
        close(got, (1 - weight) * similar + weight * linear)
        terms = method.losses(tiny_clip, (), seen)
        loss = cocoop.losses(tiny_clip, (), seen)["cross_entropy"]
        close(terms["cross_entropy"], np.asarray((1 - weight) * loss))


def test_the_head_learns_the_texts_that_labels_have_for_their_images(create, tiny_clip):
    method, seen = create("dept_cocoop", weight=1.0), batch(features=features())
    method.meta_net.kernel2[...] *= 50
    method.head.of_texts.scale[...] *= 2.0
    method.head.of_images.bias[...] += 1.0
    context = method.shifted(clip_package.unit(jnp.asarray(seen.images.features)))
    texts = [
        np.asarray(method.prompts.encode(tiny_clip, of_image))[label]
        for of_image, label in zip(context, seen.labels.tolist(), strict=True)
    ]
    assert np.abs(texts[0] - texts[4]).max() > 1e-3
    rows = np.concatenate([2 * np.asarray(texts), seen.images.features + 1])
    labels = np.concatenate([seen.labels, seen.labels])
    own = rows @ np.asarray(method.head.weight[...]).T + method.head.bias[...]
    expected = optax.softmax_cross_entropy_with_integer_labels(own, labels)
    close(method.losses(tiny_clip, (), seen)["linear"], np.asarray(expected.mean()))


def test_images_in_groups_have_the_losses_of_all_at_once(create, tiny_clip, monkeypatch):
    method, seen = create("dept_cocoop"), batch(features=features())
    expected = method.losses(tiny_clip, (), seen)
    monkeypatch.setattr(text, "TOKENS_AT_ONCE", 3 * method.prompts.packed.tokens.shape[-1])
    assert method.prompts.at_once == 3
    for name, term in method.losses(tiny_clip, (), seen).items():
        close(term, np.asarray(expected[name]))


def test_without_trained_classes_dept_on_cocoop_is_cocoop(create, tiny_clip):
    trained, images = Classes(NAMES), Images(features=features())
    method, cocoop = create("dept_cocoop"), create("cocoop")
    wanted = Classes(("seven", "tench")).moved_from(trained)
    fresh = methods.move(method, create("dept_cocoop", wanted, seed=5), trained, wanted)
    plain = methods.move(cocoop, create("cocoop", wanted, seed=5), trained, wanted)
    close(fresh.logits(tiny_clip, (), images), np.asarray(plain.logits(tiny_clip, (), images)))
