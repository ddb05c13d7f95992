"""KgCoOp, ProGrad, UPL and GalLoP: what must hold whatever the official code does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_clip
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from recorded import split

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip.transformer import attend
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, gallop, upl

NAMES = ("circle", "hen-of-the-woods", "a", "seven")
COUNT, PATCHES = 12, 16

SMALL = {
    "kgcoop": {"class_specific": True, "context_init": "", "n_ctx": 3},
    "prograd": {"n_ctx": 6},
    "upl": {"n_ctx": 3, "class_token_position": "middle"},
    "gallop": {"local_prompts": 3, "top_k": (1, 3, 20), "dropout": 0.5},
}


def create(clip, tokenizer, name, classes=NAMES, *, seed=1, shards=1, given=None, **settings):
    """Return a small method, of other settings where they are given."""
    settings, given = SMALL[name] | settings, given or {}
    return methods.create(
        name, clip, tokenizer, classes, settings, seed=seed, shards=shards, **given
    )


def test_where_text_features_are_given_no_other_template_may_be():
    space = clip_package.FeatureSpace(8, 5.0)
    texts = np.eye(3, 8, dtype=np.float32)[None]
    create_given = functools.partial(
        methods.create, "zero_shot", space, None, ("cat", "dog", "hen"), texts=texts
    )
    made = create_given({"templates": ()})
    np.testing.assert_allclose(np.asarray(made.texts(space, None)), texts[0], atol=1e-7)
    with pytest.raises(InputError, match=r"none where text features are given, got 'a \{\}\.'"):
        create_given({"templates": ("a {}.",)})


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_prograd_s_context_has_zeros_in_front_of_a_shorter_template(
    tiny_clip, tiny_tokenizer, missing
):
    words = {"from_template": True, "template": "a photo of a {}."}
    made = create(tiny_clip, tiny_tokenizer, "prograd", n_ctx=4 + missing, **words)
    context = np.asarray(made.context[...])
    table = np.asarray(tiny_clip.text.token_embedding[...])
    ids = tiny_tokenizer.ids("a photo of a")[:4]
    np.testing.assert_array_equal(context[:missing], 0)
    np.testing.assert_array_equal(context[missing:], table[np.asarray(ids)])
    assert np.isfinite(np.asarray(made.texts(tiny_clip, None))).all()


def images(seed=0, count=COUNT):
    """Return random features and patches of so many images."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(count, *shape)).astype(np.float32)  # noqa: E731
    return Images(features=draw(24), local=draw(PATCHES, 32))


def test_a_class_specific_context_is_refused_for_classes_that_were_not_learned(
    tiny_clip, tiny_tokenizer
):
    classes = Classes(NAMES)
    others = Classes(("tench", "seven")).moved_from(classes)
    method, fresh = (create(tiny_clip, tiny_tokenizer, "kgcoop", of) for of in (classes, others))
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        methods.move(method, fresh, classes, others)


def terms_of(method, clip, **images_taken):
    """Return the terms of the loss of some images."""
    batch = methods.Batch(
        Images(**images_taken), jnp.arange(COUNT) % len(NAMES), jnp.ones(COUNT), jax.random.key(0)
    )
    return method.losses(clip, method.texts(clip, None), batch)


def test_kgcoop_starts_without_distance_where_its_words_are_the_hand_crafted_prompt(
    tiny_clip, tiny_tokenizer
):
    words = {"context_init": "a photo of a", "class_specific": False}
    same = create(tiny_clip, tiny_tokenizer, "kgcoop", **words)
    terms = terms_of(same, tiny_clip, features=images().features)
    assert abs(float(terms["knowledge"])) < 1e-5
    other = create(
        tiny_clip, tiny_tokenizer, "kgcoop", template="a drawing of a {}.", weight=1.0, **words
    )
    once = float(terms_of(other, tiny_clip, features=images().features)["knowledge"])
    assert once > 1e-3
    other.weight = 3.0
    thrice = terms_of(other, tiny_clip, features=images().features)["knowledge"]
    assert float(thrice) == pytest.approx(3 * once, rel=1e-6)


