"""Files of weights: safetensors and what PyTorch saves, whole, in shards, behind prefixes."""

import argparse
import collections
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from lone import (
    OF_99,
    OPEN_CLIP,
    TOKENIZER,
    TRANSFORMERS,
    equal,
    load,
    load_refused,
    refusal_of,
    wrapped,
)
from makers import OF_OPENAI, openai_tensors
from safetensors.numpy import load_file, save_file

from coop_jax import clip as clip_package


@pytest.mark.parametrize("prefix", ["module.", "model.", "clip_model.", "model.clip.module."])
def test_names_in_front_of_a_clip_s_own_are_taken_off(lone, prefix):
    expected = load(lone, **OF_OPENAI)
    others = {"optimizer.step": np.zeros(3, np.float32), "head.weight": np.zeros(3, np.float32)}
    save_file(wrapped(openai_tensors(), prefix) | others, lone)
    equal(load(lone, **OF_OPENAI), expected)
    save_file(wrapped(openai_tensors() | others, prefix), lone)
    assert "head.weight: unknown; optimizer.step: unknown" in load_refused(lone)


def test_several_clips_in_one_file_are_refused(lone):
    save_file(wrapped(openai_tensors(), "model.") | wrapped(openai_tensors(), "clip_model."), lone)
    assert "one under each of clip_model., model." in refusal_of(lone, **OF_OPENAI)


def test_a_prefix_in_files_of_transformers(tmp_path):
    folder = Path(shutil.copytree(TRANSFORMERS, tmp_path / "clip"))
    expected = load(folder, OF_99)
    save_file(
        wrapped(load_file(folder / "model.safetensors"), "clip."), folder / "model.safetensors"
    )
    equal(load(folder, OF_99), expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "got an empty file"),
        (b"PK not an archive", "begin with b'PK not"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        (b"<!DOCTYPE html>", "fetch it again"),
    ],
)
@pytest.mark.parametrize("name", ["clip.safetensors", "clip.pt", "clip.ckpt"])
def test_files_of_no_weights(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in refusal_of(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_numbers_that_a_clip_has_not(lone, dtype):
    tensors = openai_tensors()
    tensors["text_projection"] = tensors["text_projection"].astype(dtype)
    save_file(tensors, lone)
    assert "text_projection of" in refusal_of(lone, **OF_OPENAI)


class Options:
    """An object of the user's own code in a checkpoint."""


def checkpoints(state):
    """Checkpoints as training codes write them, with the same weights, by a name."""
    import torch

    wrapped_state = {"module." + name: tensor for name, tensor in state.items()}
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}}
    options = argparse.Namespace(lr=1e-3, model="ViT-B-32", log=Path("log"))
    plain = {"epoch": 3, "name": "run", "state_dict": wrapped_state, "optimizer": moments}
    best = {"best": np.float64(71.5), "accuracy": np.zeros(3), "args": options}
    lightning = {"model.clip." + name: tensor for name, tensor in state.items()}
    return {
        "open_clip": plain,
        "numbers": {"model": state, **best},
        "model_state_dict": {"model_state_dict": state, "epoch": 1},
        "nested": {"model": {"state_dict": state}},
        "lightning": {"state_dict": lightning, "hyper_parameters": {}, "callbacks": {}},
        "ordered": collections.OrderedDict(state),
    }


NAMES = ["open_clip", "numbers", "model_state_dict", "nested", "lightning", "ordered"]


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("kind", NAMES)
def test_checkpoints_of_training(lone, kind, suffix):
    import torch

    expected = load(lone, **OF_OPENAI)
    state = {name: torch.from_numpy(np.array(t)) for name, t in openai_tensors().items()}
    path = lone.parent / f"epoch_3{suffix}"
    torch.save(checkpoints(state)[kind], path, _use_new_zipfile_serialization=kind != "numbers")
    equal(load(path, **OF_OPENAI), expected)
    assert "got no activation and no heads" in refusal_of(path)


@pytest.mark.torch
def test_checkpoints_that_hold_something_else(tmp_path):
    import torch

    path = tmp_path / "clip.pt"
    state = {name: torch.from_numpy(np.array(t)) for name, t in openai_tensors().items()}
    torch.save({"model": state, "state_dict": state}, path)
    assert "got state_dict and model" in refusal_of(path)
    torch.save({"state_dict": state, "options": Options()}, path)
    assert "test_files.Options', which was not run" in refusal_of(path)
    torch.save({"state_dict": state, "model": {"width": 64}, "epoch": 3}, path)
    load(path, **OF_OPENAI)
    torch.save({"epoch": 3}, path)
    assert "is missing" in load_refused(path)
    torch.save(torch.zeros(3), path)
    assert "is missing" in load_refused(path)
    state["text_projection"] = state["text_projection"].double()
    torch.save(state, path)
    assert "text_projection of float64" in refusal_of(path, **OF_OPENAI)


