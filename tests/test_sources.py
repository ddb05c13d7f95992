"""CLIPs from repositories of the hub, by id and by the tags of open_clip."""

import io
import json
import runpy
from pathlib import Path

import hub_server
import numpy as np
import pytest
from lone import OF_99, OPEN_CLIP, TOKENIZER, TRANSFORMERS, equal, load, spoken
from makers import openai_tensors, refusal
from safetensors.numpy import load_file, save

from coop_jax import clip as clip_package
from coop_jax.clip import pretrained, source
from coop_jax.clip.config import OPENAI_MEAN
from coop_jax.errors import InputError

ID = "somebody/clip"
HALVES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def files_of_open_clip(weights="open_clip_model.safetensors", **changes):
    """Files of a repository of open_clip, by name."""
    config = {**OPEN_CLIP, "preprocess_cfg": {"mean": [0.5] * 3}, **changes}
    return {
        weights: save(openai_tensors()),
        "open_clip_config.json": json.dumps(config).encode(),
        "config.json": b'{"architecture": "vit_tiny"}',
        "tokenizer.json": (TOKENIZER / "tokenizer.json").read_bytes(),
    }


def files_of_transformers(sharded=False):
    """Files of a repository of transformers, by name."""
    files = {path.name: path.read_bytes() for path in TRANSFORMERS.glob("*.json")}
    files |= {path.name: path.read_bytes() for path in OF_99.iterdir()}
    tensors = load_file(TRANSFORMERS / "model.safetensors")
    if not sharded:
        return {**files, "model.safetensors": save(tensors)}
    names = sorted(tensors)
    halves = dict(zip(HALVES, (names[::2], names[1::2]), strict=True))
    table = {name: file for file, chosen in halves.items() for name in chosen}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": table}).encode()
    return files | {file: save({n: tensors[n] for n in chosen}) for file, chosen in halves.items()}


@pytest.fixture
def publish(server):
    """A function that puts files into a new repository."""

    def publish(name, files):
        server.repositories[name] = hub_server.Repository(private=False)
        server.repositories[name].commit(files)

    return publish


def fetched(server):
    """The names of the files that were fetched since."""
    paths = {path.rpartition("/")[2] for verb, path in server.requests if "/resolve/" in path}
    server.requests.clear()
    return paths


@pytest.mark.parametrize("name", [ID, f"hf-hub:{ID}"])
def test_repositories_of_open_clip(server, publish, name, monkeypatch):
    files = files_of_open_clip()
    publish(ID, {**files, "open_clip_pytorch_model.bin": b"large", "README.md": b"long"})
    clip, _ = clip_package.load(name)
    assert spoken(clip) == [("gelu", 2), ("gelu", 4)]
    assert clip.config.pixels.mean == (0.5, 0.5, 0.5)
    assert {"README.md", "open_clip_pytorch_model.bin"}.isdisjoint(fetched(server))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    equal(clip_package.load(name)[0], clip)
    assert not fetched(server)


def test_repositories_of_both_layouts(server, publish):
    both = {**files_of_open_clip(), **files_of_transformers()}
    publish(ID, {name: file for name, file in both.items() if name not in source.TOKENIZER_FILES})
    equal(load(ID, OF_99), load(TRANSFORMERS, OF_99))
    assert "open_clip_model.safetensors" not in fetched(server)
    assert spoken(load(f"hf-hub:{ID}")) == [("gelu", 2), ("gelu", 4)]
    assert "model.safetensors" not in fetched(server)


def test_shards_of_a_repository(server, publish):
    publish(ID, {**files_of_transformers(sharded=True), "pytorch_model.bin": b"large"})
    equal(clip_package.load(ID)[0], load(TRANSFORMERS, OF_99))
    assert "pytorch_model.bin" not in fetched(server)