def linear_gradient(method, one, other):
    """Return ProGrad's gradient of two linear terms with these gradients."""

    def terms(variables):
        product = lambda gradient: jnp.sum(variables["context"] * gradient)  # noqa: E731
        return {"cross_entropy": product(one), "distillation": product(other)}, ()

    return method.gradient(terms, {"context": jnp.ones_like(one)})[2]["context"]


@pytest.fixture(scope="module")
def prograd(tiny_clip, tiny_tokenizer):
    return create(tiny_clip, tiny_tokenizer, "prograd")


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 1.0]))
def test_prograd_takes_away_what_is_against_the_distillation_alone(prograd, seed, projection):
    one, other = np.random.default_rng(seed).normal(size=(2, 3, 4)).astype(np.float32)
    prograd.projection = projection
    got = np.asarray(linear_gradient(prograd, jnp.asarray(one), jnp.asarray(other)))
    along = np.sum(one * other) / np.linalg.norm(other)
    assert np.sum(got * other) / np.linalg.norm(other) == pytest.approx(
        along * (1 - projection * (along < 0)), abs=1e-5
    )
    across = lambda gradient: gradient - np.sum(gradient * other) * other / np.sum(other**2)  # noqa: E731
    np.testing.assert_allclose(across(got), across(one), atol=1e-5)


def test_prograd_without_a_direction_follows_the_labels(tiny_clip, tiny_tokenizer):
    method = create(tiny_clip, tiny_tokenizer, "prograd", n_ctx=4)
    one = jnp.ones((4, 32))
    np.testing.assert_array_equal(linear_gradient(method, one, 0 * one), one)


def test_prograd_starts_from_the_hand_crafted_prompts_words_after_zeros(tiny_clip, tiny_tokenizer):
    template = {"template": "a photo of a {}, a type of pet."}
    with pytest.raises(InputError, match=r"1 to 7 words .* 'a type of pet, a photo of a \{\}\.'"):
        create(tiny_clip, tiny_tokenizer, "prograd", n_ctx=7, given=template)
    method = create(tiny_clip, tiny_tokenizer, "prograd", n_ctx=10, given=template)
    ids = tiny_tokenizer.ids("a type of pet, a photo of a")[:8]
    np.testing.assert_array_equal(method.context[:2], 0)
    table = tiny_clip.text.token_embedding[...]
    np.testing.assert_array_equal(method.context[2:], table[np.asarray(ids)])
    with pytest.raises(InputError, match="set another template, a higher n_ctx, or from_template"):
        create(tiny_clip, tiny_tokenizer, "prograd", template="{} indeed.")
    drawn = create(tiny_clip, tiny_tokenizer, "prograd", from_template=False, class_specific=True)
    assert drawn.context.shape == (len(NAMES), 6, 32) and np.abs(drawn.context[...]).min() > 0


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.2, 0.5, 0.9])), min_size=1),
    st.integers(1, 4),
)
def test_upl_takes_the_most_confident_of_each_label(pairs, shots):
    labels, confidence = (np.asarray(column) for column in zip(*pairs, strict=True))
    chosen = upl.most_confident(labels, confidence, shots)
    assert (np.diff(chosen) > 0).all()
    for label in np.unique(labels):
        of_label = np.flatnonzero(labels == label)
        taken = np.intersect1d(chosen, of_label)
        left = np.setdiff1d(of_label, taken)
        assert len(taken) == min(shots, len(of_label))
        assert not len(left) or confidence[taken].min() >= confidence[left].max()


