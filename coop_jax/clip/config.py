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
    """The text tower.

    Attributes:
        vocabulary_size: number of token embeddings.
        context_length: number of positions.
        transformer: the blocks.
        end_token: the id at whose first position the text feature is read; None means the largest
            id in the text, OpenAI's rule. Of no account where `pooling` is "last".
        causal: whether a token sees those before it alone; else it sees all, padding included.
        pooling: "end", or "last": the feature is read at the last position of the context, be it
            of padding.
        projection: "matrix"; "linear", with a bias; or "none".
    """

    vocabulary_size: int
    context_length: int
    transformer: TransformerConfig
    end_token: int | None = None
    causal: bool = True
    pooling: str = "end"
    projection: str = "matrix"

    @property
    def sees_padding(self) -> bool:
        """True where the padding up to the context's length changes the feature."""
        return not self.causal or self.pooling == "last"


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A vision transformer on square images of `image_size` pixels.

    Attributes:
        image_size: side of the images, in pixels.
        patch_size: side of the patches, in pixels.
        transformer: the blocks.
        pooling: "class", the class token; "average", of the patches; or "attention", a learned
            query's over the patches, followed by an MLP, in a tower without class token.
        initial_norm: whether the embeddings are normalised before the first block.
        pool_first: whether the last normalisation comes after the pooling, not before it.
        patch_bias: whether the patches' embedding has a bias.
        projection: whether a matrix follows.
    """

    image_size: int
    patch_size: int
    transformer: TransformerConfig
    pooling: str = "class"
    initial_norm: bool = True
    pool_first: bool = False
    patch_bias: bool = False
    projection: bool = True


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """CLIP's modified ResNet: `blocks` bottlenecks in each of four stages, attention pooling."""

    image_size: int
    width: int
    blocks: tuple[int, ...]
    heads: int


@dataclasses.dataclass(frozen=True)
class PixelConfig:
    """The pixels that a checkpoint was trained on, as the transforms make them.

    The test transform resizes, then crops the centre to the tower's image size; where the image is
    smaller it is padded.

    Attributes:
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        resize: the sides that the resize brings to those of `resize_to`: "shortest", "longest",
            the other one in proportion; "squash", both; or "none".
        resize_to: height and width in pixels; None means the tower's image size.
        interpolation: Pillow's filter: "bicubic", "bilinear", "nearest", "box", "hamming" or
            "lanczos".
        offsets: "rounded", half the surplus to the nearest integer, a half to the even one, and
            half of a lack rounded down; or "floor", half the surplus or, below zero, the lack
            rounded down. torchvision does the former, transformers the latter.
        fill: level of the padding, between 0 and 255.
    """

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize: str = "shortest"
    resize_to: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    offsets: str = "rounded"
    fill: int = 0


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers, the dimension `embedding` they share, and the pixels.

    `logit_bias` says whether a learned number is added to the scaled cosine similarities.
    """

    embedding: int
    vision: ViTConfig | ResNetConfig
    text: TextConfig
    pixels: PixelConfig = PixelConfig()
    logit_bias: bool = False
