"""The papers' experiments by name: their words, and their resolved configs as recorded."""

import json
from pathlib import Path

import pytest
from record_presets import NAMES, ROOT, resolve, snapshot

from coop_jax import config as config_module
from coop_jax import presets
from coop_jax.errors import InputError
from coop_jax.run import paper_epochs

SNAPSHOTS = json.loads((Path(__file__).parent / "data" / "presets.json").read_text())


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_resolved_config(name):
    config_module.check(resolve(name))
    assert snapshot(name) == SNAPSHOTS[name]


def test_every_preset_has_a_snapshot():
    others = {"quickstart", "few_shot", "compare"}
    files = {path.stem for path in (ROOT / "configs").glob("*.py")} - others
    assert {name.partition(":")[0] for name in SNAPSHOTS} == files
    assert set(SNAPSHOTS) == set(NAMES)


@pytest.mark.parametrize("file", sorted({name.partition(":")[0] for name in NAMES}))
def test_every_word_of_a_preset_is_in_a_snapshot(file, monkeypatch):
    choose, chosen, valid = presets.choose, set(), {}

    def watch(argument, **choices):
        words = choose(argument, **choices)
        valid.update(choices)
        chosen.update(words.items())
        return words

    monkeypatch.setattr(presets, "choose", watch)
    for name in NAMES:
        if name.partition(":")[0] == file:
            resolve(name)
    assert chosen == {(kind, word) for kind, words in valid.items() for word in words}


def test_phrases_start_contexts_at_16_shots_alone():
    expected = {"dtd": {"16": 200}, "imagenet": {"16": 50}}
    for dataset, epochs in expected.items():
        assert snapshot(f"coop_few_shot:{dataset},phrase")["epochs of shots"] == epochs


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_trains_as_published(name):
    config = snapshot(name)
    method = config["method"]["name"]
    assert presets.trains_as_published(config, method)
    changes = (
        {"batch_size": 7},
        {"epochs": 3},
        {"max_steps": 9},
        {"optimizer": None},
        {"sampling": "mine"},
    )
    for other in changes:
        assert not presets.trains_as_published(config | other, method)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # coop_protocol section 0, row by row
        ("coop_few_shot:dtd", ("RN50", "end", 16, "", False, 32)),
        ("coop_few_shot:imagenet,middle,m4", ("RN50", "middle", 4, "", False, 32)),
        ("coop_few_shot:eurosat,class_specific", ("RN50", "end", 16, "", True, 32)),
        ("coop_few_shot:food101,phrase", ("RN50", "end", 4, "a photo of a", False, 32)),
        ("cocoop_base_to_new:coop,dtd", ("ViT-B/16", "end", 4, "a photo of a", False, 32)),
        ("cocoop_cross_dataset:coop", ("ViT-B/16", "end", 4, "a photo of a", False, 32)),
        ("cocoop_base_to_new:dtd", ("ViT-B/16", "end", 4, "a photo of a", False, 1)),
    ],
)
def test_settings_of_the_paper_results(name, expected):
    config = resolve(name)
    method = config["method"]
    assert expected == (
        config["clip"]["name"],
        method.get("class_token_position", "end"),
        method["n_ctx"],
        method["context_init"],
        method.get("class_specific", False),
        config["batch_size"],
    )
    assert config["seeds"] == (1, 2, 3)
    assert config["epochs"] == (10 if method["name"] == "cocoop" else 0)


def test_the_paper_s_epochs():
    assert [paper_epochs(shots, "dtd") for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]
    assert {paper_epochs(shots, "imagenet") for shots in (1, 2, 4, 8, 16)} == {50}


def test_float16_is_one_word():
    config = presets.coop_few_shot("dtd,float16")
    assert (config["clip"]["dtype"], config["optimizer"]["dtype"]) == ("float16", "float16")


@pytest.mark.parametrize("argument", ["dtd,eurosat", "dtt", "dtd,rn50,vit_b16"])
def test_wrong_words(argument):
    with pytest.raises(InputError, match=r"one word of a kind at most \(dataset: imagenet"):
        presets.coop_few_shot(argument)
