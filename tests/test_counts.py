"""The count of the numbers that a method learns with ViT-B/16, as its page says."""

import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx

from coop_jax import clip, methods
from coop_jax.clip.config import CLIPConfig, TextConfig, TransformerConfig, ViTConfig
from coop_jax.methods import Learned

PAGES = Path(__file__).resolve().parents[1] / "docs" / "methods"
OTHERS = (
    *("ape", "ape_t", "clap", "cross_modal", "cross_modal_adapter", "cupl", "gda", "lfa"),
    *("linear_probe", "lp_plus_plus", "mocoop", "proker", "taskres", "tda", "tfup"),
    *("tip_adapter", "tip_adapter_f", "tip_x", "transclip", "waffleclip", "zero_shot"),
    *("zpe",),
)
"""Methods that take no steps, or learn as many numbers as images, classes or tokens make."""


@pytest.fixture(scope="module")
def vit_b16():
    """A random CLIP of ViT-B/16's width and depth; nothing that is learned has the MLP's width."""
    _, tokenizer = clip.load("tiny")
    text = TextConfig(tokenizer.size, 77, TransformerConfig(512, 12, 8, 8))
    config = CLIPConfig(512, ViTConfig(224, 16, TransformerConfig(768, 12, 12, 8)), text)
    return clip.CLIP(config, jnp.float32, rngs=nnx.Rngs(0)), tokenizer


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted({*methods.available()} - {*OTHERS}))
def test_count_of_what_is_learned(name, vit_b16):
    method = methods.create(name, *vit_b16, ("cat", "dog"))
    sizes = [value.size for _, value in nnx.to_flat_state(nnx.state(method, Learned))]
    section = re.split(r"^## ", (PAGES / f"{name}.md").read_text(), flags=re.MULTILINE)[1]
    assert section.startswith("What it learns")
    assert f"{sum(sizes):,} " in section
