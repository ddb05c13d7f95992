"""A CLIP's dimensions, by whatever its maker says them with: a config, or the weights alone."""

import math

from coop_jax.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.hugging_face_config import from_hugging_face
from coop_jax.clip.open_clip_config import from_open_clip
from coop_jax.clip.openai import HEAD_WIDTH
from coop_jax.clip.weights import Tensors
from coop_jax.errors import InputError

__all__ = ["from_hugging_face", "from_open_clip", "from_openai_tensors"]


def _count(names: set[str], prefix: str) -> int:
    depth = prefix.count(".")
    return len({name.split(".")[depth] for name in names if name.startswith(prefix)})


def _openai_transformer(tensors: Tensors, prefix: str, width: int) -> TransformerConfig:
    return TransformerConfig(
        width=width,
        layers=_count(tensors.names(), prefix),
        heads=max(width // HEAD_WIDTH, 1),
        mlp_width=tensors.shape(f"{prefix}0.mlp.c_fc.weight")[0],
        activation="quick_gelu",
    )


def from_openai_tensors(tensors: Tensors, where: str) -> CLIPConfig:
    """Return the dimensions of a checkpoint with OpenAI's names, as OpenAI's code builds it.

    That has QuickGELU and heads of width 64, which tensors do not show.

    Raises:
        InputError: a tensor that the dimensions are read from is missing.
    """
    names = tensors.names()
    try:
        if "visual.proj" in names:
            width, _, patch, _ = tensors.shape("visual.conv1.weight")
            grid = math.isqrt(tensors.shape("visual.positional_embedding")[0] - 1)
            blocks = _openai_transformer(tensors, "visual.transformer.resblocks.", width)
            vision = ViTConfig(grid * patch, patch, blocks)
        else:
            width = tensors.shape("visual.layer1.0.conv1.weight")[0]
            grid = math.isqrt(tensors.shape("visual.attnpool.positional_embedding")[0] - 1)
            blocks = tuple(_count(names, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
            vision = ResNetConfig(grid * 32, width, blocks, width * 32 // HEAD_WIDTH)
        vocabulary, width = tensors.shape("token_embedding.weight")
        text = TextConfig(
            vocabulary,
            tensors.shape("positional_embedding")[0],
            _openai_transformer(tensors, "transformer.resblocks.", width),
        )
        return CLIPConfig(tensors.shape("text_projection")[1], vision, text)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: expected a CLIP with OpenAI's tensor names, but {error} is missing or of"
            " another rank; use a complete, unmodified checkpoint or, of another maker, lay its"
            " open_clip_config.json beside it"
        ) from error
