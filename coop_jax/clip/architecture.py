"""A CLIP's dimensions, read off its checkpoint: tensor shapes or a Hugging Face config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from coop_jax.clip.config import (
    OPENAI_MEAN,
    OPENAI_STD,
    CLIPConfig,
    PixelConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.openai import HEAD_WIDTH, with_words
from coop_jax.clip.transformer import ACTIVATIONS
from coop_jax.clip.weights import Tensors
from coop_jax.errors import InputError

# What transformers' CLIPTextConfig and CLIPVisionConfig assume where a config.json is silent.
# Asking transformers itself would import torch where it is installed.
TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


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
            " another rank; use a complete, unmodified checkpoint"
        ) from error


def from_open_clip(tensors: Tensors, stated: Mapping[str, Any], where: str) -> CLIPConfig:
    """Return the dimensions of a checkpoint with an `open_clip_config.json`, as `stated`.

    Raises:
        InputError: it says nothing of the model, or a tensor that the dimensions are read from is
            missing.
    """
    if "model_cfg" not in stated:
        raise InputError(
            f"{where}: expected model_cfg in the open_clip_config.json beside it, got"
            f" {', '.join(stated)}; fetch it again"
        )
    model, pixels = stated["model_cfg"], stated.get("preprocess_cfg", {})
    config = from_openai_tensors(tensors, where)
    vision = config.vision
    width = vision.width * 32 if isinstance(vision, ResNetConfig) else vision.transformer.width
    heads = (
        max(width // model.get("vision_cfg", {}).get("head_width", HEAD_WIDTH), 1),
        model.get("text_cfg", {}).get("heads", config.text.transformer.heads),
    )
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return dataclasses.replace(
        with_words(config, activation, heads, where),
        pixels=PixelConfig(
            tuple(pixels.get("mean", OPENAI_MEAN)), tuple(pixels.get("std", OPENAI_STD))
        ),
    )


def from_hugging_face(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> CLIPConfig:
    """The dimensions in a transformers `config.json`; what it leaves out has transformers' default.

    Raises:
        InputError: the folder holds another kind of model or an activation we do not have.
    """
    if config.get("model_type") != "clip":
        raise InputError(
            f"{where}: expected a config.json with model_type 'clip', got"
            f" {config.get('model_type')!r}; name a CLIP folder or one of the backbone names"
        )
    text = {**TEXT_DEFAULTS, **config.get("text_config", {})}
    vision = {**VISION_DEFAULTS, **config.get("vision_config", {})}

    def transformer(part: Mapping[str, Any]) -> TransformerConfig:
        if part["hidden_act"] not in ACTIVATIONS:
            raise InputError(
                f"{where}: expected hidden_act to be one of {', '.join(ACTIVATIONS)},"
                f" got {part['hidden_act']!r}; such a CLIP is not supported"
            )
        return TransformerConfig(
            width=part["hidden_size"],
            layers=part["num_hidden_layers"],
            heads=part["num_attention_heads"],
            mlp_width=part["intermediate_size"],
            activation=part["hidden_act"],
            epsilon=part["layer_norm_eps"],
        )

    # Old configs say 2 by mistake; transformers then reads the feature at the largest id.
    end_token = text["eos_token_id"]
    return CLIPConfig(
        embedding=config.get("projection_dim", 512),
        vision=ViTConfig(vision["image_size"], vision["patch_size"], transformer(vision)),
        text=TextConfig(
            text["vocab_size"],
            text["max_position_embeddings"],
            transformer(text),
            end_token=None if end_token == 2 else end_token,
        ),
        pixels=PixelConfig(
            tuple(preprocessor.get("image_mean", OPENAI_MEAN)),
            tuple(preprocessor.get("image_std", OPENAI_STD)),
        ),
    )
