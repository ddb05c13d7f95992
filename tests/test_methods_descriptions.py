"""CuPL, WaffleCLIP and ZPE: what must hold whatever the official code does."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, moved
from makers import DESCRIPTIONS
from recorded import split

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import evaluate, methods, workdir
from coop_jax.classes import Classes
from coop_jax.clip import unit
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, descriptions, waffleclip, zpe

FEATURES = np.random.default_rng(0).normal(size=(6, 24)).astype(np.float32)
IMAGES = Images(features=FEATURES)


@pytest.fixture
def made(tiny_clip, tiny_tokenizer):
    """A function from a method's name, classes and settings to the method."""

    def make(name, classes=CLASS_NAMES, **settings):
        return methods.create(name, tiny_clip, tiny_tokenizer, classes, settings)

    return make


@pytest.fixture
def logits(tiny_clip, one_device):
    """A function from a method to its logits."""
    return lambda method, images=IMAGES: evaluate.logits(method, tiny_clip, images, one_device)


def same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-5 * np.abs(expected).max())


def with_sentences(of_class):
    return Classes(tuple(of_class), sentences=of_class)


def written(folder, content):
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


# CuPL.


def test_a_single_sentence_that_is_the_template_is_zero_shot_clip(made, logits):
    classes = with_sentences({name: (f"a photo of a {name}.",) for name in CLASS_NAMES})
    same(logits(made("cupl", classes)), logits(made("zero_shot")))


def test_sentences_that_are_the_templates_are_the_ensemble(made, logits):
    templates = ("a photo of a {}.", "a drawing of the {}.", "{}")
    texts = {n: tuple(t.replace("{}", n) for t in templates) for n in CLASS_NAMES}
    ensemble = logits(made("zero_shot", templates=templates))
    same(logits(made("cupl", with_sentences(texts))), ensemble)
    first = {name: of_class[:1] for name, of_class in texts.items()}
    same(logits(made("cupl", with_sentences(first), templates=templates[1:])), ensemble)


def test_a_class_is_of_its_own_sentences_alone_and_in_no_order(made, logits):
    texts = {
        n: (f"a {n}", f"{n}, in black", f"one {n}")[: 1 + i % 3] for i, n in enumerate("abcde")
    }
    whole = logits(made("cupl", with_sentences(texts)))
    turned = {name: texts[name][::-1] for name in reversed(texts)}
    same(logits(made("cupl", with_sentences(turned)))[:, ::-1], whole)
    other = logits(made("cupl", with_sentences(texts | {"b": ("a red circle",)})))
    same(np.delete(other, 1, axis=1), np.delete(whole, 1, axis=1))
    assert np.abs(other[:, 1] - whole[:, 1]).max() > 1e-3
    twice = {name: of_class * 2 for name, of_class in texts.items()}
    same(logits(made("cupl", with_sentences(twice))), whole)


def test_a_file_is_found_by_names_as_they_are_spelled_and_by_ids(made, logits, tmp_path):
    texts = {"Great white  shark": ["a fish"], "n02": ["a bird"], "ox": ["a big animal"]}
    path = written(tmp_path, texts)
    classes = Classes(("great_white_shark", "hen"), ids=("n01", "n02"))
    got = logits(made("cupl", classes, sentences=path))
    given = Classes(classes.names, sentences={"great_white_shark": ("a fish",), "hen": ("a bird",)})
    same(got, logits(made("cupl", given)))


def test_a_saved_mean_counts_where_the_file_has_changed(made, logits, tmp_path):
    """That of a known class; what is new is read from the file."""
    path = written(tmp_path, {name: [f"a {name}"] for name in CLASS_NAMES})
    method = made("cupl", sentences=path)
    names = (CLASS_NAMES[2], "circle", CLASS_NAMES[0])
    written(tmp_path, {name: [f"no {name}"] for name in names})
    fresh = made("cupl", names, sentences=path)
    changed = logits(fresh)
    got = logits(methods.move(method, fresh, Classes(CLASS_NAMES), moved(names)))
    same(got[:, [0, 2]], logits(method)[:, [2, 0]])
    same(got[:, 1], changed[:, 1])
    assert np.abs(changed[:, 0] - got[:, 0]).max() > 1e-3


