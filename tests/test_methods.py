"""One contract for every method file found, and each method's own errors."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, moved
from flax import nnx
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from coop_jax import evaluate, methods, states
from coop_jax.checkpoint import Checkpoints
from coop_jax.classes import Classes
from coop_jax.clip import Tokenizer
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, Split, Stage, linear_probe

FEATURES = np.random.default_rng(0).normal(size=(6, 24)).astype(np.float32)
IMAGES = Images(features=FEATURES)

OLD = ("cocoop", "coop", "linear_probe", "zero_shot")
"""Methods that have no file of tests of their own."""


def splits(features, labels, val_features, val_labels):
    """Images in memory as `prepare` sees them."""

    def split(features, labels):
        return Split(labels, lambda requests, _: Images(features=features[requests[:, 1]]))

    return Data(split(features, labels), split(val_features, val_labels))


def fit(method, clip, *data):
    """Let the linear probe do what it does before a stage."""
    method.prepare(clip, 0, splits(*data))


def create(name, clip, tokenizer, names=CLASS_NAMES, seed=0, **config):
    return methods.create(name, clip, tokenizer, names, config, seed=seed)


def eager_logits(method, clip):
    return np.asarray(method.logits(clip, method.texts(clip, None), IMAGES))


def learned_shapes(method):
    return {name: variable.shape for name, variable in methods.saved(method).items()}


@pytest.mark.parametrize(
    ("name", "config"),
    [*((name, {}) for name in OLD), ("coop", {"class_specific": True})],
)
def test_what_is_learned_moves_to_other_classes_or_is_refused(
    name, config, tiny_clip, tiny_tokenizer, tmp_path
):
    method = create(name, tiny_clip, tiny_tokenizer, seed=1, **config)
    names = ("circle", *CLASS_NAMES[1:3])
    other = create(name, tiny_clip, tiny_tokenizer, names, seed=2, **config)
    if learned_shapes(method) == learned_shapes(other):
        methods.move(method, other, Classes(CLASS_NAMES), moved(names))
        got, expected = eager_logits(other, tiny_clip), eager_logits(method, tiny_clip)
        np.testing.assert_allclose(got[:, 1:], expected[:, 1:3], rtol=1e-4, atol=1e-4)
        assert np.abs(got[:, 0] - expected[:, 0]).max() > 1e-3
    else:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(states.initial_state(method, tiny_clip, Stage()), last=True)
        with pytest.raises(InputError, match=r"\[3, .* got .*\[5, .*\(if class-specific\) classes"):
            checkpoints.restore(states.initial_state(other, tiny_clip, Stage()), 0)
        checkpoints.close()


def test_moving_takes_the_rows_of_the_wanted_classes(tiny_clip, tiny_tokenizer):
    method = create("coop", tiny_clip, tiny_tokenizer, seed=1, class_specific=True)
    wanted = (CLASS_NAMES[3], CLASS_NAMES[0])
    fresh = create("coop", tiny_clip, tiny_tokenizer, wanted, seed=2, class_specific=True)
    other = methods.move(method, fresh, Classes(CLASS_NAMES), moved(wanted))
    np.testing.assert_allclose(
        eager_logits(other, tiny_clip),
        eager_logits(method, tiny_clip)[:, [3, 0]],
        rtol=1e-5,
        atol=1e-5,
    )
    # As many classes, but others: no shape tells.
    others = [f"{name}s" for name in CLASS_NAMES]
    fresh = create("coop", tiny_clip, tiny_tokenizer, others, class_specific=True)
    with pytest.raises(InputError, match=r"got 5 others \(tenchs, .* learn a shared context"):
        methods.move(method, fresh, Classes(CLASS_NAMES), moved(others))


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


def test_a_tokenizer_of_other_weights(tiny_clip, openai_tokenizer):
    tokenizer = Tokenizer(openai_tokenizer)
    with pytest.raises(InputError, match=r"of 929 tokens, .* got one of 49408; name the folder"):
        create("coop", tiny_clip, tokenizer)


def test_known_repeats_are_accepted(tiny_clip, tiny_tokenizer):
    names = ("missile", "tench", "missile", "tench")
    with pytest.raises(InputError, match=r"got 'tench' \(2 times\);"):
        methods.create("coop", tiny_clip, tiny_tokenizer, Classes(names, repeated=("missile",)))
    method = methods.create(
        "coop", tiny_clip, tiny_tokenizer, Classes(names[:3], repeated=("missile",))
    )
    logits = eager_logits(method, tiny_clip)
    np.testing.assert_array_equal(logits[:, 0], logits[:, 2])


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
    assert method.settings() == {"n_ctx": len(words), "class_specific": False}
    zero_shot = create("zero_shot", tiny_clip, tiny_tokenizer)
    np.testing.assert_allclose(
        eager_logits(method, tiny_clip), eager_logits(zero_shot, tiny_clip), rtol=1e-5, atol=1e-5
    )


def test_a_phrase_with_words_of_several_tokens(tiny_clip, tiny_tokenizer, caplog):
    phrase = "a handwritten photo of a"
    ids = tiny_tokenizer.ids(phrase)
    assert len(ids) > 5
    method = create("coop", tiny_clip, tiny_tokenizer, context_init=phrase)
    assert "than words (5)" in caplog.text
    table = tiny_clip.text.token_embedding[...]
    np.testing.assert_array_equal(method.context[...], table[np.asarray(ids[:5])])
    zero_shot = create("zero_shot", tiny_clip, tiny_tokenizer, templates=(phrase + " {}.",))
    np.testing.assert_allclose(
        eager_logits(method, tiny_clip), eager_logits(zero_shot, tiny_clip), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", methods.available())
def test_a_label_names_no_default_that_a_record_has(name):
    settings = methods.default_config(name)
    recorded = json.loads(json.dumps(settings))
    assert methods.label(name, recorded) == methods.label(name, settings)
    others = {key: ["other"] for key, value in settings.items() if isinstance(value, tuple)}
    assert all(f"{key} = ['other']" in methods.label(name, recorded | others) for key in others)


def test_an_ensemble_averages_normalised_features(tiny_clip, tiny_tokenizer):
    templates = ("a photo of a {}.", "a drawing of a {}.")
    both = create("zero_shot", tiny_clip, tiny_tokenizer, templates=templates)
    parts = [
        create("zero_shot", tiny_clip, tiny_tokenizer, templates=(template,)).texts(tiny_clip, None)
        for template in templates
    ]
    np.testing.assert_allclose(
        both.texts(tiny_clip, None), (parts[0] + parts[1]) / 2, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("coopp", {}, r"expected a method, one of .*coop, .*zero_shot.* got 'coopp'"),
        ("coop", {"nctx": 4}, r"expected settings among n_ctx, .*, got nctx; "),
        ("coop", {"n_ctx": 0}, r"expected at least one context vector, got 0"),
        ("coop", {"n_ctx": -1}, r"expected n_ctx from 0 to 1000000, got -1"),
        ("coop", {"context_init": "_"}, r"expected at least one context vector, got 0"),
        ("coop", {"class_token_position": "back"}, r"expected one of end, middle, front"),
        ("coop", {"n_ctx": 70}, r"expected at most 77 tokens, got \d+ in 'X X X .*'"),
        ("zero_shot", {"templates": ("a photo",)}, r"each with one \{\}, got 'a photo'"),
    ],
)
def test_bad_settings(tiny_clip, tiny_tokenizer, name, config, message):
    with pytest.raises(InputError, match=message) as error:
        create(name, tiny_clip, tiny_tokenizer, **config)
    assert "\n" not in str(error.value)


def few_shot_features(seed, classes, images=6):
    """Features of classes that overlap, [images per class * classes, 24], and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(classes, images)
    centers = np.random.default_rng(9).normal(size=(max(classes) + 1, 24))
    return (centers[labels] + 3 * rng.normal(size=(len(labels), 24))).astype(np.float32), labels


