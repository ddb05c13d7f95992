"""IVLP: prompts at several layers of both towers, each on its own (Rasheed et al., CVPR 2023)."""

from typing import Any

from coop_jax.methods import deep
from coop_jax.methods.base import Given

NAME = "IVLP"
PAPER = "Rasheed et al., CVPR 2023; as a baseline of MaPLe, Khattak et al., CVPR 2023"

LIMITS = deep.LIMITS


def default_config() -> dict[str, Any]:
    """Return IVLP's settings, which are those of `deep.default_config`."""
    return deep.default_config()


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with."""
    return {"epochs": 5, "batch_size": 4, "optimizer": {"learning_rate": 0.0025}}


class Method(deep.TwoTowers):
    """Logits of prompts that are learned in both towers."""

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config, NAME)
