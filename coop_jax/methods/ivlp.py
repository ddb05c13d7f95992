"""IVLP: prompts at several layers of both towers, each on its own (Rasheed et al., CVPR 2023)."""

from typing import Any

from coop_jax.methods import deep
from coop_jax.methods.base import Given

NAME = "IVLP"
PAPER = "Rasheed et al., CVPR 2023; as a baseline of MaPLe, Khattak et al., CVPR 2023"


def default_config() -> dict[str, Any]:
    """Return IVLP's settings, those of its official scripts.

    Settings:
        n_ctx: number of context vectors of the text tower.
        n_image_prompts: number of prompts of the vision tower.
        depth_text, depth_vision: layers of each tower that have prompts, from the first on.
        context_init: a phrase whose first `n_ctx` tokens start the context, if that are 4 or
            fewer; empty: normal with deviation 0.02, as all others.
    """
    return {
        "n_ctx": 4,
        "n_image_prompts": 4,
        "depth_text": 9,
        "depth_vision": 9,
        "context_init": "a photo of a",
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with."""
    return {"epochs": 5, "batch_size": 4, "optimizer": {"learning_rate": 0.0025}}


class Method(deep.TwoTowers):
    """Logits of prompts that are learned in both towers."""

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config, NAME)
