"""CLIP-Adapter: image features mixed with what a learned bottleneck makes of them (IJCV 2024)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Fixed, Given, Images, Learned

NAME = "CLIP-Adapter"
PAPER = "Gao et al., IJCV 2024"

LIMITS = {"ratio": (0, 1), "reduction": (0, 10**4)}


def default_config() -> dict[str, Any]:
    """Return CLIP-Adapter's settings, those of the official code.

    Settings:
        templates: hand-crafted prompts with {} for the class name; the dataset's own if empty.
        ratio: share of the bottleneck's output in the mixed feature.
        reduction: how many times narrower the bottleneck is than the features.
    """
    return {"templates": (), "ratio": 0.2, "reduction": 4}


class Method(base.Method):
    """Cosines of hand-crafted text features and image features with a residual bottleneck.

    The image feature is not normalised before the mixture. It serves any class names. The official
    code says nothing of the optimizer, hence CoOp's, whose code it runs in. The paper's adapter of
    text features is in no code and not here.

    Attributes:
        bank: text features `[classes, embedding]`.
        down, up: kernels `[embedding, hidden]` and `[hidden, embedding]`, without biases.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        size = given.clip.config.embedding
        if not 1 <= config["reduction"] <= size:
            raise InputError(
                f"reduction: expected from 1 to {size}, the length of a feature, got"
                f" {config['reduction']}; correct it"
            )
        hidden = size // config["reduction"]
        self.bank = Fixed(text.hand_crafted_features(given, *config["templates"]))
        self.down = Learned(layers.linear_init(given.rngs.params(), (size, hidden), size))
        self.up = Learned(layers.linear_init(given.rngs.params(), (hidden, size), hidden))
        self.ratio = config["ratio"]

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of hand-crafted prompts."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosines with the mixed features."""
        features = jnp.asarray(images.features, jnp.float32)
        mixed = layers.adapted(features, self.down[...], self.up[...], self.ratio)
        return clip.logits(mixed, texts)
