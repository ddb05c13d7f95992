"""Zero-shot CLIP: hand-crafted prompts, one or an ensemble (coop_protocol section 8)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.methods import base, text
from coop_jax.methods.base import Given, Stage

NAME = "zero-shot CLIP"
PAPER = "Radford et al., ICML 2021"


def default_config() -> dict[str, Any]:
    """Return zero-shot CLIP's settings.

    Settings:
        templates: hand-crafted prompts with {} for the class name; several make an ensemble (empty:
            the dataset's own).
    """
    return {"templates": ()}


class Method(base.Method):
    """Logits of hand-crafted prompts; nothing is learned."""

    def __init__(self, given: Given, config: dict[str, Any]):
        self.templates = tuple(config["templates"]) or (given.template,)
        self.prompts = text.HandCrafted(given, self.templates)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return no stage."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the prompts, which may have been the dataset's."""
        return {"templates": self.templates}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features: each template's normalised, averaged over templates."""
        return unit(self.prompts.encode(clip)).mean(axis=0)
