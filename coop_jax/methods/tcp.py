"""TCP: class-aware tokens, made of each class's text feature (Yao et al., CVPR 2024)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.clip.features import needed
from coop_jax.clip.text import Later
from coop_jax.clip.transformer import quick_gelu
from coop_jax.errors import InputError
from coop_jax.methods import layers, text
from coop_jax.methods.base import Batch, Fixed, Given, Learned, Terms, cross_entropy

NAME = "TCP"
PAPER = "Yao et al., CVPR 2024"

REDUCTION = 4
"""The meta-net's hidden layer is this much narrower than the text features."""

BANKS = {
    "a photo of a {}, a type of aircraft.": "a photo of an aircraft {}.",
    "{} texture.": "a photo of a {}, a type of texture.",
    "a photo of {}, a type of food.": "a photo of a {}, a type of food.",
}
"""The hand-crafted prompts that TCP has in place of some of CoOp's."""

PROMPTS = {"a centered satellite photo of {}.": "{}."}
"""The words around the context that TCP has in place of some prompts' own."""


def default_config() -> dict[str, Any]:
    """Return TCP's settings, those of its official scripts.

    Settings:
        n_ctx: number of context vectors M, and of class-aware tokens, where `context_init` is
            empty.
        context_init: a phrase whose token embeddings start the context; then its words are
            counted. Empty: normal with deviation 0.02.
        prompt: what is around the context, with {} for the class name; the first M tokens are the
            context's place (vectors stand there where it has fewer in front of the class name).
            Empty: the dataset's own hand-crafted prompt, as the official code has it.
        template: the hand-crafted prompt that the class-aware tokens are made of, and which texts
            must stay near to. Empty: the dataset's own, as the official code has it.
        layer: of the text tower, counted from 1, at whose input the class-aware tokens replace the
            context.
        weight: of the distance to the hand-crafted prompts' text features, one minus the mean
            cosine.
    """
    return {
        "n_ctx": 4,
        "context_init": "",
        "prompt": "",
        "template": "",
        "layer": 9,
        "weight": 8.0,
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 50 epochs of Adam with a large epsilon."""
    return {"epochs": 50, "optimizer": {"name": "adam", "epsilon": 1e-3}}


class Method(text.Prompted):
    """Logits of prompts whose context becomes tokens of each class on the way up the text tower.

    `bank` are the text features of hand-crafted prompts, of length one.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        start, _ = text.initial_context(given, config["context_init"], config["n_ctx"])
        most = given.clip.config.text.transformer.layers
        if not 2 <= config["layer"] <= most:
            raise InputError(
                f"{NAME}: expected layer from 2 to {most}, the layers of the text tower, got"
                f" {config['layer']}; correct it"
            )
        self.context, self.layer = Learned(start), config["layer"] - 1
        own = PROMPTS.get(given.template, given.template)
        before, ending = _around(given, config["prompt"] or own, len(start))
        self.prompts = text.Prompts(given, before, len(start), shared=False, ending=ending)
        template = config["template"] or BANKS.get(given.template, given.template)
        self.bank = Fixed(text.hand_crafted_features(given, template))
        embedding = given.clip.config.embedding
        sizes = embedding, max(embedding // REDUCTION, 1), start.size
        self.meta_net = layers.TwoLayers(given.rngs, *sizes, quick_gelu)
        self.weight = config["weight"]

    def settings(self) -> dict[str, Any]:
        """Return M, as a phrase may have changed it."""
        return {"n_ctx": len(self.context)}

    def class_tokens(self) -> Float[Array, "classes M width"]:
        """Return the tokens that replace the context of each class."""
        return self.meta_net(self.bank[...]).reshape(-1, *self.context.shape)

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return unnormalised text features of the prompts."""
        tokens = self.class_tokens()
        context = jnp.broadcast_to(self.context[...], tokens.shape)
        return self.prompts.encode(clip, context, later=Later(tokens, self.layer))

    def losses(self, clip: CLIP, texts: Float[Array, "classes embedding"], batch: Batch) -> Terms:
        """Return the cross-entropy and the weighted distance, over all classes of every step."""
        logits = self.logits(clip, texts, batch.images)
        cosines = jnp.sum(unit(texts) * self.bank[...], axis=-1)
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "knowledge": self.weight * (1 - cosines.mean()),
        }


def _around(given: Given, prompt: str, n_ctx: int) -> tuple[str, str]:
    """Return a text whose first tokens are the context's place, and what follows the class name.

    Raises:
        InputError: there is no {} for the class name, or several.
    """
    if prompt.count("{}") != 1:
        raise InputError(f"prompt: expected a text with one {{}}, got {prompt!r:.80}; correct it")
    before, ending = prompt.split("{}")
    words = needed(given.tokenizer).ids(before.strip()) if before.strip() else []
    if len(words) < n_ctx:
        return text.placeholder(given, n_ctx), ending
    return before.strip(), ending
