"""Loading weights: names, namings, dimensions, and what is said when a file is wrong."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from flax import nnx
from makers import (
    OF_OPENAI,
    make_snapshot,
    openai_config,
    openai_tensors,
    write_hub_cache,
)
from safetensors.numpy import load_file, save_file

from coop_jax import clip as clip_package
from coop_jax.clip import source
from coop_jax.clip.config import ResNetConfig, ViTConfig
from coop_jax.errors import InputError

FOLDER = Path(__file__).parent / "data" / "transformers_quick_gelu"
TOKENIZER = FOLDER.parent / "tokenizer_of_99"


@pytest.fixture
def folder(tmp_path):
    """A copy of a small Hugging Face CLIP folder."""
    return Path(shutil.copytree(FOLDER, tmp_path / "clip"))


def load(path, tokenizer=TOKENIZER, **words):
    return clip_package.load(str(path), tokenizer=tokenizer, **words)[0]


def test_dimensions_come_from_the_files(openai_tokenizer):
    clip, _ = clip_package.load(
        str(reference.path("golden/clip_tiny_rn.safetensors")), tokenizer=openai_tokenizer
    )
    assert clip.config.vision == ResNetConfig(64, 16, (1, 2, 1, 1), 8)
    clip = load(FOLDER)
    assert isinstance(clip.config.vision, ViTConfig)
    assert (clip.config.vision.image_size, clip.config.vision.patch_size) == (20, 5)
    assert clip.config.text.transformer.heads == 4
    assert clip.config.embedding == 16


@pytest.mark.parametrize("name", source.BACKBONES)
def test_backbone_names_load_from_the_hub_cache(name, tmp_path, monkeypatch):
    """What huggingface_hub has fetched before loads without a network, under the paper's names."""
    tensors = write_hub_cache(tmp_path, name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clip, _ = clip_package.load(name)
    np.testing.assert_array_equal(clip.text.projection[...], tensors["text_projection"])
    assert clip.config.text.transformer.activation == "quick_gelu"


@pytest.mark.parametrize("kind", ["quick_gelu", "gelu_sharded"])
def test_hub_ids_load_from_the_hub_cache(kind, tmp_path, monkeypatch):
    snapshot = make_snapshot(tmp_path, "somebody/tiny-clip")
    local = FOLDER.parent / f"transformers_{kind}"
    for file in (*local.glob("*.json"), *local.glob("*.safetensors")):
        shutil.copy(file, snapshot)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetched, _ = clip_package.load("somebody/tiny-clip")
    got, expected = nnx.state(fetched), nnx.state(load(local))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_repository_that_cannot_be_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"expected to fetch ViT/B-16 .*tiny, RN50, RN101"):
        clip_package.load("ViT/B-16")


@pytest.mark.parametrize(
    ("stated", "expected"), [({"quick_gelu": True}, "quick_gelu"), ({}, "gelu")]
)
def test_open_clip_says_which_activation(tmp_path, stated, expected):
    save_file(openai_tensors(), tmp_path / "open_clip_model.safetensors")
    config = {"model_cfg": openai_config() | stated}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert load(tmp_path, source.EMBEDDED_FOLDER).config.text.transformer.activation == expected


@pytest.mark.torch
@pytest.mark.parametrize("scripted", [False, True])
def test_official_archives_equal_safetensors(tmp_path, scripted):
    import torch

    tensors = openai_tensors()
    save_file(tensors, tmp_path / "clip.safetensors")
    state = {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}
    if scripted:
        root = torch.nn.Module()
        for name, tensor in state.items():
            *parents, leaf = name.split(".")
            module = root
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, torch.nn.Module())
                module = getattr(module, parent)
            module.register_parameter(leaf, torch.nn.Parameter(tensor))
        torch.jit.script(root).save(tmp_path / "clip.pt")
    else:
        torch.save(state, tmp_path / "clip.pt")
    words = {"tokenizer": source.EMBEDDED_FOLDER, **OF_OPENAI}
    expected = nnx.to_pure_dict(nnx.state(load(tmp_path / "clip.safetensors", **words)))
    got = nnx.to_pure_dict(nnx.state(load(tmp_path / "clip.pt", **words)))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.torch
@pytest.mark.parametrize("content", [b"", b"PK not an archive"])
def test_damaged_archives(tmp_path, content):
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"clip\.pt: expected a TorchScript archive"):
        load(tmp_path / "clip.pt")


def test_all_mismatches_are_listed_at_once(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = np.zeros((2, 2), np.float32)
    tensors["visual_projection.weight"] = np.zeros((16, 23), np.float32)
    del tensors["text_model.final_layer_norm.bias"]
    tensors["intruder"] = np.zeros(1, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message and "got 4 that do not fit" in message
    assert "visual_projection.weight: expected [16, 24], got [16, 23]" in message
    assert "logit_scale: expected [], got [2, 2]" in message
    assert "text_model.final_layer_norm.bias: missing" in message
    assert "intruder: unknown" in message


def test_openai_names_with_a_missing_tensor(tmp_path):
    tensors = openai_tensors()
    del tensors["text_projection"]
    save_file(tensors, tmp_path / "clip.safetensors")
    with pytest.raises(InputError, match="text_projection"):
        load(tmp_path / "clip.safetensors")


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors: .*truncated"):
        load(folder)


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: expected JSON"):
        load(folder)


def test_another_kind_of_model(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "altclip"}))
    with pytest.raises(InputError, match="model_type 'clip' or 'siglip', got 'altclip'"):
        load(folder)


def test_missing_shard(tmp_path):
    sharded = shutil.copytree(FOLDER.parent / "transformers_gelu_sharded", tmp_path / "clip")
    (Path(sharded) / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"got none of the name .model-00002-of-00004\.safetensors"
    ):
        load(sharded)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"tiny, RN50, RN101, .*ViT-L/14@336px.* got 'RN5'"):
        clip_package.load("RN5")


def test_missing_tokenizer(folder):
    with pytest.raises(InputError, match="expected a tokenizer for"):
        clip_package.load(str(folder))


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="an empty folder"):
        load(tmp_path)