def test_records_tell_descriptions_apart(made, tmp_path):
    said = set()
    for texts in (["a red circle"], ["a blue circle"], ["a red circle"]):
        path = written(tmp_path, {name: texts for name in CLASS_NAMES})
        method = made("cupl", sentences=path)
        assert method.uses == {"sentences"} and str(tmp_path) not in method.source
        said.add(method.settings()["sentences"])
    assert len(said) == 2


def test_a_workdir_is_not_gone_on_with_after_a_file_has_changed(tmp_path):
    config = config_module.default("cupl")
    config["method"]["sentences"] = written(tmp_path, {"tench": ["a fish"]})
    workdir.claim(config, tmp_path / "run")
    workdir.check(config, tmp_path / "run")
    written(tmp_path, {"tench": ["a bird"]})
    with pytest.raises(InputError, match=r"\(different: method_files\.sentences\)"):
        workdir.check(config, tmp_path / "run")
    written(tmp_path, {"tench": ["a fish"]})
    workdir.check(config, tmp_path / "run")
    for name in ("waffleclip", "zpe"):
        files = methods.module(name).FILES
        paths = dict.fromkeys(files, config["method"]["sentences"])
        assert {*files} <= {*methods.default_config(name)}
        assert methods.files_of(name, paths).keys() == paths.keys()
        assert not methods.files_of(name, methods.default_config(name))