def pytorch_folder(folder, sharded):
    """A folder of transformers with the weights of another one as PyTorch has them."""
    import torch

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"one.bin": names[::2], "two.bin": names[1::2]} if sharded else {"": names}
    for file, chosen in halves.items():
        state = {name: torch.from_numpy(tensors[name]) for name in chosen}
        torch.save(state, folder / (file or "pytorch_model.bin"))
    if sharded:
        table = {name: file for file, chosen in halves.items() for name in chosen}
        index = {"metadata": {}, "weight_map": table}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("sharded", [False, True])
def test_folders_of_pytorch_s_weights(tmp_path, sharded):
    expected = load(TRANSFORMERS, OF_99)
    folder = Path(shutil.copytree(TRANSFORMERS, tmp_path / "clip"))
    equal(load(pytorch_folder(folder, sharded), OF_99), expected)


@pytest.mark.torch
def test_open_clip_s_folders_of_pytorch_s_weights(lone):
    import torch

    state = {name: torch.from_numpy(np.array(t)) for name, t in openai_tensors().items()}
    torch.save(state, lone.parent / "open_clip_pytorch_model.bin")
    (lone.parent / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    expected = load(lone)
    equal(load(lone.parent), expected)


def test_torch_files_without_torch(lone, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = lone.parent / "clip.bin"
    path.write_bytes(b"PK\x03\x04")
    assert "coop_jax[torch]" in refusal_of(path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": ""}}',
    ],
)
def test_an_index_of_something_else(tmp_path, content):
    folder = Path(shutil.copytree(TRANSFORMERS, tmp_path / "clip"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert "index.json: expected" in refusal_of(folder)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_longclip_s_two_tables_of_positions_are_one(lone, prefix):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 30, 64)).astype(np.float32)
    tables = {"positional_embedding": first, "positional_embedding_res": second}
    save_file(wrapped(openai_tensors() | tables, prefix), lone)
    clip = load(lone, **OF_OPENAI)
    assert clip.config.text.context_length == 30
    # As LongCLIP's code adds them to the tokens.
    early = (np.arange(30) < 20)[:, None].astype(np.float32)
    np.testing.assert_array_equal(
        clip.text.positional_embedding[...], first * early + second * (1 - early)
    )
    tables["positional_embedding_res"] = second[:29]
    save_file(openai_tensors() | tables, lone)
    assert "positional_embedding_res: unknown" in load_refused(lone)


@pytest.mark.torch
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_in_half_precision(tmp_path, dtype, suffix):
    import torch
    from safetensors.torch import save_file as save_torch

    state = {
        name: torch.from_numpy(np.array(tensor)).to(getattr(torch, dtype))
        for name, tensor in openai_tensors().items()
    }
    path = tmp_path / f"clip.{suffix}"
    (save_torch if suffix == "safetensors" else torch.save)(state, path)
    clip = load(path, **OF_OPENAI)
    expected = state["text_projection"].float().numpy()
    np.testing.assert_array_equal(clip.text.projection[...], expected)
    assert clip.text.projection[...].dtype == np.float32


@pytest.mark.makers
@pytest.mark.parametrize(("activation", "heads"), [("gelu", (2, 4)), ("quick_gelu", (5, 2))])
def test_a_checkpoint_of_open_clip_s_training_has_its_features(tmp_path, activation, heads):
    import open_clip
    import torch

    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 8, "width": 160, "head_width": 160 // heads[0]}
    text = {"vocab_size": 929, "width": 64, "heads": heads[1], "layers": 3}
    quick = activation == "quick_gelu"
    theirs = open_clip.model.CLIP(32, {**vision, "layers": 3}, text, quick_gelu=quick).eval()
    images = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.AdamW(theirs.parameters())
    theirs.encode_image(images).sum().backward()
    optimizer.step()
    state = wrapped(theirs.state_dict(), "module.")
    saved = {"epoch": 3, "name": "mine", "state_dict": state, "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "epoch_3.pt")
    ours, tokenizer = clip_package.load(
        str(tmp_path / "epoch_3.pt"), tokenizer=TOKENIZER, activation=activation, heads=heads
    )
    tokens = tokenizer(["a circle", "three stars"])
    with torch.no_grad():
        of_images, of_texts = theirs.encode_image(images), theirs.encode_text(torch.tensor(tokens))
    got = ours.encode_image(images.permute(0, 2, 3, 1).numpy())
    scale = of_images.abs().max().item()
    np.testing.assert_allclose(got, of_images.numpy(), rtol=0, atol=3e-6 * scale)
    scale = of_texts.abs().max().item()
    np.testing.assert_allclose(
        ours.encode_text(tokens), of_texts.numpy(), rtol=0, atol=3e-6 * scale
    )
