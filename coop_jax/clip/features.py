"""A space of given features, for methods that need no tower."""

import dataclasses
from typing import Any, NoReturn

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip.model import cosines
from coop_jax.clip.tokenizer import Tokenizer
from coop_jax.errors import InputError


def without_tower(_: Any = None) -> NoReturn:
    """Refuse what needs a tower of a CLIP.

    Raises:
        InputError: always.
    """
    raise InputError(
        "expected a CLIP, whose towers are needed here, got features of images and texts; choose a"
        " method that learns from these alone, or start from images"
    )


def needed(tokenizer: Tokenizer | None) -> Tokenizer:
    """Return a tokenizer that a method cannot do without.

    Raises:
        InputError: there is none, since features are given.
    """
    return without_tower() if tokenizer is None else tokenizer


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """The dimension of the space that images and texts share."""

    embedding: int

    text = vision = property(without_tower)


class FeatureSpace(nnx.Module):
    """A stand-in for a CLIP where features are given: a logit scale, no towers."""

    rounded_from = None

    def __init__(self, embedding: int, logit_scale: float = 100.0):
        self.config = FeatureConfig(embedding)
        self.dtype = jnp.float32
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(logit_scale)))

    text = vision = encode_text = encode_image = normalized = property(without_tower)

    def logits(
        self,
        image_features: Float[Array, "*batch embedding"],
        text_features: Float[Array, "classes embedding"],
    ) -> Float[Array, "*batch classes"]:
        """Return scaled cosine similarities in float32; the features need not be normalised."""
        return self.scaled(cosines(image_features, text_features))

    def scaled(self, similarities: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return logits of cosine similarities: times the scale."""
        return jnp.exp(self.logit_scale[...]) * similarities