def test_texts_that_are_too_long_are_cut_or_refused(made, logits, tiny_tokenizer):
    long = " ".join(["circle"] * 90)
    texts = {name: (f"a {name}", f"{name} {long}") for name in CLASS_NAMES}
    with pytest.raises(InputError, match=r"at most 77 tokens, .* got 5 longer ones, the first of"):
        made("cupl", with_sentences(texts))
    longer = {name: (first, f"{second} square") for name, (first, second) in texts.items()}
    cut = logits(made("cupl", with_sentences(texts), truncate=True))
    same(logits(made("cupl", with_sentences(longer), truncate=True)), cut)
    exact = " ".join([tiny_tokenizer.placeholder] * 75)
    assert made("cupl", with_sentences(dict.fromkeys(CLASS_NAMES, (exact,)))).bank.shape
    over = with_sentences(dict.fromkeys(CLASS_NAMES, (f"{exact} {tiny_tokenizer.placeholder}",)))
    with pytest.raises(InputError, match=r"the first of 78 "):
        made("cupl", over)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON, but"),
        ("[1]", r"a JSON object of class names with lists of texts, got \[1\]"),
        ("{}", "a JSON object of class names with lists of texts"),
        ({"tench": "a fish"}, "expected a list of texts for 'tench', .* got 'a fish'"),
        ({"tench": []}, "expected a list of texts for 'tench', at least one"),
        ({"tench": ["a", " "]}, "none empty"),
        ({"tench": [1]}, "expected a list of texts for 'tench'"),
        ({"tench": {"a": 1}}, "expected a list of texts for 'tench'"),
        ('{"tench": ["a"], "tench": ["b"]}', "each class once, got 'tench' several times"),
        ({"CD_player": ["a"], "cd player": ["b"]}, "each class once, got 'cd player' several"),
        (
            {"tench": ["a"]},
            r"every class, got none of 4 of 5 \(hen-of-the-woods, .*, CD player, \.\.\.\); add",
        ),
    ],
)
def test_files_that_will_not_do_are_refused_in_one_line(made, content, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        made("cupl", sentences=written(tmp_path, content))
    assert "\n" not in str(error.value) and "mine.json" in str(error.value)


def test_descriptions_are_needed(made, tmp_path):
    with pytest.raises(
        InputError, match="expected a JSON file of descriptions of the classes, got"
    ):
        made("cupl")
    with pytest.raises(InputError, match="expected a file of texts, got none"):
        made("cupl", sentences=str(tmp_path / "none.json"))
    with pytest.raises(InputError, match=r"each with one \{\}, got 'a photo'"):
        made("cupl", sentences=DESCRIPTIONS, templates=("a photo",))
    assert len(descriptions.read(DESCRIPTIONS)) > 10


# WaffleCLIP.

WORDS = ("proxy", "foxes", "apple", "anchor", "use", "mirror", "hasten")


def draw(names=CLASS_NAMES, template="A photo of a {}.", **options):
    options = {"pairs": 3, "seed": 0, "words": WORDS, "characters": "xo z,."} | options
    return waffleclip.drawn(names, template, **options)


def test_all_classes_have_the_same_random_texts():
    for template in ("A photo of a {}.", "{}", "the {}, of all things."):
        texts = draw(("ox", "red_fox", "CD player"), template)
        rest = {
            tuple(
                text.replace(template.rstrip(".").replace("{}", name), "", 1) for text in of_class
            )
            for name, of_class in zip(("ox", "red fox", "CD player"), texts, strict=True)
        }
        (all_same,) = rest
        assert len(all_same) == 6
        assert all(text.startswith(", which ") for text in all_same)
        assert all(text.endswith(".") == template.endswith(".") for text in all_same)
        assert all({*text} <= {*", which has xoz."} for text in all_same[1::2])


def test_draws_are_those_of_their_seed_and_of_no_order_of_classes(made, logits):
    assert draw() == draw() != draw(seed=1)
    assert draw(CLASS_NAMES[::-1])[::-1] == draw()
    whole = logits(made("waffleclip", pairs=2))
    same(logits(made("waffleclip", CLASS_NAMES[::-1], pairs=2))[:, ::-1], whole)
    assert np.abs(logits(made("waffleclip", pairs=2, seed=1)) - whole).max() > 1e-3


def behind(texts):
    """What stands behind "which" in each text of each class."""
    return [[text.partition(", which ")[2] for text in of_class] for of_class in texts]


def test_only_as_released_random_text_changes_with_the_class():
    """Of the drawn class "ox", random text has the name; and "apple" is no article."""
    names = ("ox", "ox", "ox", "hippopotamus")
    noise = behind(draw(names, pairs=20))
    assert noise[0] == noise[3] and "has prox." in noise[3] and "has appl." in noise[3]
    released = behind(draw(names, pairs=20, as_released=True))
    assert released[0] != released[3]
    assert "has prhippopotamus." in released[3] and "is appl." in released[3]


def test_names_are_measured_as_they_are_spelled():
    names = ("sea_lion", "polar_bear", "red_fox")
    spelled = [name.replace("_", " ") for name in names]
    assert draw(names) == draw(spelled)
    for as_released, words in ((False, 2), (True, 1)):
        texts = draw(names, words=("proxy", "foxes"), as_released=as_released)
        assert all(len(text.rstrip(".").split()) - 1 == words for text in behind(texts)[0])
        assert texts[0][0].startswith("A photo of a sea lion, which ")
    assert draw(spelled, as_released=True) != draw(names, as_released=True)


@pytest.mark.parametrize(
    ("has", "said"),
    [
        ("a red comb", "which is a red comb"),
        ("an anchor", "which is an anchor"),
        ("used for transport", "which is used for transport"),
        ("often found outdoors", "which often found outdoors"),
        ("red wings", "which has red wings"),
        ("apple", "which has apple"),
        ("hasten", "which has hasten"),
        ("has visible edges", "which has visible edges"),
    ],
)
def test_grammar(has, said):
    assert waffleclip.prompt("a {}.", "hen", has, as_released=False) == f"a hen, {said}."


def test_descriptions_stay_with_their_class(made):
    described = [("long beak",), ("red door", "old key"), ("cold",)]
    texts = draw(("hen", "house", "ice"), pairs=6, described=described)
    assert [len(of_class) for of_class in texts] == [12] * 3
    for of_class, own in zip(texts, described, strict=True):
        others = {each for each in sum(described, ()) if each not in own}
        said = [text.partition(", which has ")[2].rstrip(".") for text in of_class]
        assert {*own} & {*said} and not others & {*said}
    method = made("waffleclip", pairs=3, sentences=DESCRIPTIONS)
    assert method.uses == {"sentences"} and "descriptions.json" in method.settings()["sentences"]
    assert not made("waffleclip", pairs=2).uses


@pytest.mark.parametrize("name", ["circle", "square"])
def test_base_and_new_classes_draw_from_the_characters_of_the_whole_file(
    made, logits, tmp_path, name
):
    path = written(tmp_path, {"circle": ["cccc"], "square": ["ssss"]})
    whole, both, own = (
        logits(made("waffleclip", (name,), pairs=6, sentences=path, characters=characters))
        for characters in ("", "cs", name[0])
    )
    same(whole, both)
    assert np.abs(whole - own).max() > 1e-3


def test_aggregates(made, logits, tiny_clip, tiny_tokenizer):
    words = waffleclip.words_of(tiny_tokenizer)
    texts = draw(words=words, characters="".join(words), pairs=2)
    each = [
        logits(made("cupl", with_sentences(dict(zip(CLASS_NAMES, zip(of_all), strict=True)))))
        for of_all in zip(*texts, strict=True)
    ]
    got = {
        name: logits(made("waffleclip", pairs=2, aggregate=name)) for name in waffleclip.AGGREGATES
    }
    same(got["mean"], np.mean(each, axis=0))
    same(got["max"], np.max(each, axis=0))
    whole = with_sentences(dict(zip(CLASS_NAMES, map(tuple, texts), strict=True)))
    same(got["merged"], logits(made("cupl", whole)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"aggregate": "median"}, "aggregate: expected one of mean, max, merged, got 'median'"),
        ({"pairs": 0}, "expected pairs from 1 to 1000, got 0"),
        ({"pairs": 1, "sentences": DESCRIPTIONS}, "pairs: expected at least 2 beside descriptions"),
        ({"characters": " ,."}, r"characters: expected some, got ' ,\.'"),
        ({"template": "a photo"}, r"each with one \{\}, got 'a photo'"),
        ({"words": "nowhere.txt"}, "nowhere.txt: expected a file of texts, got none"),
        ({"template": " ".join(["a"] * 80) + "{}"}, "WaffleCLIP: expected texts of at most 77"),
    ],
)
def test_settings_of_waffleclip_that_will_not_do(made, settings, message):
    with pytest.raises(InputError, match=message) as error:
        made("waffleclip", **settings)
    assert "truncate" not in str(error.value)


