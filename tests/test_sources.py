"""Where a CLIP comes from: what is known of a file, what must be said, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from makers import OF_OPENAI, openai_tensors, refusal
from safetensors.numpy import load_file, save_file

from coop_jax import clip as clip_package
from coop_jax.clip import openai, source

TOKENIZER = source.EMBEDDED_FOLDER
TRANSFORMERS = Path(__file__).parent / "data" / "transformers_quick_gelu"
OPEN_CLIP = {"model_cfg": {"vision_cfg": {"head_width": 32}, "text_cfg": {"heads": 4}}}
"""Heads that are not OpenAI's, and its activation: gelu."""


def load(path, **words):
    return clip_package.load(str(path), tokenizer=TOKENIZER, **words)[0]


def refused(path, **words):
    return refusal(load, path, **words)


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


def test_the_heads_of_a_resnet_are_those_that_pool(tmp_path):
    tensors = load_file(reference.path("golden/clip_tiny_rn.safetensors"))
    save_file(tensors, tmp_path / "clip.safetensors")
    clip = load(tmp_path / "clip.safetensors", activation="gelu", heads=(4, 2))
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
    whole = load(folder)
    file = load(folder / "model.safetensors")
    assert file.config == whole.config
    np.testing.assert_array_equal(file.text.projection[...], whole.text.projection[...])
    load(folder, activation="quick_gelu", heads=tuple(heads for _, heads in spoken(whole)))
    assert "activation: expected quick_gelu" in refused(folder, activation="gelu")
    (folder / "config.json").unlink()
    assert "config.json beside" in refused(folder / "model.safetensors", **OF_OPENAI)
