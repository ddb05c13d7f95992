"""The dimensions of a CLIP, as read from its checkpoint."""

import dataclasses

import jax.numpy as jnp

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Types that a CLIP may compute in, by name."""

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A stack of pre-norm residual attention blocks."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The causal text tower.

    `end_token` is the id at whose first position the text feature is read; None means the largest
    id in the text, OpenAI's rule.
    """

    vocabulary_size: int
    context_length: int
    transformer: TransformerConfig
    end_token: int | None = None


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A vision transformer on square images of `image_size` pixels."""

    image_size: int
    patch_size: int
    transformer: TransformerConfig


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: `blocks` bottlenecks in each of four stages, attention pooling."""

    image_size: int
    width: int
    blocks: tuple[int, ...]
    heads: int


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers, the dimension `embedding` they share, and the pixel statistics."""

    embedding: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
