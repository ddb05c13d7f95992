"""A space of given features, for methods that need no tower."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip.model import scaled_cosines


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """The dimension of the space that images and texts share."""

    embedding: int


class FeatureSpace(nnx.Module):
    """A stand-in for a CLIP where features are given: a logit scale, no towers."""

    rounded_from = None

    def __init__(self, embedding: int, logit_scale: float = 100.0):
        self.config = FeatureConfig(embedding)
        self.dtype = jnp.float32
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(logit_scale)))

    def logits(
        self,
        image_features: Float[Array, "*batch embedding"],
        text_features: Float[Array, "classes embedding"],
    ) -> Float[Array, "*batch classes"]:
        """Return scaled cosine similarities in float32; the features need not be normalised."""
        return scaled_cosines(self.logit_scale[...], image_features, text_features)
