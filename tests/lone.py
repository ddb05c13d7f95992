"""CLIPs of small files, loaded or refused."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from makers import OF_OPENAI, openai_config, refusal

from coop_jax import clip as clip_package
from coop_jax.clip import source
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


def refusal_of(path, **words):
    return refusal(load, path, **words)


def load_refused(path):
    with pytest.raises(InputError) as caught:
        load(path, **OF_OPENAI)
    return str(caught.value)


def spoken(clip):
    """What tensors do not show: activation and heads of both towers."""
    towers = clip.config.vision.transformer, clip.config.text.transformer
    return [(tower.activation, tower.heads) for tower in towers]


def wrapped(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def equal(clip, other):
    assert clip.config == other.config
    got, expected = nnx.state(clip), nnx.state(other)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