@pytest.mark.torch
@pytest.mark.parametrize("weights", ["open_clip_pytorch_model.bin", "pytorch_model.bin"])
def test_repositories_without_safetensors(publish, weights):
    import torch

    files = files_of_open_clip()
    del files["open_clip_model.safetensors"]
    content = io.BytesIO()
    state = {name: torch.from_numpy(np.array(t)) for name, t in openai_tensors().items()}
    torch.save(state, content)
    publish(ID, {**files, weights: content.getvalue()})
    assert spoken(clip_package.load(ID)[0]) == [("gelu", 2), ("gelu", 4)]


def test_repositories_of_something_else(publish):
    publish(ID, {"README.md": b"# Mine", "tokenizer.json": b"{}"})
    for name in (ID, f"hf-hub:{ID}"):
        message = refusal(clip_package.load, name)
        assert message.startswith(f"{ID}: expected") and "README.md" in message
    publish("somebody/else", files_of_transformers())
    message = refusal(clip_package.load, "hf-hub:somebody/else")
    assert "expected open_clip_config.json" in message and "name somebody/else" in message
    with pytest.raises(InputError, match="expected to fetch somebody/absent"):
        clip_package.load("somebody/absent")


TAG = "ViT-B-16/laion2b_s34b_b88k"
REPOSITORY = "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"


@pytest.mark.parametrize("name", [TAG, "ViT-B/16/LAION2B-s34B-b88K"])
def test_tags_of_open_clip(publish, name):
    publish(REPOSITORY, {**files_of_open_clip(), **files_of_transformers()})
    clip, _ = clip_package.load(name)
    assert spoken(clip) == [("gelu", 2), ("gelu", 4)]
    assert clip.config.pixels.mean == OPENAI_MEAN
    assert source.repository(name) == REPOSITORY
    assert source.repository("ViT-B/16") == "timm/vit_base_patch16_clip_224.openai"
    assert source.repository(f"hf-hub:{ID}") == source.repository(ID) == ID


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_tag_and_its_repository_agree_about_the_activation(publish, quick_gelu):
    config = {"model_cfg": {**OPEN_CLIP["model_cfg"], "quick_gelu": quick_gelu}}
    publish("apple/DFN5B-CLIP-ViT-H-14", files_of_open_clip(**config))
    for name in ("ViT-H-14/dfn5b", "ViT-H-14-quickgelu/dfn5b"):
        if quick_gelu:
            assert spoken(clip_package.load(name)[0])[0] == ("quick_gelu", 2)
        else:
            message = refusal(clip_package.load, name)
            assert "quick_gelu True" in message and "hf-hub:apple/DFN5B" in message


def test_a_tag_s_pixels_are_those_of_open_clip():
    assert pretrained.find("ViT-H-14/dfn5b").pixels["resize_mode"] == "squash"
    assert pretrained.find(TAG).pixels["resize_mode"] == "shortest"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-16", "got none; name e.g. ViT-B-16/openai"),
        ("ViT-B-16/laion5b", "laion2b_s34b_b88k"),
        ("ViT-B-16-quickgelu/laion2b_s34b_b88k", "openai, dfn2b"),
        ("ViT-g-14-quickgelu", "of which it has none"),
    ],
)
def test_models_of_open_clip_without_such_a_tag(name, expected):
    assert expected in refusal(clip_package.load, name)


@pytest.mark.makers
def test_the_tags_are_those_of_open_clip():
    table = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "write_open_clip_tags.py"))
    assert json.loads(pretrained.TABLE.read_text("utf-8")) == table["table"]()
    from open_clip import pretrained as theirs

    for model, tag in theirs.list_pretrained():
        said = theirs.get_pretrained_cfg(model, tag)
        ours = pretrained.find(f"{model}/{tag}")
        assert said["hf_hub"].startswith(f"{ours.repository}/")
        assert ours.quick_gelu == said.get("quick_gelu", False)
        assert json.loads(json.dumps({key: said[key] for key in ours.pixels})) == ours.pixels