# ZPE.

POOL = ("a photo of a {}.", "{}", "a drawing of the {}.", "the {} in black")
UNLABELED = np.random.default_rng(1).normal(size=(11, 24)).astype(np.float32) + 0.3


def weighed(method, clip, features=UNLABELED):
    """The method, after it has seen unlabelled images."""
    labels = np.zeros(len(features), np.int32)
    train, others = split(labels, Images()), split(labels, Images(features=features))
    method.prepare(clip, 0, Data(train, unlabeled=others))
    return method


def test_a_pool_of_one_prompt_is_zero_shot_clip(made, logits, tiny_clip):
    for weights in zpe.WEIGHTS:
        method = weighed(made("zpe", templates=POOL[:1], weights=weights), tiny_clip)
        assert method.weights[...] == pytest.approx([1])
        same(logits(method), logits(made("zero_shot", templates=POOL[:1])))


def test_logits_are_the_weighted_means_of_those_of_each_prompt(made, logits, tiny_clip):
    each = np.stack([logits(made("zero_shot", templates=(template,))) for template in POOL])
    same(logits(made("zpe", templates=POOL)), each.mean(axis=0))
    method = weighed(made("zpe", templates=POOL), tiny_clip)
    weights = np.asarray(method.weights[...])
    assert weights.sum() == pytest.approx(1) and np.ptp(weights) > 1e-3
    same(logits(method), np.einsum("p,pic->ic", weights, each))


def test_weights_are_the_softmax_of_the_scores(made, logits, tiny_clip):
    """Of the mean highest logit, less each class's own mean."""
    images = Images(features=UNLABELED)
    each = [logits(made("zero_shot", templates=(template,)), images) for template in POOL]
    scores = np.array([(one - one.mean(axis=0)).max(axis=1).mean() for one in each], np.float64)
    method = weighed(made("zpe", templates=POOL), tiny_clip)
    np.testing.assert_allclose(
        method.weights[...], np.exp(scores) / np.exp(scores).sum(), rtol=1e-4
    )
    some = weighed(made("zpe", templates=POOL, weights="scores"), tiny_clip)
    np.testing.assert_allclose(some.weights[...], scores / scores.sum(), rtol=1e-4)


def test_weights_go_with_their_prompts_and_see_no_order_of_images(made, tiny_clip):
    weights = weighed(made("zpe", templates=POOL), tiny_clip).weights[...]
    turned = weighed(made("zpe", templates=POOL[::-1]), tiny_clip, UNLABELED[::-1])
    np.testing.assert_allclose(turned.weights[...][::-1], weights, rtol=1e-5)
    first = weighed(made("zpe", templates=POOL, share=3 / 11), tiny_clip)
    again = weighed(made("zpe", templates=POOL, share=3 / 11), tiny_clip, UNLABELED[::-1])
    assert np.abs(first.weights[...] - again.weights[...]).max() > 1e-4


