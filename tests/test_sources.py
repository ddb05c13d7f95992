"""Where a CLIP comes from: what is known of a file, what must be said, and what is refused."""

import argparse
import collections
import hashlib
import io
import json
import runpy
import shutil
import sys
from pathlib import Path

import hub_server
import jax
import numpy as np
import pytest
import reference
from flax import nnx
from makers import OF_OPENAI, openai_config, openai_tensors, refusal
from safetensors.numpy import load_file, save, save_file

from coop_jax import clip as clip_package
from coop_jax.clip import openai, pretrained, source
from coop_jax.clip.config import OPENAI_MEAN
from coop_jax.errors import InputError

TOKENIZER = source.EMBEDDED_FOLDER
OF_99 = Path(__file__).parent / "data" / "tokenizer_of_99"
TRANSFORMERS = Path(__file__).parent / "data" / "transformers_quick_gelu"
OPEN_CLIP = {"model_cfg": openai_config()}
OPEN_CLIP["model_cfg"]["vision_cfg"]["head_width"] = 32
OPEN_CLIP["model_cfg"]["text_cfg"]["heads"] = 4
"""Heads that are not OpenAI's, and its activation: gelu."""


def load(path, tokenizer=TOKENIZER, **words):
    return clip_package.load(str(path), tokenizer=tokenizer, **words)[0]


def refused(path, **words):
    return refusal(load, path, **words)


def load_refused(path):
    with pytest.raises(InputError) as caught:
        load(path, **OF_OPENAI)
    return str(caught.value)


def spoken(clip):
    """What tensors do not show: activation and heads of both towers."""
    towers = clip.config.vision.transformer, clip.config.text.transformer
    return [(tower.activation, tower.heads) for tower in towers]


@pytest.fixture
def lone(tmp_path):
    """A file of weights with OpenAI's names that nothing lies beside."""
    save_file(openai_tensors(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ({}, "got no activation and no heads"),
        ({"activation": "gelu"}, "got no heads"),
        ({"heads": (2, 4)}, "got no activation"),
    ],
)
def test_nothing_is_guessed_of_a_lone_file(lone, words, missing):
    message = refused(lone, **words)
    assert missing in message
    for how in ("heads=(IMAGE, TEXT)", "--activation", "--config.clip.heads"):
        assert how in message


def test_what_is_said_of_a_lone_file_counts(lone):
    assert spoken(load(lone, **OF_OPENAI)) == [("quick_gelu", 1), ("quick_gelu", 1)]
    assert spoken(load(lone, activation="gelu", heads=(2, 4))) == [("gelu", 2), ("gelu", 4)]
    assert spoken(load(lone, activation="gelu", heads=[2, 4])) == [("gelu", 2), ("gelu", 4)]


def test_the_heads_of_a_resnet_are_those_that_pool(tmp_path, openai_tokenizer):
    tensors = load_file(reference.path("golden/clip_tiny_rn.safetensors"))
    save_file(tensors, tmp_path / "clip.safetensors")
    file = tmp_path / "clip.safetensors"
    clip = load(file, openai_tokenizer, activation="gelu", heads=(4, 2))
    assert (clip.config.vision.heads, clip.config.text.transformer.heads) == (4, 2)
    assert "(512, 64), got (3, 2)" in refused(
        tmp_path / "clip.safetensors", activation="gelu", heads=(3, 2)
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"activation": "relu"}, "activation: expected one of quick_gelu, gelu"),
        ({"heads": 12}, "heads: expected two numbers"),
        ({"heads": (12,)}, "heads: expected two numbers"),
        ({"heads": (12, 0)}, "heads: expected two numbers"),
        ({"heads": ("12", "8")}, "heads: expected two numbers"),
        ({"heads": (3, 1)}, "(64, 64), got (3, 1)"),
    ],
)
def test_words_that_no_clip_fits(lone, words, expected):
    assert expected in refused(lone, **OF_OPENAI | words)
    if "64" not in expected:
        assert expected in refusal(clip_package.load, "tiny", **words)


def test_openai_s_own_files_are_known_by_their_digest(lone, monkeypatch):
    assert set(openai.PUBLISHED.values()) == set(source.BACKBONES)
    digest = hashlib.sha256(lone.read_bytes()).hexdigest()
    monkeypatch.setitem(openai.PUBLISHED, digest, "ViT-B/32")
    assert spoken(load(lone)) == [("quick_gelu", 1), ("quick_gelu", 1)]
    assert "which" in refused(lone, activation="gelu")


