"""CoOp: context vectors learned around the class name (Zhou et al., IJCV 2022)."""

from collections.abc import Mapping
from typing import Any

from coop_jax.classes import spelled
from coop_jax.methods import text
from coop_jax.methods.base import Given

NAME = "CoOp"
PAPER = "Zhou et al., IJCV 2022"


def default_config() -> dict[str, Any]:
    """Return CoOp's settings (paper section 3.2; coop_protocol section 5).

    Settings:
        n_ctx: number of context vectors M.
        class_token_position: "end", "middle" or "front".
        class_specific: one context per class (CSC) instead of one for all.
        context_init: a phrase whose token embeddings start the context; then its words are counted
            instead of `n_ctx`, and the context is shared. Empty: normal with deviation 0.02.
    """
    return {
        "n_ctx": 16,
        "class_token_position": "end",
        "class_specific": False,
        "context_init": "",
    }


def label(settings: Mapping[str, Any]) -> str:
    """Return what reports call CoOp with these settings."""
    parts = [NAME, f"M = {settings['n_ctx']}", settings["class_token_position"]]
    parts += ["class-specific"] * settings["class_specific"]
    phrase = spelled([settings["context_init"]])[0].strip()
    return ", ".join([*parts, *[f'from "{phrase}"'] * bool(phrase)])


class Method(text.Prompted):
    """Logits of learned prompts; `context` is `[M, width]`, or `[C, M, width]` class-specific."""

    def __init__(self, given: Given, config: dict[str, Any]):
        self.context, self.prompts = text.learned_prompts(given, **config)
