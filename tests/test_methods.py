"""One contract for every method file found, and each method's own errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES
from flax import nnx

from coop_jax import evaluate, methods, optim, parallel, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.errors import InputError
from coop_jax.methods import Learned
from coop_jax.methods.base import cross_entropy

FEATURES = np.random.default_rng(0).normal(size=(6, 24)).astype(np.float32)
LABELS = np.asarray([0, 1, 2, 3, 4, 0], np.int32)

every_method = pytest.mark.parametrize("name", methods.available())


def create(name, clip, tokenizer, names=CLASS_NAMES, seed=0, **config):
    return methods.create(name, clip, tokenizer, names, config, seed=seed)


def eager_logits(method, clip):
    return np.asarray(method.logits(clip, method.encode_classes(clip), FEATURES))


@every_method
def test_logits(name, tiny_clip, tiny_tokenizer, one_device):
    method = create(name, tiny_clip, tiny_tokenizer)
    assert isinstance(method, methods.Method)
    eager = eager_logits(method, tiny_clip)
    assert eager.shape == (6, len(CLASS_NAMES)) and eager.dtype == np.float32
    assert np.isfinite(eager).all()
    for mesh in (one_device, parallel.create_mesh(jax.devices()[:2])):
        compiled = evaluate.logits(method, tiny_clip, FEATURES, mesh)
        np.testing.assert_allclose(compiled, eager, rtol=1e-5, atol=1e-5)


@every_method
def test_every_learned_leaf_has_a_gradient(name, tiny_clip, tiny_tokenizer):
    method = create(name, tiny_clip, tiny_tokenizer)
    graph, learned, rest = nnx.split(method, Learned, ...)

    @jax.jit
    def loss(learned):
        method = nnx.merge(graph, learned, rest)
        logits = method.logits(tiny_clip, method.encode_classes(tiny_clip), FEATURES)
        return cross_entropy(logits, LABELS, jnp.ones(6))

    for gradient in jax.tree.leaves(jax.grad(loss)(learned)):
        assert np.isfinite(gradient).all()
        assert (np.abs(gradient).max(axis=-1) > 0).all()


@every_method
def test_checkpoints_restore_what_was_learned(
    name, tiny_clip, tiny_tokenizer, tmp_path, one_device
):
    method = create(name, tiny_clip, tiny_tokenizer, seed=1)
    optimizer = optim.create(optim.OptimizerConfig(), 2, 2)
    order = np.asarray([[0, 1], [2, 3], [4, 5], [1, 0]])
    batches = train.Batches(order, np.asarray([0, 0, 1, 1]), LABELS)
    checkpoints = Checkpoints(tmp_path)
    for _ in train.fit(
        method,
        tiny_clip,
        optimizer,
        batches,
        lambda wanted: FEATURES[wanted[:, 1]],
        one_device,
        checkpoints=checkpoints,
    ):
        pass
    other = create(name, tiny_clip, tiny_tokenizer, seed=2)
    state = checkpoints.restore(train.initial_state(other, tiny_clip, optimizer))
    checkpoints.close()
    nnx.update(other, state["learned"])
    np.testing.assert_array_equal(eager_logits(other, tiny_clip), eager_logits(method, tiny_clip))


@every_method
def test_what_is_learned_moves_to_other_classes(name, tiny_clip, tiny_tokenizer):
    method = create(name, tiny_clip, tiny_tokenizer, seed=1)
    other = create(name, tiny_clip, tiny_tokenizer, ("circle", *CLASS_NAMES[1:3]), seed=2)
    nnx.update(other, nnx.state(method, Learned))
    got, expected = eager_logits(other, tiny_clip), eager_logits(method, tiny_clip)
    np.testing.assert_allclose(got[:, 1:], expected[:, 1:3], rtol=1e-4, atol=1e-4)
    assert np.abs(got[:, 0] - expected[:, 0]).max() > 1e-3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "expected at least one class name, got none"),
        (["cat", " "], "an empty one for label 1"),
        (["Great_white shark", "x", "great white  shark"], r"'great white shark' \(2 times\)"),
    ],
)
def test_bad_class_names(tiny_clip, tiny_tokenizer, names, message):
    with pytest.raises(InputError, match=message):
        create("coop", tiny_clip, tiny_tokenizer, names)


def test_initial_context(tiny_clip, tiny_tokenizer):
    shared = create("coop", tiny_clip, tiny_tokenizer)
    assert shared.context.shape == (16, 32) and shared.context.dtype == jnp.float32
    specific = create("coop", tiny_clip, tiny_tokenizer, class_specific=True, n_ctx=40)
    assert specific.context.shape == (len(CLASS_NAMES), 40, 32)
    assert float(specific.context[...].std()) == pytest.approx(0.02, rel=0.05)
    again = create("coop", tiny_clip, tiny_tokenizer)
    np.testing.assert_array_equal(shared.context[...], again.context[...])
    other = create("coop", tiny_clip, tiny_tokenizer, seed=1)
    assert not np.array_equal(shared.context[...], other.context[...])


def test_context_from_a_phrase_starts_as_the_hand_crafted_prompt(tiny_clip, tiny_tokenizer, caplog):
    method = create(
        "coop", tiny_clip, tiny_tokenizer, context_init="a_photo_of_a", class_specific=True
    )
    assert "class_specific is ignored" in caplog.text
    words = [tiny_tokenizer.words()[index] for index in tiny_tokenizer.ids("a photo of a")]
    assert method.context.shape == (len(words), 32)
    assert method.settings() == {
        "n_ctx": len(words),
        "class_token_position": "end",
        "class_specific": False,
    }
    zero_shot = create("zero_shot", tiny_clip, tiny_tokenizer)
    np.testing.assert_allclose(
        eager_logits(method, tiny_clip), eager_logits(zero_shot, tiny_clip), rtol=1e-5, atol=1e-5
    )


def test_a_phrase_with_words_of_several_tokens(tiny_clip, tiny_tokenizer, caplog):
    phrase = "a handwritten photo of a"
    ids = tiny_tokenizer.ids(phrase)
    assert len(ids) > 5
    method = create("coop", tiny_clip, tiny_tokenizer, context_init=phrase)
    assert "only the first 5 are learned" in caplog.text
    table = tiny_clip.text.token_embedding[...]
    np.testing.assert_array_equal(method.context[...], table[np.asarray(ids[:5])])
    zero_shot = create("zero_shot", tiny_clip, tiny_tokenizer, templates=(phrase + " {}.",))
    np.testing.assert_allclose(
        eager_logits(method, tiny_clip), eager_logits(zero_shot, tiny_clip), rtol=1e-5, atol=1e-5
    )


def test_an_ensemble_averages_normalised_features(tiny_clip, tiny_tokenizer):
    templates = ("a photo of a {}.", "a drawing of a {}.")
    both = create("zero_shot", tiny_clip, tiny_tokenizer, templates=templates)
    parts = [
        create("zero_shot", tiny_clip, tiny_tokenizer, templates=(template,)).encode_classes(
            tiny_clip
        )
        for template in templates
    ]
    np.testing.assert_allclose(
        both.encode_classes(tiny_clip), (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("coopp", {}, r"unknown method 'coopp': expected one of .*coop, .*zero_shot"),
        ("coop", {"nctx": 4}, r"unknown settings nctx; valid ones are n_ctx, "),
        ("coop", {"n_ctx": 0}, r"expected at least one context vector, got 0"),
        ("coop", {"n_ctx": -1}, r"expected at least one context vector, got -1"),
        ("coop", {"context_init": "_"}, r"expected at least one context vector, got 0"),
        ("coop", {"class_token_position": "back"}, r"expected one of end, middle, front"),
        ("coop", {"n_ctx": 70}, r"expected at most 77 tokens, got \d+ in 'X X X .*'"),
        ("zero_shot", {"templates": ("a photo",)}, r"each with one \{\}, got \['a photo'\]"),
        ("zero_shot", {"templates": ()}, r"expected at least one"),
    ],
)
def test_bad_settings(tiny_clip, tiny_tokenizer, name, config, message):
    with pytest.raises(InputError, match=message) as error:
        create(name, tiny_clip, tiny_tokenizer, **config)
    assert "\n" not in str(error.value)
