"""TPT: a context tuned at test time, for each image anew (Shu et al., NeurIPS 2022)."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from coop_jax.classes import spelled
from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import Given, Images, Stage, Views
from coop_jax.methods.views import confident_count, marginal_entropy, most_confident

NAME = "TPT"
PAPER = "Shu et al., NeurIPS 2022"

CLASS = "[CLS]"
"""The word of a phrase that holds the class name's place."""

LIMITS = {"views": (1, 1024), "confident_share": (0, 1), "steps": (0, 1000)}


def default_config() -> dict[str, Any]:
    """Return TPT's settings (paper section 4; reference notes, TPT).

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        context_init: a phrase whose token embeddings start the context; then its words are counted.
            A word "[CLS]" holds the class name's place, which is otherwise behind the context.
        views: of every test image: the first is the image itself, the others are augmented.
        confident_share: of the views, those of lowest entropy, which the loss is of.
        steps: of AdamW.
        learning_rate: of AdamW.
        weight_decay: of AdamW; PyTorch's default, which the official code does not change.
    """
    return {
        "n_ctx": 4,
        "context_init": "a photo of a",
        "views": 64,
        "confident_share": 0.1,
        "steps": 1,
        "learning_rate": 5e-3,
        "weight_decay": 1e-2,
    }


State = tuple[Float[Array, "context width"], optax.OptState]
"""A context and the optimizer's moments."""


class Tuned(NamedTuple):
    """Logits of some images, each tuned by itself, and the way to them.

    `contexts` are those after each step, `losses` those before it, `selected` the places of the
    views that these are of, the most confident first, and `view_logits` are of all views before the
    first step.
    """

    logits: Float[Array, "images classes"]
    contexts: Float[Array, "images steps context width"]
    losses: Float[Array, "images steps"]
    selected: Int[Array, "images selected"]
    view_logits: Float[Array, "images views classes"]


class Method(base.Method):
    """Logits of prompts whose context `[M, width]` is tuned on the views of the image alone.

    Nothing is trained before; a context that CoOp has learned may stand in the place of the first
    one.
    """

    texts_per_image = True
    uses = frozenset({"test_images"})

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["steps"] < 1:
            raise InputError(f"steps: expected at least 1, got {config['steps']}; raise it")
        words = spelled([config["context_init"]])[0].split()
        if words.count(CLASS) > 1:
            raise InputError(
                f"context_init: expected {CLASS} once at most, got {config['context_init']!r:.80};"
                " leave one"
            )
        phrase = " ".join(word for word in words if word != CLASS)
        before = words.index(CLASS) if CLASS in words else "end"
        self.context, self.prompts = text.learned_prompts(
            given, config["n_ctx"], context_init=phrase, class_token_position=before
        )
        self.views = Views(test=config["views"])
        self.selected = confident_count(config["views"], config["confident_share"])
        self.steps = config["steps"]
        self.learning_rate, self.weight_decay = config["learning_rate"], config["weight_decay"]

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return no stage."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return M, as a phrase may have changed it."""
        return {"n_ctx": self.context.shape[-2]}

    def word_vectors(self) -> dict[str, Array]:
        """Return the context that every image starts with."""
        return {"context": self.context[...]}

    def logits(self, clip: CLIP, texts: tuple[()], images: Images) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities of each image with its own prompts, float32."""
        return self.tune(clip, images.features).logits

    def tune(self, clip: CLIP, features: Float[Array, "images *views embedding"]) -> Tuned:
        """Tune the context on each image by itself, as many at once as their texts' tokens allow.

        In the first step all images have the same prompts: these are encoded once, and each image's
        gradient is drawn back through that one pass.
        """
        features = jnp.asarray(features).reshape(len(features), self.views.test, -1)
        encode = functools.partial(self.prompts.encode, clip)
        first = self.context[...].astype(jnp.float32)
        first_texts = jax.vjp(encode, first)
        optimizer: Any = optax.adamw(self.learning_rate, weight_decay=self.weight_decay)

        def of_image(views: Float[Array, "views embedding"]) -> Tuned:
            view_logits = clip.logits(views, first_texts[0])
            selected = most_confident(view_logits, self.selected)
            confident = views[selected]

            def loss(texts: Float[Array, "classes embedding"]) -> Array:
                return marginal_entropy(clip.logits(confident, texts))

            def step(state: State, encoded: Any) -> tuple[State, tuple[Array, Array]]:
                context, moments = state
                texts, pull_back = encoded or jax.vjp(encode, context)
                value, by_texts = jax.value_and_grad(loss)(texts)
                updates, moments = optimizer.update(*pull_back(by_texts), moments, context)
                context = jnp.asarray(optax.apply_updates(context, updates))
                return (context, moments), (context, value)

            state, found = step((first, optimizer.init(first)), first_texts)
            found = jax.tree.map(lambda array: array[None], found)
            if self.steps > 1:
                state, later = jax.lax.scan(step, state, length=self.steps - 1)
                found = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), found, later)
            logits = self._logits(clip, state[0], views[0])
            return Tuned(logits, found[0], found[1], selected, view_logits)

        at_once = self.prompts.at_once
        if len(features) > at_once:
            return jax.lax.map(of_image, features, batch_size=at_once)
        return jax.vmap(of_image)(features)

    def _logits(
        self, clip: CLIP, context: Float[Array, "context width"], image: Float[Array, " embedding"]
    ) -> Float[Array, " classes"]:
        """Return the logits of an image; similarities, not texts, leave the devices they are on."""

        def similarity(texts: Float[Array, "shards rows embedding"]) -> Array:
            exact = precision(jnp.float32)
            return jnp.einsum("e,gre->gr", unit(image), unit(texts), precision=exact)[..., None]

        similarities = self.prompts.encode(clip, context, head=similarity)[..., 0]
        return clip.scaled(similarities)
