"""CLIP-LoRA: low-rank updates of both towers (Zanella and Ben Ayed, CVPRW 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.clip.config import TransformerConfig
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Fixed, Given, Images, Learned, Stage

NAME = "CLIP-LoRA"
PAPER = "Zanella and Ben Ayed, CVPRW 2024"

LOGIT_SCALE = 100.0
"""The official code has the constant instead of the CLIP's own."""

PARTS = {"q": "query", "k": "key", "v": "value", "o": "output"}
"""The matrices that may be updated, by the official letter."""

LIMITS = {"rank": (1, 1024), "dropout": (0, 0.99)}


def default_config() -> dict[str, Any]:
    """Return CLIP-LoRA's settings, those of its official code.

    Settings:
        encoder: "both", "text" or "vision": the towers that learn.
        params: some of "q", "k", "v", "o": the matrices of each attention that learn.
        rank: r of the updates.
        alpha: the updates are scaled by alpha / sqrt(r).
        dropout: of the input of the updates.
        templates: hand-crafted prompts with {} for the class name (empty: the dataset's own). Where
            the text tower learns, only the first counts.
    """
    return {
        "encoder": "both",
        "params": ("q", "k", "v"),
        "rank": 2,
        "alpha": 1.0,
        "dropout": 0.25,
        "templates": (),
    }


def recipe() -> dict[str, Any]:
    """Return what the official code trains with; `epochs` of 0 are 500 steps per shot."""
    return {
        "optimizer": {
            "name": "adamw",
            "learning_rate": 2e-4,
            "weight_decay": 1e-2,
            "schedule_by": "step",
            "warmup_epochs": 0,
            "final_learning_rate": 1e-6,
        },
    }


class Factors(nnx.Module):
    """The low-rank matrices of one tower, by the name of what they update."""

    def __init__(self, given: Given, tower: TransformerConfig, params: tuple[str, ...], rank: int):
        width, count = tower.width, tower.layers
        made = {
            PARTS[letter]: layers.low_rank_init(given.rngs.params(), count, width, width, rank)
            for letter in params
        }
        self.down = nnx.Dict({name: Learned(down) for name, (down, _) in made.items()})
        self.up = nnx.Dict({name: Learned(up) for name, (_, up) in made.items()})

    def wrap(self, blocks: Any, scale: float, dropout: float, key: Array | None) -> None:
        """Put the updates into a stack of blocks."""
        factors = {name: (down, self.up[name]) for name, down in self.down.items()}
        count = next(iter(self.down.values())).shape[0]
        drop = None if key is None else layers.Dropout(key, count, dropout, tuple(PARTS.values()))
        thirds = {name: pair for name, pair in factors.items() if name in layers.THIRDS}
        if thirds:
            linear = blocks.query_key_value
            blocks.query_key_value = layers.LowRank(linear, thirds, scale, drop)
        if "output" in factors:
            output = {"output": factors["output"]}
            linear = blocks.attention_output
            blocks.attention_output = layers.LowRank(linear, output, scale, drop, ("output",))


class Method(base.Method):
    """Cosines, times 100, of images and hand-crafted prompts through towers that have learned."""

    def __init__(self, given: Given, config: dict[str, Any]):
        encoder, params = config["encoder"], tuple(config["params"])
        if encoder not in ("both", "text", "vision") or not set(params) <= set(PARTS) or not params:
            raise InputError(
                f"{NAME}: expected encoder both, text or vision and params of {', '.join(PARTS)},"
                f" got {encoder!r:.80} and {params!r:.80}; correct them"
            )
        self.scale = config["alpha"] / config["rank"] ** 0.5
        self.dropout = float(config["dropout"])
        templates = tuple(config["templates"]) or (given.template,)
        self.takes = ("features",) if encoder == "text" else ("pixels",)
        towers = {}
        if encoder != "vision":
            towers["text"] = given.clip.config.text.transformer
        if encoder != "text":
            towers["vision"] = layers.vision_config(given, NAME)
        self.factors = nnx.Dict(
            {name: Factors(given, tower, params, config["rank"]) for name, tower in towers.items()}
        )
        if encoder == "vision":
            frozen = text.HandCrafted(given, templates).encode(given.clip, now=True)
            self.bank = Fixed(unit(unit(frozen).mean(axis=0)))
        else:
            # The masks of dropout follow the tokens: all devices have all of them.
            self.prompts = text.HandCrafted(dataclasses.replace(given, shards=1), templates[:1])

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage, of 500 steps per shot unless epochs are named."""
        return (Stage.of(config, steps_per_shot=None if config["epochs"] else 500),)

    def adapt(self, clip: CLIP, key: Array | None) -> CLIP:
        """Return the CLIP with the updates; with a key, their inputs are dropped."""
        for number, (name, factors) in enumerate(self.factors.items()):
            own = None if key is None or not self.dropout else jax.random.fold_in(key, number)
            factors.wrap(getattr(clip, name).blocks, self.scale, self.dropout, own)
        return clip

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of the hand-crafted prompts."""
        return self.bank[...] if "text" not in self.factors else self.prompts.encode(clip)[0]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return cosines times 100, float32."""
        features = images.features
        if "vision" in self.factors:
            features = clip.encode_image(jnp.asarray(images.pixels))
        exact = precision(jnp.float32)
        return LOGIT_SCALE * jnp.einsum("be,ce->bc", unit(features), unit(texts), precision=exact)
