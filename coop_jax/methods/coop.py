"""CoOp: context vectors learned around the class name (Zhou et al., IJCV 2022)."""

import logging
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer
from coop_jax.clip.text import Inserted
from coop_jax.methods import prompts
from coop_jax.methods.base import Derived, Learned

logger = logging.getLogger(__name__)


def default_config() -> dict[str, Any]:
    """CoOp's settings (paper section 3.2; coop_protocol section 5).

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
        shards: int = 1,
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
        self.context = Learned(context, per_class=not shared, shard_axis=None if shared else 0)
        self.start = Derived(clip.text.embed(np.asarray([tokenizer.start], np.int32)))
        # Each device can keep the contexts of its own classes if they have the same number of them.
        self.groups = 1 if shared or len(class_names) % shards else shards
        self.packed = prompts.Packed(
            layout.tokens, layout.lengths, shards, same_classes=self.groups > 1
        )
        self.inserted = self._numbers(layout)

    def _numbers(self, layout: prompts.Layout) -> Derived | None:
        """The number of the context vector at each token, or -1; None if all are in the prefix.

        A class-specific context's vectors are counted within each group of classes.
        """
        if not (layout.context >= 0).any():
            return None
        numbers = layout.context
        if self.context.ndim == 3:
            place = np.arange(len(numbers)) % (len(numbers) // self.groups)
            first = place[:, None] * self.context.shape[1]
            numbers = np.where(numbers >= 0, numbers + first, -1)
        return self.packed.lay(numbers)

    def settings(self) -> dict[str, Any]:
        """M, the class token's position, and whether the context is class-specific."""
        return {
            "n_ctx": self.context.shape[-2],
            "class_token_position": self.class_token_position,
            "class_specific": self.context.ndim == 3,
        }

    def encode_classes(self, clip: CLIP) -> Float[Array, "classes embedding"]:
        """Unnormalised text features of the learned prompts."""
        context, prefix = self.context[...], self.start[...]
        if self.shared_context:
            shared = context[: self.shared_context].astype(prefix.dtype)
            prefix = jnp.concatenate([prefix, shared])
        inserted = None
        if self.inserted is not None:
            vectors = context.reshape(self.groups, -1, context.shape[-1])
            inserted = Inserted(vectors, self.inserted[...])
        return clip.text.encode(prefix, self.packed.tokens[...], self.packed.packing, inserted)

    def logits(
        self,
        clip: CLIP,
        classes: Float[Array, "classes embedding"],
        image_features: Float[Array, "batch embedding"],
    ) -> Float[Array, "batch classes"]:
        """Scaled cosine similarities, float32."""
        return clip.logits(image_features, classes)