def test_upl_learns_from_what_both_clips_are_surest_of(tiny_clip, tiny_tokenizer, monkeypatch):
    teacher = make_clip(tiny_tokenizer, "resnet")
    method = create(
        tiny_clip,
        tiny_tokenizer,
        "upl",
        pseudo_shots=2,
        given={"teacher": (teacher, tiny_tokenizer)},
    )
    assert method.uses == {"unlabeled", "teacher"} and "teacher" in method.takes
    seen = Images(features=images(1, 40).features, teacher=images(2, 40).features)
    each = []
    for clip, features in ((tiny_clip, seen.features), (teacher, seen.teacher)):
        zero_shot = methods.create("zero_shot", clip, tiny_tokenizer, NAMES)
        logits = zero_shot.logits(clip, zero_shot.texts(clip, None), Images(features=features))
        each.append(jax.nn.softmax(logits))
    together = np.mean(each, axis=0)
    monkeypatch.setattr(upl, "AT_ONCE", 7)
    unlabeled = split(np.full(40, -1), seen)
    chosen = method.prepare(tiny_clip, 0, Data(unlabeled, unlabeled=unlabeled)).train
    labels = together.argmax(1)
    places = upl.most_confident(labels, together.max(1), 2)
    np.testing.assert_array_equal(chosen.labels, labels[places])
    np.testing.assert_array_equal(chosen.images().features, seen.features[places])


def test_upl_needs_unlabelled_images(tiny_clip, tiny_tokenizer):
    method = create(tiny_clip, tiny_tokenizer, "upl")
    labelled = split(np.zeros(3), Images(features=images(0, 3).features))
    with pytest.raises(InputError, match="UPL: expected unlabelled images, got none"):
        method.prepare(tiny_clip, 0, Data(labelled))


@given(st.integers(0, 100), st.integers(1, 3))
def test_gallop_draws_for_an_image_the_same_in_any_batch(seed, keep):
    key = jax.random.key(seed)
    index = np.asarray(gallop.draw(key, 64, keep, 4))
    np.testing.assert_array_equal(gallop.draw(key, 5, keep, 4), index[:5])
    assert index.shape == (64, keep) and set(index.ravel()) == {0, 1, 2, 3}


def test_gallop_without_dropout_sees_every_prompts_mean(tiny_clip, tiny_tokenizer):
    """All global prompts start as the same one, so that the mean is any draw's."""
    taken = images()._asdict()
    taken = {field: taken[field] for field in gallop.Method.takes}
    few, many = (
        terms_of(create(tiny_clip, tiny_tokenizer, "gallop", dropout=part), tiny_clip, **taken)
        for part in (0.75, 0.0)
    )
    assert float(few["global"]) == pytest.approx(float(many["global"]), rel=1e-5)
    counts = {0.75: 1, 0.5: 2, 0.3: 3, 0.0: 4}
    for part, kept in counts.items():
        assert create(tiny_clip, tiny_tokenizer, "gallop", dropout=part).keep == kept


def test_gallop_reads_class_names_as_they_are_given_where_it_is_told_to(tiny_clip, tiny_tokenizer):
    def texts(name, **settings):
        method = create(tiny_clip, tiny_tokenizer, "gallop", (name, "circle"), **settings)
        return method.texts(tiny_clip, None).whole[0]

    spaced = texts("black and gold")
    np.testing.assert_array_equal(texts("black_and gold"), spaced)
    np.testing.assert_array_equal(texts("black and gold", names_as_given=True), spaced)
    given = texts("black_and gold", names_as_given=True)
    assert np.abs(given[0] - spaced[0]).max() > 1e-3
    np.testing.assert_allclose(given[1], spaced[1], atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"top_k": (1, 2)}, {"top_k": (0,)}, {"global_prompts": 0}, {"top_k": ()}]
)
def test_bad_settings_of_gallop(tiny_clip, tiny_tokenizer, settings):
    with pytest.raises(InputError, match="at least one global and one local prompt, and in top_k"):
        create(tiny_clip, tiny_tokenizer, "gallop", **settings)


def test_a_patch_alone_is_one_that_attends_to_itself(tiny_clip):
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    tower = tiny_clip.vision
    graph, state = nnx.split(tower.blocks)
    x = tower.initial_norm(tower.embed(pixels))
    for layer in range(2):
        block = nnx.merge(graph, jax.tree.map(lambda array, at=layer: array[at], state))
        query, key, value = block.project(x)
        visible = jnp.eye(x.shape[1], dtype=bool) if layer == 1 else None
        x = block.finish(x, attend(query, key, value, visible))
    expected = tower.final_norm(x)[:, 1:]
    np.testing.assert_allclose(tower.local(pixels), expected, rtol=1e-5, atol=1e-5)
