"""FLOPs and bytes by formula, from shapes alone; a multiplication and an addition are two FLOPs.

Counted is what the computation needs: no padding, nothing that is computed twice to save memory.
With frozen weights the backward pass of a linear layer is one product (its input's gradient), that
of each of attention's two products is two.
"""

import dataclasses

import numpy as np

from coop_jax.clip.config import CLIPConfig, TransformerConfig, ViTConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs and bytes; `share` of a machine's limit is at best 1."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The shortest time that such a machine can take, moving and computing at once."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def linear_flops(config: TransformerConfig) -> float:
    """Of one token in the linear layers of a whole transformer, forward."""
    return 2 * config.layers * (4 * config.width**2 + 2 * config.width * config.mlp_width)


def attention_flops(config: TransformerConfig, pairs: float) -> float:
    """Of so many pairs of a query and a key, in all layers, forward."""
    return 4 * config.layers * config.width * pairs


def kept_values(config: TransformerConfig) -> int:
    """Numbers per token that a backward pass needs of all layers.

    Two inputs of layer normalisations, queries, keys and values, attention's output, and the
    MLP's hidden layer.
    """
    return config.layers * (6 * config.width + config.mlp_width)


def text_weights(config: TransformerConfig) -> int:
    """Numbers in the matrices of a transformer."""
    return config.layers * (4 * config.width**2 + 2 * config.width * config.mlp_width)


def text_side(
    config: CLIPConfig,
    tokens: float,
    pairs: float,
    texts: int,
    images: int,
    item: int,
    *,
    training: bool,
) -> Work:
    """Text features of prompts and the logits, forward and, in training, backward.

    Args:
        config: of the CLIP.
        tokens: that pass through the transformer.
        pairs: of a query and a key.
        texts: text features.
        images: image features that each text feature is compared with.
        item: bytes of a number.
        training: whether there is a backward pass, to what the prompts are made of.
    """
    text = config.text.transformer
    linear = tokens * linear_flops(text)
    linear += 2 * texts * config.embedding * (text.width + images)
    mixing = attention_flops(text, pairs)
    moved = item * text_weights(text)
    if not training:
        return Work(linear + mixing, moved)
    kept = item * tokens * kept_values(text)
    return Work(2 * linear + 3 * mixing, 2 * moved + 2 * kept)


def reference_text(
    config: CLIPConfig, classes: int, batch: int, item: int, *, conditional: bool, training: bool
) -> Work:
    """The official computation: all 77 tokens of every class, once per image if conditional."""
    length = config.text.context_length
    texts = classes * (batch if conditional else 1)
    images = 1 if conditional else batch
    return text_side(
        config, texts * length, texts * length**2, texts, images, item, training=training
    )


def our_text(
    config: CLIPConfig,
    lengths: np.ndarray,
    n_ctx: int,
    batch: int,
    item: int,
    *,
    conditional: bool,
    training: bool,
) -> Work:
    """Ours: the shared prefix once, then the rest of every class's prompt, `lengths` tokens."""
    prefix, passes = 1 + n_ctx, batch if conditional else 1
    tokens = passes * float(prefix + lengths.sum())
    pairs = passes * float(prefix**2 + (lengths * (prefix + lengths)).sum())
    texts, images = passes * len(lengths), 1 if conditional else batch
    return text_side(config, tokens, pairs, texts, images, item, training=training)


def image_side(config: CLIPConfig, images: int, item: int) -> Work:
    """A vision transformer on so many images, forward.

    Raises:
        ValueError: the image tower is not a vision transformer.
    """
    vision = config.vision
    if not isinstance(vision, ViTConfig):
        raise ValueError("expected a vision transformer; the others' work is not counted")
    tower, patches = vision.transformer, (vision.image_size // vision.patch_size) ** 2
    patch_values = 3 * vision.patch_size**2
    flops = (patches + 1) * linear_flops(tower) + attention_flops(tower, (patches + 1) ** 2)
    flops += 2 * patches * patch_values * tower.width + 2 * tower.width * config.embedding
    weights = text_weights(tower) + patch_values * tower.width
    return Work(images * flops, item * weights + images * patches * patch_values)
