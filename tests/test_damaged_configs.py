"""Folders whose `open_clip_config.json` is damaged end in one line, and at once."""

import json
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
    with pytest.raises(InputError, match=r"tensors do not fit .*; and \d+ more\)") as error:
        clip.load(str(tmp_path), tokenizer=source.EMBEDDED_FOLDER)
    assert len(str(error.value)) < 900 + len(str(tmp_path))
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"model_cfg": {"a": []}}', "3"])
def test_a_damaged_file_is_named(text, tmp_path):
    save_file(openai_tensors(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(InputError, match=r"open_clip_config\.json: expected"):
        clip.load(str(tmp_path), tokenizer=source.EMBEDDED_FOLDER)
