"""A CLIP's dimensions, read off its checkpoint: tensor shapes or a Hugging Face config."""

import math
from collections.abc import Mapping
from typing import Any

from coop_jax.clip.config import (
    OPENAI_MEAN,
    OPENAI_STD,
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


def _count(names: set[str], prefix: str) -> int:
    depth = prefix.count(".")
    return len({name.split(".")[depth] for name in names if name.startswith(prefix)})


def _openai_transformer(
    tensors: Tensors, prefix: str, width: int, activation: str
) -> TransformerConfig:
    mlp = f"{prefix}0.mlp.c_fc.weight"
    return TransformerConfig(
        width=width,
        layers=_count(tensors.names(), prefix),
        heads=max(width // HEAD_WIDTH, 1),
        mlp_width=tensors.shape(mlp)[0],
        activation=activation,
    )


def from_openai_tensors(tensors: Tensors, activation: str, where: str) -> CLIPConfig:
    """The dimensions of a checkpoint with OpenAI's names.

    Raises:
        InputError: a tensor that the dimensions are read from is missing.
    """
    names = tensors.names()
    try:
        if "visual.proj" in names:
            width, _, patch, _ = tensors.shape("visual.conv1.weight")
            grid = math.isqrt(tensors.shape("visual.positional_embedding")[0] - 1)
            transformer = _openai_transformer(
                tensors, "visual.transformer.resblocks.", width, activation
            )
            vision = ViTConfig(grid * patch, patch, transformer)
        else:
            width = tensors.shape("visual.layer1.0.conv1.weight")[0]
            grid = math.isqrt(tensors.shape("visual.attnpool.positional_embedding")[0] - 1)
            blocks = tuple(_count(names, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
            vision = ResNetConfig(grid * 32, width, blocks, width * 32 // HEAD_WIDTH)
        vocabulary, text_width = tensors.shape("token_embedding.weight")
        text = TextConfig(
            vocabulary,
            tensors.shape("positional_embedding")[0],
            _openai_transformer(tensors, "transformer.resblocks.", text_width, activation),
        )
        return CLIPConfig(tensors.shape("text_projection")[1], vision, text)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{where}: expected a CLIP with OpenAI's tensor names, but {error} is missing or of"
            " another rank; use a complete, unmodified checkpoint"
        ) from error


def from_hugging_face(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> CLIPConfig:
    """The dimensions in a transformers `config.json`, defaults filled in by transformers.

    Raises:
        InputError: the folder holds another kind of model or an activation we do not have.
    """
    from transformers import CLIPConfig as HuggingFaceConfig

    if config.get("model_type") != "clip":
        raise InputError(
            f"{where}: expected a config.json with model_type 'clip', got"
            f" {config.get('model_type')!r}; name a CLIP folder or one of the backbone names"
        )
    full = HuggingFaceConfig.from_dict(dict(config))

    def transformer(part: Any) -> TransformerConfig:
        if part.hidden_act not in ACTIVATIONS:
            raise InputError(
                f"{where}: expected hidden_act to be one of {sorted(ACTIVATIONS)},"
                f" got {part.hidden_act!r}"
            )
        return TransformerConfig(
            width=part.hidden_size,
            layers=part.num_hidden_layers,
            heads=part.num_attention_heads,
            mlp_width=part.intermediate_size,
            activation=part.hidden_act,
            epsilon=part.layer_norm_eps,
        )

    vision, text = full.vision_config, full.text_config
    legacy = text.eos_token_id == 2  # transformers: written by mistake in old configs
    return CLIPConfig(
        embedding=full.projection_dim,
        vision=ViTConfig(vision.image_size, vision.patch_size, transformer(vision)),
        text=TextConfig(
            text.vocab_size,
            text.max_position_embeddings,
            transformer(text),
            end_token=None if legacy else text.eos_token_id,
        ),
        mean=tuple(preprocessor.get("image_mean", OPENAI_MEAN)),
        std=tuple(preprocessor.get("image_std", OPENAI_STD)),
    )
