"""TFUP: zero-shot CLIP with a cache of unlabelled images, without training (Long et al.)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.methods import unlabeled
from coop_jax.methods.base import Data, Images, Stage

NAME = "TFUP"
PAPER = "Long et al., arXiv 2404.16339"

LIMITS = unlabeled.LIMITS


def default_config() -> dict[str, Any]:
    """Return the settings, those of `unlabeled.default_config`."""
    return unlabeled.default_config()


class Method(unlabeled.Cached):
    """Zero-shot logits plus what a cache of unlabelled images says.

    The cache holds, of each class, images that hand-crafted texts take for it and that are like
    each other. The labelled training images are not used.
    """

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage, without steps."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Fill the cache.

        Raises:
            InputError: there are no unlabelled images.
        """
        self.build(NAME, data)
        return data

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return zero-shot logits plus alpha times what the cache says."""
        return self.with_cache(clip, jnp.asarray(images.features), texts)
