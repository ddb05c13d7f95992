"""GalLoP: prompts for whole images and for their patches (Lafon et al., ECCV 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text
from coop_jax.methods.base import Batch, Given, Images, Learned, Terms, cross_entropy

NAME = "GalLoP"
PAPER = "Lafon et al., ECCV 2024"

EXACT = precision(jnp.float32)

LIMITS = {"global_prompts": (0, 256), "local_prompts": (0, 256), "dropout": (0, 0.99)}


def default_config() -> dict[str, Any]:
    """Return GalLoP's settings, those of its official scripts.

    Settings:
        global_prompts, local_prompts: how many there are of whole images and of patches.
        context_init: a phrase whose token embeddings start all of them.
        top_k: for each local prompt, the mean of how many patches' similarities counts, of the
            highest for each class; or one number for all.
        dropout: the part of the global prompts that a training image does not see.
        names_as_given: leave underscores in class names, as the official code does, which reads
            UCF101's "Apply_Eye_Makeup" and Oxford Pets' names so; else they are spaces, as in all
            other methods.
    """
    return {
        "global_prompts": 4,
        "local_prompts": 4,
        "context_init": "A photo of a",
        "top_k": (5, 10, 15, 20),
        "dropout": 0.75,
        "names_as_given": False,
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 200 epochs, no warm-up, more weight decay."""
    return {"epochs": 200, "optimizer": {"weight_decay": 0.01, "warmup_epochs": 0}}


class Texts(NamedTuple):
    """Text features of length one of all classes under every prompt."""

    whole: Float[Array, "prompts classes embedding"]
    patches: Float[Array, "prompts classes embedding"]


class Method(base.Method):
    """Logits of whole images and of each class's most similar patches, averaged.

    `global_context` and `local_context` are `[prompts, M, width]`; `projection` maps patches before
    the tower's own projection. Prompts are context and class name without a full stop.
    """

    takes = ("features", "local")

    def __init__(self, given: Given, config: dict[str, Any]):
        phrase, top_k = config["context_init"], tuple(config["top_k"])
        count, local_count = config["global_prompts"], config["local_prompts"]
        if min(count, local_count) < 1 or len(top_k) not in (1, local_count) or min(top_k) < 1:
            raise InputError(
                "GalLoP: expected at least one global and one local prompt, and in top_k a number"
                f" of patches for each local prompt or for all, got {count}, {local_count} and"
                f" {top_k}; correct them"
            )
        context = text.embedded_words(given, phrase)
        self.global_context = Learned(jnp.tile(context, (count, 1, 1)))
        self.local_context = Learned(jnp.tile(context, (local_count, 1, 1)))
        names = given.classes.names if config["names_as_given"] else given.classes.spelled
        self.prompts = text.Prompts(given, phrase, len(context), names=names, ending="")
        self.projection = Learned(jnp.eye(given.clip.vision.local_width))
        self.top_k = top_k * (local_count // len(top_k))
        self.keep = max(count - int(config["dropout"] * count), 1)

    def word_vectors(self) -> dict[str, Array]:
        """Return the context of every prompt."""
        contexts = {"global": self.global_context[...], "local": self.local_context[...]}
        return {
            f"{kind} prompt {number}": context
            for kind, prompts in contexts.items()
            for number, context in enumerate(prompts, start=1)
        }

    def texts(self, clip: CLIP, key: Array | None) -> Texts:
        """Return the text features of all classes under every prompt."""
        contexts = jnp.concatenate([self.global_context[...], self.local_context[...]])
        features = unit(self.prompts.encode(clip, contexts))
        count = len(self.global_context)
        return Texts(features[:count], features[count:])

    def whole(self, texts: Texts, images: Images) -> Float[Array, "batch classes prompts"]:
        """Return the cosine similarities of whole images with all global prompts."""
        features = unit(jnp.asarray(images.features))
        return jnp.einsum("be,kce->bck", features, texts.whole, precision=EXACT)

    def patches(self, clip: CLIP, images: Images) -> Float[Array, "batch patches embedding"]:
        """Return the features of all patches, of length one."""
        local = jnp.asarray(images.local, jnp.float32)
        projected = jnp.dot(local, self.projection[...], precision=EXACT)
        return unit(clip.vision.project_local(projected))

    def most_similar(
        self, clip: CLIP, texts: Texts, images: Images
    ) -> Float[Array, "batch classes prompts"]:
        """Return for each local prompt the mean similarity of each class's most similar patches."""
        patches, means = self.patches(clip, images), []
        for features, k in zip(texts.patches, self.top_k, strict=True):
            similarities = jnp.einsum("bpe,ce->bcp", patches, features, precision=EXACT)
            highest, _ = jax.lax.top_k(similarities, min(k, patches.shape[1]))
            means.append(highest.mean(axis=-1))
        return jnp.stack(means, axis=-1)

    def logits(self, clip: CLIP, texts: Texts, images: Images) -> Float[Array, "batch classes"]:
        """Return the scaled mean of what whole images and their patches are similar to, float32."""
        whole = self.whole(texts, images).mean(axis=-1)
        patches = self.most_similar(clip, texts, images).mean(axis=-1)
        return clip.scaled((whole + patches) / 2)

    def losses(self, clip: CLIP, texts: Texts, batch: Batch) -> Terms:
        """Return the cross-entropies of whole images and, averaged over prompts, of patches.

        Each image sees the mean of some global prompts, which are drawn.
        """
        targets = batch.labels, batch.weights
        whole = self.whole(texts, batch.images)
        index = draw(batch.key, len(whole), self.keep, whole.shape[-1])
        kept = jnp.take_along_axis(whole, index[:, None], axis=-1).mean(axis=-1)
        local = jnp.moveaxis(self.most_similar(clip, texts, batch.images), -1, 0)
        of_prompts = jax.vmap(
            lambda similarities: cross_entropy(clip.scaled(similarities), *targets)
        )
        return {
            "global": cross_entropy(clip.scaled(kept), *targets),
            "local": of_prompts(local).mean(),
        }


def draw(key: Array, images: int, keep: int, prompts: int) -> Int[Array, "images keep"]:
    """Return which of so many prompts each image keeps, drawn with replacement.

    It depends on the key and the image's place in the batch alone, not on how long that is.
    """

    def of_image(place: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, place), (keep,), 0, prompts)

    return jax.vmap(of_image)(jnp.arange(images))


def gl_mcm(method: Method, clip: CLIP, texts: Texts, images: Images) -> Float[Array, " batch"]:
    """Return how far images are from all classes: the higher, the farther (GL-MCM, -2 to 0).

    Minus the highest probability of a class for the whole image and minus the highest of a class
    for any patch, at temperature one (Miyai et al., 2023).
    """
    whole = jax.nn.softmax(method.whole(texts, images).mean(axis=-1))
    patches = method.patches(clip, images)
    similarities = jnp.einsum("bpe,ce->bpc", patches, texts.patches.mean(axis=0), precision=EXACT)
    return -whole.max(axis=-1) - jax.nn.softmax(similarities).max(axis=(-2, -1))
