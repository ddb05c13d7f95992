"""docs/clips.md: its table of open_clip's configurations, and how what is refused is said."""

import re
from pathlib import Path

import pytest
from open_clip_table import RESULTS, markdown
from test_configs import CLIP, SIGLIP_HF, change, hugging_face, open_clip, openai_config

from coop_jax.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs" / "clips.md").read_text()

REFUSED = [
    (open_clip, openai_config(), "vision_cfg.timm_model_name", "convnext_base"),
    (open_clip, openai_config(), "text_cfg.hf_model_name", "roberta-base"),
    (open_clip, openai_config(), "multimodal_cfg", {"width": 8}),
    (open_clip, openai_config(), "vision_cfg.ls_init_value", 1e-4),
    (open_clip, openai_config(), "vision_cfg.attentional_pool", True),
    (hugging_face, CLIP, "model_type", "altclip"),
    (hugging_face, SIGLIP_HF, "model_type", "siglip2"),
    (hugging_face, CLIP, "quantization_config", {"bits": 4}),
    (open_clip, openai_config(), "text_cfg.surprise", 1),
]


def section(name):
    return PAGE.split(f"## {name}\n")[1].split("\n## ")[0]


def test_the_page_has_the_table_of_the_tests():
    assert markdown() in section("open_clip's configurations")
    assert len(RESULTS) == 144
    assert set(re.findall(r"`([^`]*)`", markdown())) == set(RESULTS)


def test_the_page_says_how_every_refusal_begins():
    begins = re.findall(r"\| `(expected [^`]*)…` \|", section("What is refused"))
    assert len(begins) == len(REFUSED)
    for begin, (read, config, path, value) in zip(begins, REFUSED, strict=True):
        with pytest.raises(InputError) as error:
            read(change(config, path, value))
        assert str(error.value).startswith(f"config: {begin}")
