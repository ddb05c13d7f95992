"""Prompts to and from a hub on this machine, through huggingface_hub."""

import dataclasses
import json

import hub_server
import numpy as np
import pytest
from conftest import CLASS_NAMES
from huggingface_hub import HfApi, ModelCard
from makers import feature_arrays, make_snapshot, refusal, write_image

from coop_jax import Classifier, methods
from coop_jax import clip as clip_package
from coop_jax.classes import Classes
from coop_jax.clip import source
from coop_jax.saved import Saved, hub

PROMPT = Saved(
    method="coop",
    settings={"n_ctx": 4, "class_token_position": "end", "class_specific": False},
    learned={"context": np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)},
    backbone="ViT-B/16",
    fingerprint="0" * 64,
    classes=Classes(CLASS_NAMES),
    training={"dataset": "my|things", "shots": 16, "accuracy": 71.25, "optimizer": {"lr": 0.002}},
)
NAME = "somebody/my-prompt"


@pytest.fixture
def folder(tmp_path):
    """A folder with a prompt."""
    PROMPT.save(tmp_path / "mine")
    return tmp_path / "mine"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_pushed_is_pulled_to_the_bit(server, folder):
    before = contents(folder)
    assert hub.push(folder, NAME) == f"{server.endpoint}/{NAME}"
    assert contents(folder) == before
    pulled = contents(hub.pull(NAME))
    assert pulled.pop("README.md").startswith(b"---\n")
    assert pulled == before
    assert not server.repositories[NAME].private
    assert list(server.large.values()) == [before["learned.safetensors"]]


def test_a_hub_id_loads(server, folder, tmp_path, monkeypatch):
    hub.push(folder, NAME)
    monkeypatch.chdir(tmp_path)
    loaded = Saved.load(NAME)
    np.testing.assert_array_equal(loaded.learned["context"], PROMPT.learned["context"])
    assert loaded.training == PROMPT.training
    other = dataclasses.replace(PROMPT, training={"dataset": "the folder's"})
    other.save(tmp_path / NAME)
    assert Saved.load(NAME).training == other.training


def test_versions_of_a_prompt(server, folder, tmp_path):
    hub.push(folder, NAME)
    first = server.repositories[NAME].head
    dataclasses.replace(PROMPT, training={"dataset": "new"}).save(tmp_path / "second")
    hub.push(tmp_path / "second", NAME)
    assert Saved.load(hub.pull(NAME)).training == {"dataset": "new"}
    assert Saved.load(hub.pull(NAME, first)).training == PROMPT.training
    refusal(hub.pull, NAME, "0" * 40)


