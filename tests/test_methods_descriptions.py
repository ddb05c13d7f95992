"""CuPL, WaffleCLIP and ZPE: what must hold whatever the official code does."""

import json

import numpy as np
import pytest
from conftest import CLASS_NAMES, moved
from makers import DESCRIPTIONS

from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.errors import InputError
from coop_jax.methods import Images, descriptions, waffleclip

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