def test_scores_are_the_same_in_parts(made, tiny_clip, monkeypatch):
    texts, features = made("zpe", templates=POOL).bank[...], unit(jnp.asarray(UNLABELED))
    whole = zpe.scores(texts, features, [features.mean(axis=0)])
    monkeypatch.setattr(zpe, "AT_ONCE", 3)
    np.testing.assert_allclose(zpe.scores(texts, features, [features.mean(axis=0)]), whole)
    np.testing.assert_allclose(zpe.scores(texts, features[:1], [features[0]]), 0, atol=1e-6)
    both = zpe.scores(texts, features[:1], [features[0], -features[0]])
    np.testing.assert_allclose(both, zpe.scores(texts, features[:1]), rtol=1e-5)


def test_selection_by_the_median_absolute_deviation():
    scores = np.array([1.0, 2, 3, 4, 9])
    np.testing.assert_array_equal(zpe.select(scores, 0.5), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(zpe.select(scores, 1.0), [0, 0, 0, 0, 1])
    np.testing.assert_allclose(zpe.weigh(scores, "equal", 0.5), [0, 0, 0, 0.5, 0.5])
    np.testing.assert_allclose(zpe.weigh(scores, "scores", 0.5), [0, 0, 0, 4 / 13, 9 / 13])
    with pytest.raises(InputError, match=r"exceeds, got 6, where the highest is at 6; lower it"):
        zpe.select(scores, 6.0)


def test_the_file_of_features_counts_as_much_as_the_images(made, tiny_clip, tmp_path):
    np.save(path := tmp_path / "pretrain.npy", 7 * UNLABELED)
    settings = {"templates": POOL, "pretrain_features": str(path)}
    method = weighed(made("zpe", **settings), tiny_clip)
    alone = weighed(made("zpe", templates=POOL), tiny_clip)
    assert method.uses - alone.uses == {"other_images"} and alone.uses == {"unlabeled"}
    np.testing.assert_allclose(method.weights[...], alone.weights[...], rtol=1e-5)
    np.save(path, -UNLABELED)
    opposed = weighed(made("zpe", **settings), tiny_clip)
    features = unit(jnp.asarray(UNLABELED))
    scale = np.exp(tiny_clip.logit_scale[...])
    expected = zpe.weigh(zpe.scores(scale * alone.bank[...], features), "softmax", None)
    np.testing.assert_allclose(opposed.weights[...], expected, rtol=1e-4)


def test_given_text_features_are_the_pool():
    texts = np.random.default_rng(2).normal(size=(3, 4, 8)).astype(np.float32)
    space: Any = clip_package.FeatureSpace(8, 5.0)
    method = methods.create("zpe", space, None, tuple("abcd"), texts=texts)
    features = np.random.default_rng(3).normal(size=(9, 8)).astype(np.float32)
    weighed(method, space, features)
    assert method.weights.shape == (3,) and np.ptp(method.weights[...]) > 1e-4


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 5), np.float32), r"features \[images, 24\] of the same CLIP, got \[2, 5\]"),
        (np.ones(24, np.float32), r"got \[24\]; make them with it"),
        (np.ones((2, 24), np.int32), "got something else"),
        (np.zeros((0, 24), np.float32), r"got \[0, 24\]"),
        (np.zeros((2, 24), np.float32), "none of length zero"),
        (np.full((2, 24), np.nan, np.float32), "expected finite features"),
        (None, r"expected an \.npy file of image features, got"),
    ],
)
def test_files_of_features_that_will_not_do(made, array, message, tmp_path):
    path = tmp_path / "pretrain.npy"
    np.save(path, array) if array is not None else path.write_text("no array")
    with pytest.raises(InputError, match=message) as error:
        made("zpe", templates=POOL, pretrain_features=str(path))
    assert "\n" not in str(error.value) and "pretrain.npy" in str(error.value)


def test_zpe_is_refused_what_it_cannot_use(made, tiny_clip):
    with pytest.raises(InputError, match="weights: expected one of softmax, scores, equal, got"):
        made("zpe", weights="best")
    none = np.zeros((0, 24), np.float32)
    with pytest.raises(InputError, match="ZPE: expected unlabelled images, got none"):
        weighed(made("zpe", templates=POOL), tiny_clip, none)