def test_a_private_repository_and_a_client_of_ones_own(server, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    api = HfApi(endpoint=server.endpoint, token=hub_server.TOKEN)
    hub.push(folder, NAME, private=True, api=api)
    assert server.repositories[NAME].private
    assert "Repository" in refusal(hub.pull, NAME)
    assert contents(hub.pull(NAME, api=api)).keys() == set(hub.FILES)


def test_what_shall_be_private_does_not_go_to_a_public_repository(server, folder):
    hub.push(folder, NAME)
    (folder / "README.md").write_text("---\ntags: [secret]\n---\n# Mine\n")
    assert "which is public" in refusal(hub.push, folder, NAME, private=True)
    assert len(server.repositories[NAME].commits) == 2


def test_a_repository_of_something_else_is_left_alone(server, folder):
    repository = hub_server.Repository(private=False)
    repository.commit({"README.md": b"# Mine", "model.safetensors": b"weights"})
    server.repositories[NAME] = repository
    assert "with model.safetensors" in refusal(hub.push, folder, NAME)
    assert len(repository.commits) == 2
    assert "which has README.md;" in refusal(hub.pull, NAME)


@pytest.mark.parametrize("name", ["mine", "a/b/c", "https://hub/a/b", "~/mine", "../mine"])
def test_names_that_are_no_ids(name, server, folder):
    assert "user/name" in refusal(hub.push, folder, name)
    assert "user/name" in refusal(hub.pull, name)
    assert "which is not there" in refusal(Saved.load, name)
    assert not server.requests


def test_what_the_hub_refuses(server, folder, tmp_path, monkeypatch):
    assert f"or a hub id, {NAME}" in refusal(Saved.load, NAME)
    refusal(hub.push, tmp_path, NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "write to somebody/my-prompt" in refusal(hub.push, folder, NAME)
    assert not server.repositories


def test_without_a_network(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refusal(hub.push, folder, NAME)
    refusal(hub.pull, NAME)
    snapshot = make_snapshot(tmp_path / "cache", NAME)
    PROMPT.save(snapshot)
    assert Saved.load(NAME).training == PROMPT.training


def test_the_card_says_what_the_record_says(folder, server):
    hub.push(folder, NAME)
    card = ModelCard(server.repositories[NAME].at("main")[1]["README.md"].decode())
    assert card.data.library_name == "coop_jax"
    assert card.data.base_model == source.BACKBONES["ViT-B/16"]
    assert "coop" in card.data.tags
    for line in (
        "| method | coop |",
        "| setting n_ctx | 4 |",
        "| dataset | my\\|things |",
        "| accuracy | 71.25 |",
        "| optimizer.lr | 0.002 |",
        f"It was learned on 5 classes: {', '.join(CLASS_NAMES)}.",
        f'Classifier.load("{NAME}")',
    ):
        assert line in card.text.replace("\n", " ") or line in card.text
    assert "can be used on others" in card.text


def test_the_python_of_the_card_runs(server, tmp_path, monkeypatch, capsys):
    model, tokenizer = clip_package.load("tiny")
    names = ("circle", "square")
    method = methods.create("coop", model, tokenizer, names, {"n_ctx": 4})
    named = {"name": "coop", "settings": {"n_ctx": 4}, "backbone": "tiny"}
    learned = Saved.of(method, clip=model, classes=Classes(names), **named)
    learned.save(tmp_path / "mine")
    hub.push(tmp_path / "mine", NAME)
    card = server.repositories[NAME].at("main")[1]["README.md"].decode()
    write_image(tmp_path / "photograph.jpg", np.random.default_rng(0))
    monkeypatch.chdir(tmp_path)
    exec(card.split("```python\n")[1].split("```")[0], {})
    predicted, classes = capsys.readouterr().out.splitlines()
    assert predicted in ("['circle']", "['square']")
    assert classes == "['circle' 'square']"


def test_the_card_of_what_was_learned_from_features(server, tmp_path, capsys):
    arrays = feature_arrays()
    names = arrays["class_names"].tolist()
    said = {"class_names": names, "text_features": arrays["text_features"]}
    classifier = Classifier(method="tip_adapter", settings={"search": False})
    classifier.fit(arrays["train_features"], arrays["train_labels"], **said)
    classifier.save(tmp_path / "mine")
    hub.push(tmp_path / "mine", NAME)
    card = ModelCard(server.repositories[NAME].at("main")[1]["README.md"].decode())
    assert "for given features `12-dimensional features`" in card.text
    assert "photograph" not in card.text and "CLIP" not in card.text
    assert card.data.pipeline_tag is None and card.data.tags == ["tip_adapter"]
    exec(card.text.split("```python\n")[1].split("```")[0], {})
    predicted = capsys.readouterr().out.splitlines()[0]
    assert predicted.strip("[]'") in names


def test_a_card_of_ones_own_is_kept(folder, server):
    (folder / "README.md").write_text("---\ntags: [mine]\n---\n# Mine\n")
    hub.push(folder, NAME)
    assert contents(hub.pull(NAME)) == contents(folder)


def test_the_card_of_a_class_specific_prompt(tmp_path):
    found = dataclasses.replace(PROMPT, per_class=("context",), backbone="/home/me/clip")
    found.save(tmp_path / "mine")
    record = json.loads((tmp_path / "mine" / "method.json").read_text())
    card = ModelCard(hub.model_card(record, NAME))
    assert "serves these classes alone" in card.text
    assert card.data.base_model is None
