"""What is known of a file of weights that no config lies beside, and what must be said."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from lone import OF_99, OPEN_CLIP, TOKENIZER, TRANSFORMERS, load, refusal_of, spoken
from makers import OF_OPENAI, feature_arrays, image_folder, openai_tensors, refusal
from safetensors.numpy import load_file, save_file

from coop_jax import Classifier
from coop_jax import clip as clip_package
from coop_jax.clip import openai, source


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ({}, "got no activation and no heads"),
        ({"activation": "gelu"}, "got no heads"),
        ({"heads": (2, 4)}, "got no activation"),
    ],
)
def test_nothing_is_guessed_of_a_lone_file(lone, words, missing):
    message = refusal_of(lone, **words)
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
    assert "(512, 64), got (3, 2)" in refusal_of(
        tmp_path / "clip.safetensors", activation="gelu", heads=(3, 2)
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"activation": "relu"}, "an activation of quick_gelu, gelu"),
        ({"heads": 12}, "heads as two numbers"),
        ({"heads": (12,)}, "heads as two numbers"),
        ({"heads": (12, 0)}, "heads as two numbers"),
        ({"heads": ("12", "8")}, "heads as two numbers"),
        ({"heads": (3, 1)}, "(64, 64), got (3, 1)"),
    ],
)
def test_words_that_no_clip_fits(lone, words, expected):
    assert expected in refusal_of(lone, **OF_OPENAI | words)
    if "64" not in expected:
        assert expected in refusal(clip_package.load, "tiny", **words)


def test_openai_s_own_files_are_known_by_their_digest(lone, monkeypatch):
    assert set(openai.PUBLISHED.values()) == set(source.BACKBONES)
    digest = hashlib.sha256(lone.read_bytes()).hexdigest()
    monkeypatch.setitem(openai.PUBLISHED, digest, "ViT-B/32")
    assert spoken(load(lone)) == [("quick_gelu", 1), ("quick_gelu", 1)]
    assert "its own activation" in refusal_of(lone, activation="gelu")


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
    assert "its own heads, (1, 2)" in refusal_of(lone, heads=(1, 1))
    for wrong in (json.dumps(dims | {"vision_layers": 2}), "{", "3"):
        save_file(tensors, lone, {"naming": "openai", "dims": wrong})
        assert "dims" in refusal_of(lone)
    save_file(tensors, lone, {"format": "pt"})
    assert "got no activation" in refusal_of(lone)


def test_the_config_beside_a_file_is_its_own(lone):
    (lone.parent / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    assert spoken(load(lone)) == [("gelu", 2), ("gelu", 4)]
    assert spoken(load(lone, activation="gelu", heads=(2, 4))) == [("gelu", 2), ("gelu", 4)]
    assert "its own activation, gelu" in refusal_of(lone, activation="quick_gelu")
    assert "its own heads, (2, 4)" in refusal_of(lone, heads=(1, 1))
    (lone.parent / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {}}))
    assert "model_cfg" in refusal_of(lone)


def test_a_file_of_transformers_is_read_with_its_config(tmp_path):
    folder = Path(shutil.copytree(TRANSFORMERS, tmp_path / "clip"))
    whole = load(folder, OF_99)
    file = load(folder / "model.safetensors", OF_99)
    assert file.config == whole.config
    np.testing.assert_array_equal(file.text.projection[...], whole.text.projection[...])
    heads = tuple(heads for _, heads in spoken(whole))
    load(folder, OF_99, activation="quick_gelu", heads=heads)
    assert "its own activation, quick_gelu" in refusal_of(folder, activation="gelu")
    (folder / "config.json").unlink()
    assert "config.json beside" in refusal_of(folder / "model.safetensors", **OF_OPENAI)


@pytest.fixture
def colours(tmp_path):
    """A folder of images of two classes."""
    return image_folder(tmp_path / "colours", ("red", "one"), 3)


@pytest.mark.heavy
def test_words_go_from_a_fit_to_all_that_uses_it(lone, colours, run, refused, tmp_path):
    clip = ("--clip", lone, "--tokenizer", TOKENIZER)
    quick = ("--epochs", 1, "--shots", 1, "--set", "n_ctx=2")
    assert "--activation gelu --heads IMAGE,TEXT" in refused(
        "fit", colours, tmp_path / "mine", *clip, *quick
    )
    words = ("--activation", "gelu", "--heads", "2,4")
    assert run("fit", colours, tmp_path / "mine", *clip, *quick, *words)[0] == 0
    training = json.loads((tmp_path / "mine" / "method.json").read_text())["training"]
    assert (training["activation"], training["heads"]) == ("gelu", [2, 4])
    assert run("evaluate", tmp_path / "mine", colours, *clip)[0] == 0
    line = refused("evaluate", tmp_path / "mine", colours, *clip, "--activation", "quick_gelu")
    assert "expected the CLIP that this was learned with" in line
    image = colours / "test" / "red" / "0.jpg"
    assert run("predict", tmp_path / "mine", image, *clip, *words)[0] == 0
    assert run("interpret", tmp_path / "mine", *clip)[0] == 0
    assert "such as 12,8" in refused("predict", tmp_path / "mine", image, *clip, "--heads", "2")
    assert "activation" in refused(
        "fit", colours, tmp_path / "new", *clip, "--activation=relu", "--heads=2,4"
    )
    loaded = Classifier.load(tmp_path / "mine", lone, tokenizer=TOKENIZER)
    assert spoken(loaded.clip_) == [("gelu", 2), ("gelu", 4)]
    loaded.save(tmp_path / "again")
    assert run("evaluate", tmp_path / "again", colours, *clip)[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"activation": "relu"}, "activation: expected one of quick_gelu, gelu"),
        ({"activation": None}, "activation: expected one of quick_gelu, gelu"),
        ({"heads": 12}, "heads: expected two numbers"),
        ({"heads": "12,8"}, "heads: expected two numbers"),
        ({"activation": "gelu"}, "its own activation, quick_gelu, got gelu"),
        ({"heads": (1, 1)}, "its own heads"),
    ],
)
def test_words_of_a_classifier_that_will_not_do(colours, words, expected):
    assert expected in refusal(Classifier("tiny", **words).fit, colours)


def test_words_that_no_clip_is_there_for(colours):
    arrays = feature_arrays()
    path = colours / "features.npz"
    np.savez(path, **arrays)
    assert "heads: expected none" in refusal(Classifier(heads=(1, 1)).fit, path)
    assert "activation: expected none" in refusal(Classifier(activation="gelu").fit, path)


@pytest.mark.heavy
def test_the_words_of_a_run_are_recorded(lone, colours, run, refused, tmp_path):
    def flags(workdir, *words):
        settings = {
            "dataset": colours,
            "clip.name": lone,
            "clip.tokenizer": TOKENIZER,
            "shots": "(1,)",
            "seeds": "(1,)",
            "epochs": 1,
            "method.n_ctx": 2,
            "loggers": "()",
        }
        said = [f"--config.{key}={value}" for key, value in settings.items()]
        return ("run", "--config=few_shot", f"--workdir={tmp_path / workdir}", *said, *words)

    assert "--config.clip.activation" in refused(*flags("none"))
    records = []
    for activation in ("gelu", "quick_gelu"):
        words = (f"--config.clip.activation={activation}", "--config.clip.heads=(2,4)")
        code, _, err = run(*flags(activation, *words))
        assert code == 0, err
        rows = (tmp_path / activation / "results.jsonl").read_text().splitlines()
        records.append(json.loads(rows[0]))
        config = json.loads((tmp_path / activation / "config.json").read_text())
        assert config["clip"]["activation"] == activation and config["clip"]["heads"] == [2, 4]
    for kind in ("weights", "config"):
        assert records[0]["hashes"][kind] != records[1]["hashes"][kind]
    assert "config.clip.heads: expected two numbers" in refused(
        *flags("none", "--config.clip.heads=(3,)")
    )


def test_pixels_beside_a_lone_file_are_its_own(lone):
    said = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 8, "crop_size": 8}
    (lone.parent / "preprocessor_config.json").write_text(json.dumps(said))
    made = load(lone, **OF_OPENAI).config.pixels
    assert made.mean == (0.5, 0.5, 0.5) and made.std == (0.25, 0.25, 0.25)
