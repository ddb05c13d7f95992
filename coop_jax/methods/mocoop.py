"""MoCoOp: several learned prompts, two of which a router takes for each image (Du et al.)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.classes import Classes, read
from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import (
    Batch,
    Fixed,
    Given,
    Images,
    Learned,
    Terms,
    cross_entropy,
    weighted_mean,
)

NAME = "MoCoOp"
PAPER = "Du et al., arXiv 2409.12011"

EXACT = precision(jnp.float32)

CHOSEN = 2
"""Experts that an image is classified by."""

TARGET = 10.0
"""Added to the cosines of the nearest groups, for the router's targets."""

NORM_RATE = 0.1
"""The factor on the learning rate of the image tower's normalisations."""

LIMITS = {"groups": (1, 1000)}


def default_config() -> dict[str, Any]:
    """Return MoCoOp's settings, with the prompts of the official code for textures.

    Settings:
        groups: how many of the prompts, in their order, make each group; each has an expert.
        prompts: hand-crafted, with {} for the class name; "" for the dataset's own. The first of a
            group starts its expert, and all of it are what that must stay near to.
        text_weight: of the cross-entropy of experts' text features against those of their group.
        gate_weight: of the router's cross-entropy against the groups nearest to the image.
        other_names: names of other classes, which the texts must be told from as well; the
            official code takes those of the new classes.
        chosen_alone: leave out experts that no image of the batch chooses; the official code does
            so where batches have fewer than 4 images.
        as_released: where a prompt has words behind the class name, one vector more than words,
            which starts from the end token, as the official code counts.
    """
    return {
        "groups": (1, 1, 1, 4, 2),
        "prompts": (
            "",
            "a photo of a {}.",
            "a photo of many {}.",
            "a low resolution photo of the {}.",
            "a low resolution photo of a {}.",
            "a pixelated photo of the {}.",
            "a pixelated photo of a {}.",
            "a good photo of the {}.",
            "a good photo of a {}.",
        ),
        "text_weight": 5.0,
        "gate_weight": 1.0,
        "other_names": (),
        "chosen_alone": False,
        "as_released": False,
    }


def recipe() -> dict[str, Any]:
    """Return what the official read me trains with: 50 epochs, 5 of them warm-up, and clipping."""
    optimizer = {"learning_rate": 0.032, "warmup_epochs": 5, "clip_norm": 1.0}
    return {"epochs": 50, "optimizer": optimizer}


class Expert(nnx.Module):
    """A learned context in front of and behind the class name, `[M, width]`.

    Args:
        given: what the method is made of.
        everyone: the same for all classes that the texts are told from.
        template: the prompt that it starts from.
        config: the method's settings.

    Raises:
        InputError: the prompt has no words but the class name.
    """

    def __init__(self, given: Given, everyone: Given, template: str, config: dict[str, Any]):
        words = [part.strip() for part in template.replace(".", "").split("{}")]
        if not any(words):
            raise InputError(
                f"prompts: expected words in the first prompt of each group, got {template!r:.80};"
                " put another in front"
            )
        vectors = [text.embedded_words(given, part) if part else None for part in words]
        parts = [part for part in vectors if part is not None]
        behind = template.replace(".", "").split("{}")[1]
        counts_space = config["as_released"] and behind.startswith(" ") and bool(words[1])
        if counts_space:
            assert given.tokenizer is not None
            parts.append(given.clip.text.token_embedding[...][jnp.array([given.tokenizer.end])])
        context = jnp.concatenate([part.astype(jnp.float32) for part in parts])
        self.context = Learned(context, waits=config["chosen_alone"])
        holder = text.placeholder(given, len(context))
        place = len(context), 0 if vectors[0] is None else len(vectors[0])
        self.of_images = text.Prompts(given, holder, *place, ending="", reads_end=not counts_space)
        ending = "" if counts_space else "."
        self.of_texts = text.Prompts(everyone, holder, *place, ending=ending)


