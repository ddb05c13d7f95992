"""Folders whose JSON files are damaged end in one line, and at once."""

import json
import shutil
import time

import pytest
from makers import openai_config, openai_tensors
from safetensors.numpy import save_file

from coop_jax import clip
from coop_jax.clip import source
from coop_jax.errors import InputError

HUGE = [
    ("vision_cfg", {"width": 32_768, "layers": 512, "image_size": 4096, "patch_size": 16}),
    ("vision_cfg", {"width": 32_768, "mlp_ratio": 64, "layers": [48] * 4, "image_size": 4096}),
    ("text_cfg", {"width": 32_768, "layers": 512, "vocab_size": 8_000_000, "mlp_ratio": 64}),
]


@pytest.mark.parametrize(("tower", "huge"), HUGE)
def test_dimensions_that_the_weights_have_not_are_refused_at_once(tower, huge, tmp_path):
    save_file(openai_tensors(), tmp_path / "open_clip_model.safetensors")
    model = openai_config()
    model[tower] |= huge
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    start = time.monotonic()
    with pytest.raises(InputError, match=r"got \d+ that do not fit .*; and \d+ more\)") as error:
        clip.load(str(tmp_path), tokenizer=source.EMBEDDED_FOLDER)
    assert len(str(error.value)) < 900 + len(str(tmp_path))
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"model_cfg": {"a": []}}', "3"])
def test_a_damaged_file_is_named(text, tmp_path):
    save_file(openai_tensors(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(InputError, match=r"open_clip_config\.json: expected"):
        clip.load(str(tmp_path), tokenizer=source.EMBEDDED_FOLDER)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"a":' * 100_000, "3", "\xff"])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ],
)
def test_a_damaged_file_of_transformers_is_named(name, text, tmp_path):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"/{name}: expected"):
        clip.load(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [("rescale_factor", 10**400), ("image_mean", [10**400] * 3), ("size", 10**400)],
)
def test_a_number_without_end_in_the_pixels_is_refused(key, value, tmp_path):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(stated | {key: value}))
    with pytest.raises(InputError, match=rf"/preprocessor_config\.json: {key}: expected"):
        clip.load(str(folder))


def test_pixels_that_nothing_says_are_pointed_out(tmp_path, caplog):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    expected = clip.load(str(folder))[0].config.pixels
    assert not caplog.text
    (folder / "preprocessor_config.json").unlink()
    got = clip.load(str(folder))[0].config.pixels
    assert "no preprocessor_config.json beside it" in caplog.text and got == expected
