"""TaskRes: text features plus a learned residual of each class (Yu et al., CVPR 2023)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.methods import base, text
from coop_jax.methods.base import Fixed, Given, Learned

NAME = "TaskRes"
PAPER = "Yu et al., CVPR 2023"


def default_config() -> dict[str, Any]:
    """Return TaskRes's settings, those of the official code (which has scale 1 on Flowers).

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        scale: what the residual is multiplied by.
    """
    return {"templates": (), "scale": 0.5}


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: Adam, in batches of 256 images.

    They have 100 epochs at 1 to 4 shots and 200 above: as CoOp, but at one shot. On ImageNet their
    rate is 2e-4.
    """
    return {"batch_size": 256, "optimizer": {"name": "adam"}}


class Method(base.Method):
    """Cosines with text features to which a multiple of a learned residual is added.

    The text features are the mean over templates of unnormalised ones, of length 10 or so: that
    says how far a step goes. Classes that were not trained on have no residual and are refused.

    Attributes:
        bank: unnormalised text features `[classes, embedding]`.
        residual: `[classes, embedding]`, zero before training.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        features = text.hand_crafted_features(given, *config["templates"], normalized=False)
        self.bank = Fixed(features)
        self.residual = Learned(jnp.zeros(features.shape, jnp.float32), per_class=True)
        self.scale = config["scale"]

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return the moved text features, unnormalised."""
        return self.bank[...] + self.scale * self.residual[...]
