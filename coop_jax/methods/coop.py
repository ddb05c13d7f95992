"""CoOp: context vectors learned around the class name (Zhou et al., IJCV 2022)."""

import logging
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer
from coop_jax.methods import prompts
from coop_jax.methods.base import Derived, Learned

logger = logging.getLogger(__name__)


def default_config() -> dict[str, Any]:
    """CoOp's settings (paper section 3.2; coop_protocol section 5).

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


class Method(nnx.Module):
    """Logits of learned prompts; `context` is `[M, width]`, or `[C, M, width]` class-specific."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        class_names: Sequence[str],
        config: dict[str, Any],
        *,
        rngs: nnx.Rngs,
    ):
        phrase, width = config["context_init"], clip.config.text.transformer.width
        if phrase and config["class_specific"]:
            logger.warning("context_init gives a shared context: class_specific is ignored")
        shared = bool(phrase) or not config["class_specific"]
        shape = (config["n_ctx"], width) if shared else (len(class_names), config["n_ctx"], width)
        context, placeholder = prompts.initial_context(clip, tokenizer, phrase, shape, rngs)
        layout = prompts.layout(
            tokenizer,
            class_names,
            placeholder,
            context.shape[-2],
            config["class_token_position"],
            shared=shared,
        )
        self.class_token_position = config["class_token_position"]
        self.shared_context = layout.shared_context
        self.fills_suffix = bool((layout.context >= 0).any())
        self.context = Learned(context, per_class=not shared)
        self.start = Derived(clip.text.embed(jnp.asarray([tokenizer.start])))
        self.fixed = Derived(clip.text.embed(jnp.asarray(layout.tokens)))
        self.index = Derived(jnp.asarray(layout.context))
        self.end = Derived(jnp.asarray(layout.end))

    def settings(self) -> dict[str, Any]:
        """M, the class token's position, and whether the context is class-specific."""
        return {
            "n_ctx": self.context.shape[-2],
            "class_token_position": self.class_token_position,
            "class_specific": self.context.ndim == 3,
        }

    def encode_classes(self, clip: CLIP) -> Float[Array, "classes embedding"]:
        """Unnormalised text features of the learned prompts."""
        context = self.context[...]
        dtype = self.start[...].dtype
        prefix, suffix = self.start[...], self.fixed[...]
        if self.shared_context:
            prefix = jnp.concatenate([prefix, context[: self.shared_context].astype(dtype)])
        if self.fills_suffix:
            per_class = context if context.ndim == 3 else context[None]
            suffix = prompts.fill(suffix, self.index[...], per_class.astype(dtype))
        return clip.text.encode(prefix, suffix, self.end[...])

    def logits(
        self,
        clip: CLIP,
        classes: Float[Array, "classes embedding"],
        image_features: Float[Array, "batch embedding"],
    ) -> Float[Array, "batch classes"]:
        """Scaled cosine similarities, float32."""
        return clip.logits(image_features, classes)
