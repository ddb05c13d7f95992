"""CLIP: an image tower and a text tower into one space."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from coop_jax.clip.config import CLIPConfig, ViTConfig
from coop_jax.clip.preprocess import normalize
from coop_jax.clip.text import TextTower
from coop_jax.clip.transformer import precision
from coop_jax.clip.vision import ModifiedResNet, VisionTransformer


class CLIP(nnx.Module):
    """Both towers, the logit scale and, if any, the logit bias (Radford et al., 2021).

    Matrices are stored and multiplied in `dtype`; normalisations, embeddings, the logit scale and
    the logits stay in float32 (coop_protocol section 5).

    Attributes:
        rounded_from: where the weights were rounded when they were loaded, `fingerprint.digest` of
            them as they then were and as they are in the file.
    """

    rounded_from: tuple[str, str] | None = None

    def __init__(self, config: CLIPConfig, dtype: DTypeLike = jnp.float32, *, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        vision = config.vision
        if isinstance(vision, ViTConfig):
            self.vision = VisionTransformer(vision, config.embedding, dtype, rngs=rngs)
        else:
            self.vision = ModifiedResNet(vision, config.embedding, dtype, rngs=rngs)
        self.text = TextTower(config.text, config.embedding, dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))
        if config.logit_bias:
            self.logit_bias = nnx.Param(jnp.float32(0))

    def encode_image(
        self, images: Shaped[Array, "batch size size 3"]
    ) -> Float[Array, "batch embedding"]:
        """Return unnormalised features of images.

        Args:
            images: uint8 pixels, or what `preprocess.normalize` has made of them.
        """
        return self.vision(self.normalized(images))

    def normalized(
        self, images: Shaped[Array, "batch size size 3"]
    ) -> Float[Array, "batch size size 3"]:
        """Return uint8 pixels normalised, and floating ones, which are taken for it, as they are.

        Raises:
            InputError: the images are neither.
        """
        if jnp.issubdtype(images.dtype, jnp.floating):
            return images
        return normalize(images, self.config.pixels.mean, self.config.pixels.std)

    def encode_text(self, tokens: Int[Array, "texts length"]) -> Float[Array, "texts embedding"]:
        """Return unnormalised features of tokenised texts."""
        return self.text(tokens)

    def logits(
        self,
        image_features: Float[Array, "*batch embedding"],
        text_features: Float[Array, "classes embedding"],
    ) -> Float[Array, "*batch classes"]:
        """Return scaled cosine similarities in float32; the features need not be normalised."""
        return self.scaled(cosines(image_features, text_features))

    def scaled(self, similarities: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return logits of cosine similarities: times the scale and, if any, plus the bias."""
        logits = jnp.exp(self.logit_scale[...]) * similarities
        return logits + self.logit_bias[...] if self.config.logit_bias else logits


def cosines(
    image_features: Float[Array, "*batch embedding"],
    text_features: Float[Array, "classes embedding"],
) -> Float[Array, "*batch classes"]:
    """Return cosine similarities, in float32; the features need not be normalised."""
    exact = precision(jnp.float32)
    return jnp.einsum("...e,ce->...c", unit(image_features), unit(text_features), precision=exact)


def unit(features: Float[Array, "*batch embedding"]) -> Float[Array, "*batch embedding"]:
    """Return the features in float32, at length one."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)
