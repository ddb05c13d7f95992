"""PLOT++: prompts in both towers, whose outputs are matched by optimal transport (ICLR 2023)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped

from coop_jax.classes import spelled
from coop_jax.clip import CLIP
from coop_jax.clip.features import needed
from coop_jax.clip.model import cosines
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text, transport
from coop_jax.methods.base import Data, Given, Images, Kept, Learned, Stage

NAME = "PLOT++"
PAPER = "Chen et al., ICLR 2023"

LIMITS = {"image_prompts": (0, 64), "n_image_ctx": (0, 256)}


def default_config() -> dict[str, Any]:
    """Return PLOT++'s settings, those of its official scripts but for the phrases.

    Settings:
        context_inits: a phrase for each prompt of a class, whose token embeddings start its
            context; all contexts have as many vectors as the first phrase has words, and what is
            left of a longer phrase stays in the prompt.
        image_prompts: how many prompts of an image there are; each takes a pass of the image tower.
        n_image_ctx: the vectors of each.
        stop_together: as in the official code, all plans of a batch have as many iterations, and
            the logits of an image depend on those beside it, and a little on the number of devices,
            since copies of images fill the batch up to a multiple of that.
    """
    return {
        "context_inits": (
            "a photo of a",
            "one photo of a",
            "a picture of a",
            "one picture of a",
        ),
        "image_prompts": 4,
        "n_image_ctx": 2,
        "stop_together": False,
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 50 epochs of each of two stages."""
    return {"epochs": 50}


class Method(base.Method):
    """Logits of the similarities of an image's and a class's prompts, weighted by transport plans.

    First the images' prompts alone learn, with the logits of mean features besides; then all.

    Attributes:
        context: `[prompts, M, width]`.
        image_context: `[image prompts, vectors, width]`, behind the patches of the first layer.
        adds_global: one in the first stage, else zero.
        alike: the numbers of the prompts that differ in their contexts alone, together.
        prompts: what holds the contexts of each of these groups.
    """

    takes = ("pixels",)

    def __init__(self, given: Given, config: dict[str, Any]):
        width = layers.vision_config(given, NAME).width
        phrases, count = spelled(config["context_inits"]), config["image_prompts"]
        n_image_ctx = config["n_image_ctx"]
        if min(len(phrases), count, n_image_ctx) < 1:
            raise InputError(
                "PLOT++: expected at least one phrase, one prompt of an image and one vector in it,"
                f" got {len(phrases)}, {count} and {n_image_ctx}; raise them"
            )
        contexts = [text.embedded_words(given, phrase) for phrase in phrases]
        n_ctx = min(len(phrases[0].split()), len(contexts[0]))
        for phrase, context in zip(phrases, contexts, strict=True):
            if len(context) < n_ctx:
                raise InputError(
                    f"context_inits: expected phrases of at least {n_ctx} tokens, as the first has"
                    f" words, got {phrase!r:.80} of {len(context)}; name longer ones"
                )
        self.context = Learned(jnp.stack([context[:n_ctx] for context in contexts]))
        drawn = jax.random.normal(given.rngs.params(), (count, n_image_ctx, width), jnp.float32)
        self.image_context = Learned(0.02 * drawn)
        self.adds_global = Kept(jnp.float32(0))
        self.alike = alike(given, phrases, n_ctx)
        firsts = (" ".join(phrases[places[0]].split()) for places in self.alike)
        self.prompts = nnx.List([text.Prompts(given, phrase, n_ctx) for phrase in firsts])
        self.stop_together = config["stop_together"]

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return a stage of the images' prompts, and one of all; each as long as a run."""
        return Stage.of(config, learns=("image_context",)), Stage.of(config)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Let the logits of mean features count in the first stage alone."""
        self.adds_global[...] = jnp.float32(stage == 0)
        return data

    def word_vectors(self) -> dict[str, Array]:
        """Return the context of every prompt."""
        contexts = enumerate(self.context[...], start=1)
        return {f"prompt {number}": context for number, context in contexts}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "prompts classes embedding"]:
        """Return unnormalised text features of all classes under every prompt."""
        made = [
            prompts.encode(clip, self.context[...][np.asarray(places)])
            for prompts, places in zip(self.prompts, self.alike, strict=True)
        ]
        return jnp.concatenate(made)[np.argsort(np.concatenate(self.alike))]

    def encode(
        self, clip: CLIP, pixels: Shaped[Array, "batch size size 3"]
    ) -> Float[Array, "batch prompts embedding"]:
        """Return unnormalised features of images under every prompt of theirs."""
        vision: Any = clip.vision
        x = vision.embed(clip.normalized(pixels))
        (batch, tokens, width), added = x.shape, self.image_context[...].astype(x.dtype)
        count, vectors = added.shape[:2]
        x = jnp.broadcast_to(x[:, None], (batch, count, tokens, width))
        added = jnp.broadcast_to(added, (batch, count, vectors, width))
        x = jnp.concatenate([x, added], axis=2).reshape(-1, tokens + vectors, width)
        x = vision.layers(vision.initial_norm(x))
        return vision.pool(x[:, :tokens]).reshape(batch, count, -1)

    def logits(
        self, clip: CLIP, texts: Float[Array, "prompts classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the scaled similarities under the plans, float32."""
        features = self.encode(clip, jnp.asarray(images.pixels)).astype(jnp.float32)
        similarities = transport.similarity(features, texts, stop_together=self.stop_together)
        whole = cosines(features.mean(axis=1), texts.astype(jnp.float32).mean(axis=0))
        return clip.scaled(similarities + self.adds_global[...] * whole)


def alike(given: Given, phrases: Sequence[str], n_ctx: int) -> tuple[tuple[int, ...], ...]:
    """Return the places of phrases that have the same tokens behind the first ones, together."""
    tokenizer = needed(given.tokenizer)
    places: dict[tuple[int, ...], list[int]] = {}
    for place, phrase in enumerate(phrases):
        places.setdefault(tuple(tokenizer.ids(phrase)[n_ctx:]), []).append(place)
    return tuple(map(tuple, places.values()))