@pytest.mark.makers
def test_the_digests_are_those_in_the_addresses_that_open_clip_has():
    from open_clip import pretrained

    addresses = [
        pretrained.get_pretrained_url(model, "openai")
        for model in pretrained.list_pretrained_models_by_tag("openai")
    ]
    published = {url.split("/")[-2]: source.OPENAI_FILES[url.split("/")[-1]] for url in addresses}
    assert published == openai.PUBLISHED


def test_a_header_says_that_a_file_is_of_openai_s_code(lone):
    tensors = openai_tensors()
    dims = {
        "embed_dim": 16,
        "image_resolution": 8,
        "vision_layers": 1,
        "vision_width": 64,
        "vision_patch_size": 4,
        "context_length": 9,
        "vocab_size": 929,
        "transformer_width": 64,
        "transformer_heads": 2,
        "transformer_layers": 2,
    }
    save_file(tensors, lone, {"naming": "openai"})
    assert spoken(load(lone)) == [("quick_gelu", 1), ("quick_gelu", 1)]
    save_file(tensors, lone, {"naming": "openai", "dims": json.dumps(dims)})
    assert spoken(load(lone)) == [("quick_gelu", 1), ("quick_gelu", 2)]
    assert "(1, 2), which" in refused(lone, heads=(1, 1))
    for wrong in (json.dumps(dims | {"vision_layers": 2}), "{", "3"):
        save_file(tensors, lone, {"naming": "openai", "dims": wrong})
        assert "dims" in refused(lone)
    save_file(tensors, lone, {"format": "pt"})
    assert "got no activation" in refused(lone)


def test_the_config_beside_a_file_is_its_own(lone):
    (lone.parent / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    assert spoken(load(lone)) == [("gelu", 2), ("gelu", 4)]
    assert spoken(load(lone, activation="gelu", heads=(2, 4))) == [("gelu", 2), ("gelu", 4)]
    assert "activation: expected gelu" in refused(lone, activation="quick_gelu")
    assert "heads: expected (2, 4)" in refused(lone, heads=(1, 1))
    (lone.parent / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {}}))
    assert "model_cfg" in refused(lone)


def test_a_file_of_transformers_is_read_with_its_config(tmp_path):
    folder = Path(shutil.copytree(TRANSFORMERS, tmp_path / "clip"))
    whole = load(folder, OF_99)
    file = load(folder / "model.safetensors", OF_99)
    assert file.config == whole.config
    np.testing.assert_array_equal(file.text.projection[...], whole.text.projection[...])
    heads = tuple(heads for _, heads in spoken(whole))
    load(folder, OF_99, activation="quick_gelu", heads=heads)
    assert "activation: expected quick_gelu" in refused(folder, activation="gelu")
    (folder / "config.json").unlink()
    assert "config.json beside" in refused(folder / "model.safetensors", **OF_OPENAI)


def wrapped(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def equal(clip, other):
    assert clip.config == other.config
    got, expected = nnx.state(clip), nnx.state(other)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


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
    assert "one under each of clip_model., model." in refused(lone, **OF_OPENAI)


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
    assert expected in refused(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_numbers_that_a_clip_has_not(lone, dtype):
    tensors = openai_tensors()
    tensors["text_projection"] = tensors["text_projection"].astype(dtype)
    save_file(tensors, lone)
    assert "text_projection of" in refused(lone, **OF_OPENAI)


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
    assert "got no activation and no heads" in refused(path)


@pytest.mark.torch
def test_checkpoints_that_hold_something_else(tmp_path):
    import torch

    path = tmp_path / "clip.pt"
    state = {name: torch.from_numpy(np.array(t)) for name, t in openai_tensors().items()}
    torch.save({"model": state, "state_dict": state}, path)
    assert "got state_dict and model" in refused(path)
    torch.save({"state_dict": state, "options": Options()}, path)
    assert "test_sources.Options', which was not run" in refused(path)
    torch.save({"epoch": 3}, path)
    assert "is missing" in load_refused(path)
    torch.save(torch.zeros(3), path)
    assert "is missing" in load_refused(path)
    state["text_projection"] = state["text_projection"].double()
    torch.save(state, path)
    assert "text_projection of float64" in refused(path, **OF_OPENAI)


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
    assert "coop_jax[torch]" in refused(path)


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
    assert "index.json: expected" in refused(folder)


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
    with pytest.raises(InputError, match="could not fetch somebody/absent"):
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