class Norms(nnx.Module):
    """The scales and biases of both normalisations of all blocks, `[layers, width]`."""

    def __init__(self, blocks: Any):
        for name, norm in self.of(blocks).items():
            for part in ("scale", "bias"):
                value = jnp.array(getattr(norm, part)[...], jnp.float32)
                setattr(self, f"{name}_{part}", Learned(value, rate=NORM_RATE))

    @staticmethod
    def of(blocks: Any) -> dict[str, Any]:
        """Return the normalisations of a stack of blocks by name."""
        return {"attention": blocks.attention_norm.norm, "mlp": blocks.mlp_norm.norm}

    def put(self, blocks: Any) -> None:
        """Put them into a stack of blocks."""
        for name, norm in self.of(blocks).items():
            for part in ("scale", "bias"):
                setattr(norm, part, nnx.Param(getattr(self, f"{name}_{part}")[...]))


class Method(base.Method):
    """Cosines with a mixture of two experts' text features, which differ by image.

    The mixture is not normalised again. The image tower's normalisations learn as well.

    Attributes:
        experts: one of each group.
        gate_kernel, gate_bias: of the router, from image features to experts.
        correction: `[embedding]`, added to all text features.
        norms: of the image tower's blocks.
        prototypes: mean hand-crafted text features `[groups, classes, embedding]`, of length one,
            also of `other_names`.
    """

    takes = ("pixels",)

    def __init__(self, given: Given, config: dict[str, Any]):
        layers.vision_config(given, NAME)
        own = given.learned_template or given.template
        templates = [template or own for template in config["prompts"]]
        groups = config["groups"]
        if len(groups) < CHOSEN or sum(groups) != len(templates):
            raise InputError(
                f"groups: expected at least {CHOSEN} groups of {len(templates)} prompts together,"
                f" got {tuple(groups)}; correct groups or prompts"
            )
        text.check_templates(templates)
        everyone = dataclasses.replace(
            given, classes=_with_others(given.classes, config["other_names"])
        )
        starts = [sum(groups[:place]) for place in range(len(groups))]
        self.experts = nnx.List(
            [Expert(given, everyone, templates[start], config) for start in starts]
        )
        size = given.clip.config.embedding
        shape = size, len(groups)
        self.gate_kernel = Learned(layers.linear_init(given.rngs.params(), shape, size))
        self.gate_bias = Learned(layers.linear_init(given.rngs.params(), shape[1:], size))
        self.correction = Learned(jnp.zeros(size, jnp.float32))
        tower: Any = given.clip.vision
        self.norms = Norms(tower.blocks)
        stopped = [template.replace(".", "") + "." for template in templates]
        features = unit(text.HandCrafted(everyone, stopped).encode(given.clip))
        means = [
            features[start : start + count].mean(axis=0)
            for start, count in zip(starts, groups, strict=True)
        ]
        self.prototypes = Fixed(unit(jnp.stack(means)))
        self.text_weight, self.gate_weight = config["text_weight"], config["gate_weight"]
        self.chosen_alone = config["chosen_alone"]
        self.uses = frozenset({"new_class_names"} if config["other_names"] else ())

    def word_vectors(self) -> dict[str, Array]:
        """Return the context of every expert."""
        return {
            f"expert {number}": expert.context[...]
            for number, expert in enumerate(self.experts, start=1)
        }

    def adapt(self, clip: CLIP, key: Array | None) -> CLIP:
        """Return the CLIP with the learned normalisations."""
        tower: Any = clip.vision
        self.norms.put(tower.blocks)
        return clip

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "experts classes embedding"]:
        """Return text features of length one of all classes by every expert."""
        encoded = [expert.of_images.encode(clip, expert.context[...]) for expert in self.experts]
        return unit(jnp.stack(encoded).astype(jnp.float32) + self.correction[...])

    def texts_of_everyone(self, clip: CLIP) -> Float[Array, "experts everyone embedding"]:
        """Return the same with a full stop behind, of other classes as well."""
        encoded = [expert.of_texts.encode(clip, expert.context[...]) for expert in self.experts]
        return unit(jnp.stack(encoded).astype(jnp.float32) + self.correction[...])

    def gate(
        self, features: Float[Array, "batch embedding"]
    ) -> tuple[Float[Array, "batch experts"], Float[Array, "batch experts"]]:
        """Return the router's logits of image features of length one, and the experts' weights.

        Those that an image does not choose have the weight zero.
        """
        logits = layers.product(features, self.gate_kernel[...]) + self.gate_bias[...]
        highest, places = jax.lax.top_k(logits, CHOSEN)
        return logits, spread(jax.nn.softmax(highest, axis=-1), places, logits.shape[-1])

    def logits(
        self,
        clip: CLIP,
        texts: Float[Array, "experts classes embedding"],
        images: Images,
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosines with the mixture, float32."""
        features = unit(clip.encode_image(jnp.asarray(images.pixels)))
        return mixed(clip, features, texts, self.gate(features)[1])

    def losses(
        self, clip: CLIP, texts: Float[Array, "experts classes embedding"], batch: Batch
    ) -> Terms:
        """Return the cross-entropy, and those of the experts' texts and of the router."""
        labels, weights, near = batch.labels, batch.weights, self.prototypes[...]
        features = unit(clip.encode_image(jnp.asarray(batch.images.pixels)))
        gate, shares = self.gate(features)
        everyone = self.texts_of_everyone(clip)
        if self.chosen_alone:
            is_chosen = ((shares > 0) & (weights > 0)[:, None]).any(axis=0)
            texts, everyone = (jnp.where(is_chosen[:, None, None], t, 0) for t in (texts, everyone))
        told_apart = jnp.einsum("gce,gde->gcd", everyone, near, precision=EXACT)
        own = jnp.diagonal(jax.nn.log_softmax(told_apart, axis=-1), axis1=-2, axis2=-1)
        to_groups = jnp.einsum("be,gbe->bg", features, near[:, labels], precision=EXACT)
        _, nearest = jax.lax.top_k(to_groups, CHOSEN)
        added = spread(jnp.full(nearest.shape, TARGET), nearest, len(near))
        targets = jax.nn.softmax(to_groups + added, axis=-1)
        routed = -jnp.sum(targets * jax.nn.log_softmax(gate, axis=-1), axis=-1)
        return {
            "cross_entropy": cross_entropy(mixed(clip, features, texts, shares), labels, weights),
            "texts": -self.text_weight * own.mean(),
            "gate": self.gate_weight * weighted_mean(routed, weights),
        }


def mixed(
    clip: CLIP,
    features: Float[Array, "batch embedding"],
    texts: Float[Array, "experts classes embedding"],
    shares: Float[Array, "batch experts"],
) -> Float[Array, "batch classes"]:
    """Return scaled cosines of images with the experts' text features, weighted by image."""
    cosines = jnp.einsum("be,gce->bgc", features, texts, precision=EXACT)
    return clip.scaled(jnp.einsum("bgc,bg->bc", cosines, shares, precision=EXACT))


def spread(
    values: Float[Array, "batch chosen"], places: Int[Array, "batch chosen"], size: int
) -> Float[Array, "batch size"]:
    """Return the values at their places, and zero at all others."""
    return jnp.sum(values[..., None] * jax.nn.one_hot(places, size, dtype=values.dtype), axis=1)


def _with_others(classes: Classes, names: tuple[str, ...]) -> Classes:
    """Return classes with others behind them, without those that are there already."""
    known = {*read(classes.names)}
    others = [name for name in names if read([name])[0] not in known]
    repeated = (*classes.repeated, *others)
    return Classes((*classes.names, *others), repeated=repeated)