def official_linear_probe(features, labels, val_features, val_labels):
    """Protocol section 10 word by word: every classifier fitted anew, the ends moved as C itself.

    Gives the classifier, its C and its validation accuracy.
    """

    def fit(c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression = LogisticRegression(solver="lbfgs", max_iter=1000, C=c)
            regression.fit(features.astype(np.float64), labels)
        return regression, c, np.mean(regression.predict(val_features) == val_labels)

    best = None
    for c in (1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6):
        candidate = fit(c)
        if best is None or candidate[2] > best[2]:
            best = candidate
    low, high = 0.1 * best[1], 10 * best[1]
    for _ in range(8):
        at_low, at_high = fit(low), fit(high)
        middle = 10 ** (np.log10(low) / 2 + np.log10(high) / 2)
        if at_low[2] < at_high[2]:
            chosen, low = at_high, middle
        else:
            chosen, high = at_low, middle
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_linear_probe_is_the_official_one(tiny_clip, tiny_tokenizer, one_device, caplog, seed):
    caplog.set_level("INFO", "coop_jax")
    data = (
        *few_shot_features(2 * seed, [0, 1, 2, 3, 4]),
        *few_shot_features(2 * seed + 1, [0, 1, 2, 3, 4], images=4),
    )
    method = create("linear_probe", tiny_clip, tiny_tokenizer)
    fit(method, tiny_clip, *data)
    expected, c, accuracy = official_linear_probe(*data)
    assert f"C = {c:.4g}, few-shot validation accuracy {100 * accuracy:.1f} %" in caplog.text
    test_features, _ = few_shot_features(100, [0, 1, 2, 3, 4], images=50)
    logits = evaluate.logits(method, tiny_clip, Images(features=test_features), one_device)
    np.testing.assert_array_equal(np.argmax(logits, axis=1), expected.predict(test_features))
    np.testing.assert_allclose(
        logits, expected.decision_function(test_features), rtol=1e-4, atol=1e-4
    )


def test_the_search_for_c_follows_the_accuracy():
    assert linear_probe.search(lambda exponent: 0.5) == 5
    assert linear_probe.search(lambda exponent: exponent) == 7
    assert linear_probe.search(lambda exponent: -abs(exponent + 2.3)) == pytest.approx(
        -2.3, abs=0.02
    )


def test_linear_probe_of_two_classes_has_the_regressions_probabilities(tiny_clip, tiny_tokenizer):
    data = (*few_shot_features(0, [0, 1]), *few_shot_features(1, [0, 1], images=4))
    method = create("linear_probe", tiny_clip, tiny_tokenizer, ("cat", "dog"))
    fit(method, tiny_clip, *data)
    expected, _, _ = official_linear_probe(*data)
    np.testing.assert_allclose(
        jax.nn.softmax(eager_logits(method, tiny_clip)),
        expected.predict_proba(FEATURES),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("present", [[1, 3], [0, 2, 4]])
def test_linear_probe_never_predicts_a_class_without_images(tiny_clip, tiny_tokenizer, present):
    method = create("linear_probe", tiny_clip, tiny_tokenizer)
    fit(method, tiny_clip, *few_shot_features(0, present), *few_shot_features(1, [0, 1, 2, 3, 4]))
    logits = method.logits(tiny_clip, (), Images(features=1e6 * FEATURES))
    assert np.isfinite(logits).all()
    assert set(np.argmax(logits, axis=1).tolist()) <= set(present)


def test_linear_probe_says_once_what_did_not_converge(
    tiny_clip, tiny_tokenizer, monkeypatch, caplog
):
    monkeypatch.setattr(linear_probe, "ITERATIONS", 1)
    method = create("linear_probe", tiny_clip, tiny_tokenizer)
    fit(method, tiny_clip, *few_shot_features(0, [0, 1, 2]), *few_shot_features(1, [0, 1, 2]))
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
    assert "L-BFGS did not converge for " in caplog.text


@pytest.mark.parametrize(
    ("present", "val_images", "message"),
    [
        ([0, 1], 0, "expected validation images, which the search for C needs, got none"),
        ([2], 4, "expected training images of at least 2 classes, got 1;"),
    ],
)
def test_linear_probe_needs_classes_and_validation_images(
    tiny_clip, tiny_tokenizer, present, val_images, message
):
    method = create("linear_probe", tiny_clip, tiny_tokenizer)
    with pytest.raises(InputError, match=message) as error:
        fit(
            method,
            tiny_clip,
            *few_shot_features(0, present),
            *few_shot_features(1, [0, 1], val_images),
        )
    assert "\n" not in str(error.value)


def test_classes_that_do_not_say_what_was_trained_on_are_refused(tiny_clip, tiny_tokenizer):
    method = create("coop", tiny_clip, tiny_tokenizer)
    names = ("tench", "anemone", "circle")
    fresh = create("coop", tiny_clip, tiny_tokenizer, names)
    with pytest.raises(InputError, match=r"make the method for wanted\.moved_from\(trained\)"):
        methods.move(method, fresh, Classes(CLASS_NAMES), Classes(names))


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_a_method_is_described_without_its_arrays(name, tiny_clip, tiny_tokenizer):
    made = create(name, tiny_clip, tiny_tokenizer)
    described = nnx.eval_shape(lambda: create(name, tiny_clip, tiny_tokenizer))
    of = lambda method: [leaf.shape for leaf in jax.tree.leaves(nnx.state(method))]  # noqa: E731
    assert of(described) == of(made)
