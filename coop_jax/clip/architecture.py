"""A CLIP's dimensions, by whatever its maker says them with: a config, or the weights alone."""

import math

from coop_jax.clip import tables
from coop_jax.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.hugging_face_config import from_hugging_face
from coop_jax.clip.open_clip_config import from_open_clip
from coop_jax.clip.weights import Tensors
from coop_jax.errors import InputError

__all__ = ["from_hugging_face", "from_open_clip", "from_openai_tensors"]

HEAD_WIDTH = 64
"""Every head of OpenAI's models has this width; the number of heads is stored nowhere."""


def _count(names: set[str], prefix: str) -> int:
    depth = prefix.count(".")
    return len({name.split(".")[depth] for name in names if name.startswith(prefix)})


def _transformer(
    tensors: Tensors, prefix: str, width: int, heads: int | None, activation: str, where: str
) -> TransformerConfig:
    heads = width // HEAD_WIDTH if heads is None else heads
    tables.check_heads(width, heads, f"heads of {prefix}", where)
    return TransformerConfig(
        width=width,
        layers=_count(tensors.names(), prefix),
        heads=heads,
        mlp_width=tensors.shape(f"{prefix}0.mlp.c_fc.weight")[0],
        activation=activation,
    )


def from_openai_tensors(
    tensors: Tensors,
    where: str,
    *,
    activation: str = "quick_gelu",
    heads: int | tuple[int, int] | None = None,
) -> CLIPConfig:
    """Read the dimensions off the shapes of weights with OpenAI's names, which have no config.

    Args:
        tensors: the weights.
        where: the file, for errors.
        activation: of both towers, which no shape says; OpenAI's by default.
        heads: number of heads of the image tower, or of the image tower and the text tower; by
            default as many of width 64 as fit, as in OpenAI's models.

    Raises:
        InputError: a tensor that the dimensions are read from is missing, or the heads do not
            divide the width.
    """
    names = tensors.names()
    of_images, of_texts = heads if isinstance(heads, tuple) else (heads, None)
    try:
        if "visual.proj" in names:
            width, _, patch, _ = tensors.shape("visual.conv1.weight")
            grid = math.isqrt(tensors.shape("visual.positional_embedding")[0] - 1)
            prefix = "visual.transformer.resblocks."
            blocks = _transformer(tensors, prefix, width, of_images, activation, where)
            vision = ViTConfig(grid * patch, patch, blocks)
        else:
            width = tensors.shape("visual.layer1.0.conv1.weight")[0]
            grid = math.isqrt(tensors.shape("visual.attnpool.positional_embedding")[0] - 1)
            blocks = tuple(_count(names, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
            heads = width * 32 // HEAD_WIDTH if of_images is None else of_images
            tables.check_heads(width * 32, heads, "heads of visual.attnpool", where)
            vision = ResNetConfig(grid * 32, width, blocks, heads)
        vocabulary, width = tensors.shape("token_embedding.weight")
        prefix = "transformer.resblocks."
        text = TextConfig(
            vocabulary,
            tensors.shape("positional_embedding")[0],
            _transformer(tensors, prefix, width, of_texts, activation, where),
        )
        return CLIPConfig(tensors.shape("text_projection")[1], vision, text)
    except (KeyError, IndexError) as error:
        raise _not_openai(error, where) from error
    except InputError:
        raise
    except ValueError as error:
        raise _not_openai(error, where) from error


def _not_openai(error: Exception, where: str) -> InputError:
    return InputError(
        f"{where}: expected a CLIP with OpenAI's tensor names, but {error} is missing or of"
        " another rank; use a complete, unmodified checkpoint"
    )
