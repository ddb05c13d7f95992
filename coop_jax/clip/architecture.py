"""A CLIP's dimensions, read off its checkpoint: tensor shapes or a Hugging Face config."""

import math
from collections.abc import Mapping
from typing import Any

from coop_jax.clip import pixels
from coop_jax.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.transformer import ACTIVATIONS
from coop_jax.clip.weights import Tensors
from coop_jax.errors import InputError

HEAD_WIDTH = 64
"""Every head of OpenAI's models has this width; the number of heads is stored nowhere."""

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


def _openai_transformer(
    tensors: Tensors, prefix: str, width: int, heads: int, activation: str
) -> TransformerConfig:
    mlp = f"{prefix}0.mlp.c_fc.weight"
    return TransformerConfig(
        width=width,
        layers=_count(tensors.names(), prefix),
        heads=heads,
        mlp_width=tensors.shape(mlp)[0],
        activation=activation,
    )


def from_openai_tensors(tensors: Tensors, stated: Mapping[str, Any], where: str) -> CLIPConfig:
    """The dimensions of a checkpoint with OpenAI's names.

    `stated` is the `open_clip_config.json` beside it, or {}: it says what shapes cannot. Without
    it the model is taken for one of OpenAI's, with heads of width 64 and QuickGELU.

    Raises:
        InputError: a tensor that the dimensions are read from is missing.
    """
    names = tensors.names()
    model = stated.get("model_cfg", {})
    openai = "model_cfg" not in stated or model.get("quick_gelu", False)
    activation = "quick_gelu" if openai else "gelu"
    head_width = model.get("vision_cfg", {}).get("head_width", HEAD_WIDTH)
    made = pixels.from_open_clip(stated.get("preprocess_cfg"), where)
    try:
        if "visual.proj" in names:
            width, _, patch, _ = tensors.shape("visual.conv1.weight")
            grid = math.isqrt(tensors.shape("visual.positional_embedding")[0] - 1)
            transformer = _openai_transformer(
                tensors,
                "visual.transformer.resblocks.",
                width,
                max(width // head_width, 1),
                activation,
            )
            vision = ViTConfig(grid * patch, patch, transformer)
        else:
            width = tensors.shape("visual.layer1.0.conv1.weight")[0]
            grid = math.isqrt(tensors.shape("visual.attnpool.positional_embedding")[0] - 1)
            blocks = tuple(_count(names, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
            vision = ResNetConfig(grid * 32, width, blocks, width * 32 // head_width)
        vocabulary, text_width = tensors.shape("token_embedding.weight")
        text = TextConfig(
            vocabulary,
            tensors.shape("positional_embedding")[0],
            _openai_transformer(
                tensors,
                "transformer.resblocks.",
                text_width,
                model.get("text_cfg", {}).get("heads", max(text_width // HEAD_WIDTH, 1)),
                activation,
            ),
        )
        return CLIPConfig(
            tensors.shape("text_projection")[1],
            vision,
            text,
            made,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: expected a CLIP with OpenAI's tensor names, but {error} is missing or of"
            " another rank; use a complete, unmodified checkpoint"
        ) from error


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
        pixels=pixels.from_hugging_face(preprocessor, vision["image_size"], where),
    )
