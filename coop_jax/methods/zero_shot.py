"""Zero-shot CLIP: hand-crafted prompts, one or an ensemble (coop_protocol section 8)."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer, unit
from coop_jax.errors import InputError
from coop_jax.methods import prompts
from coop_jax.methods.base import Derived, readable


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
        shards: int = 1,
    ):
        del rngs
        templates = tuple(config["templates"])
        faulty = [template for template in templates if template.count("{}") != 1]
        if not templates or faulty:
            raise InputError(
                f"templates: expected at least one, each with one {{}}, got {faulty or templates}"
            )
        tokens = tokenizer(
            [
                template.replace("{}", readable(name))
                for template in templates
                for name in class_names
            ]
        )
        self.templates = len(templates)
        self.start = Derived(clip.text.embed(tokens[0, :1]))
        self.packed = prompts.Packed(
            tokens[:, 1:], prompts.end_positions(tokens, tokenizer.end), shards
        )

    def settings(self) -> dict[str, Any]:
        """Nothing but the prompts, which the record has beside the method."""
        return {}

    def encode_classes(self, clip: CLIP) -> Float[Array, "classes embedding"]:
        """Text features: each template's normalised, averaged over templates."""
        packed = self.packed
        features = unit(clip.text.encode(self.start[...], packed.tokens[...], packed.packing))
        return features.reshape(self.templates, -1, features.shape[-1]).mean(axis=0)

    def logits(
        self,
        clip: CLIP,
        classes: Float[Array, "classes embedding"],
        image_features: Float[Array, "batch embedding"],
    ) -> Float[Array, "batch classes"]:
        """Scaled cosine similarities, float32."""
        return clip.logits(image_features, classes)
