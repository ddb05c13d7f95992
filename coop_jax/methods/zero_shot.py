"""Zero-shot CLIP: hand-crafted prompts, one or an ensemble (coop_protocol section 8)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer, unit
from coop_jax.errors import InputError
from coop_jax.methods import prompts
from coop_jax.methods.base import Derived


def default_config() -> dict[str, Any]:
    """templates: hand-crafted prompts with {} for the class name; several make an ensemble."""
    return {"templates": ("a photo of a {}.",)}


class Method(nnx.Module):
    """Logits of hand-crafted prompts; nothing is learned."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        config: dict[str, Any],
        *,
        rngs: nnx.Rngs,
    ):
        del clip, rngs
        templates = tuple(config["templates"])
        faulty = [template for template in templates if template.count("{}") != 1]
        if not templates or faulty:
            raise InputError(
                f"templates: expected at least one, each with one {{}}, got {faulty or templates}"
            )
        tokens = np.stack(
            [
                tokenizer([template.replace("{}", prompts.readable(name)) for name in class_names])
                for template in templates
            ]
        )
        end = prompts.end_positions(tokens, tokenizer.end)
        self.tokens = Derived(jnp.asarray(tokens[..., : int(end.max()) + 1]))

    def settings(self) -> dict[str, Any]:
        """Nothing but the prompts, which the record has beside the method."""
        return {}

    def encode_classes(self, clip: CLIP) -> Float[Array, "classes embedding"]:
        """Text features: each template's normalised, averaged over templates."""
        features = jax.lax.map(lambda tokens: unit(clip.encode_text(tokens)), self.tokens[...])
        return features.mean(axis=0)

    def logits(
        self,
        clip: CLIP,
        classes: Float[Array, "classes embedding"],
        image_features: Float[Array, "batch embedding"],
    ) -> Float[Array, "batch classes"]:
        """Scaled cosine similarities, float32."""
        return clip.logits(image_features, classes)
