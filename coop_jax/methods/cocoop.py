"""CoCoOp: a context conditioned on the image (Zhou et al., CVPR 2022)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from coop_jax.classes import spelled
from coop_jax.clip import CLIP, unit
from coop_jax.methods import conditioned
from coop_jax.methods.base import Images

NAME = "CoCoOp"
PAPER = "Zhou et al., CVPR 2022"


def default_config() -> dict[str, Any]:
    """Return CoCoOp's settings (coop_protocol section 9).

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
    """
    return {"n_ctx": 4, "context_init": "a photo of a"}


def recipe() -> dict[str, Any]:
    """Return what the paper trains with: 10 epochs of batches of one image."""
    return {"batch_size": 1, "epochs": 10}


def label(settings: Mapping[str, Any]) -> str:
    """Return what reports call CoCoOp with these settings."""
    phrase = spelled([settings["context_init"]])[0].strip()
    parts = [NAME, f"M = {settings['n_ctx']}", "end"]
    return ", ".join([*parts, *[f'from "{phrase}"'] * bool(phrase)])


class Method(conditioned.Conditioned):
    """Logits of prompts whose context `[M, width]` is shifted by each image's meta-net output."""

    def logits(self, clip: CLIP, texts: tuple[()], images: Images) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities of each image with its own prompts, float32."""
        return clip.scaled(self.cosines(clip, unit(images.features)))
