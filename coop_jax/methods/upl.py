"""UPL: CoOp on pseudo-labels of unlabelled images (Huang et al., arXiv 2204.03649)."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import text
from coop_jax.methods.base import Data, Fixed, Given, Images

NAME = "UPL"
PAPER = "Huang et al., arXiv 2204.03649"

AT_ONCE = 4096
"""Images whose probabilities are in memory at a time."""

logger = logging.getLogger(__name__)

LIMITS = {"pseudo_shots": (1, 10**6)}


def default_config() -> dict[str, Any]:
    """Return UPL's settings: those of CoOp's random context, and what it is trained on.

    Settings:
        n_ctx: number of context vectors M.
        class_token_position: "end", "middle" or "front".
        class_specific: one context per class (CSC) instead of one for all.
        pseudo_shots: images at most that are taken for each class, the most confident.
        template: the hand-crafted prompt of the pseudo-labels, with {} for the class name (empty:
            the dataset's own).
    """
    return {
        "n_ctx": 16,
        "class_token_position": "end",
        "class_specific": False,
        "pseudo_shots": 16,
        "template": "",
    }


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with: 50 epochs."""
    return {"epochs": 50}


class Method(text.Prompted):
    """CoOp, trained on the images that zero-shot CLIP is surest of, with the labels it gives them.

    The labelled training images are not used. Where there is a teacher, the labels are those of the
    mean of both CLIPs' probabilities (the official code takes that of any number of backbones).
    """

    uses = frozenset({"unlabeled"})

    def __init__(self, given: Given, config: dict[str, Any]):
        self.context, self.prompts = text.learned_prompts(
            given,
            config["n_ctx"],
            class_specific=config["class_specific"],
            class_token_position=config["class_token_position"],
        )
        self.pseudo_shots = config["pseudo_shots"]
        self.zero_shot = nnx.List([_classifier(given, config["template"])])
        if given.teacher is not None:
            clip, tokenizer = given.teacher
            of_teacher = dataclasses.replace(given, clip=clip, tokenizer=tokenizer, texts=None)
            self.zero_shot.append(_classifier(of_teacher, config["template"]))
            self.takes = ("features", "teacher")
            self.uses = frozenset({"unlabeled", "teacher"})

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Return pseudo-labelled images to train on, as they are under the test transform.

        Raises:
            InputError: there are no unlabelled images.
        """
        if data.unlabeled is None or not len(data.unlabeled):
            raise InputError(
                "UPL: expected unlabelled images, got none; choose a dataset that has some"
            )
        images = data.unlabeled.images()
        labels, confidence = np.empty(len(data.unlabeled), np.int32), np.empty(len(data.unlabeled))
        for start in range(0, len(labels), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            probabilities = np.asarray(
                self.probabilities(jax.tree.map(lambda array, some=some: array[some], images))
            )
            labels[some], confidence[some] = probabilities.argmax(1), probabilities.max(1)
        chosen = most_confident(labels, confidence, self.pseudo_shots)
        found = len(np.unique(labels[chosen]))
        logger.info("UPL: %d images of %d predicted classes are learned from", len(chosen), found)
        return data._replace(train=data.unlabeled.subset(chosen, labels[chosen]))

    def probabilities(self, images: Images) -> Float[Array, "images classes"]:
        """Return the probabilities of zero-shot CLIP, or their mean over it and the teacher."""
        exact, each = precision(jnp.float32), []
        for field, texts in zip(self.takes, self.zero_shot, strict=True):
            features = unit(jnp.asarray(getattr(images, field)))
            each.append(jax.nn.softmax(jnp.dot(features, texts[...].T, precision=exact)))
        return jnp.mean(jnp.stack(each), axis=0)


def _classifier(given: Given, template: str) -> Fixed:
    """Return hand-crafted text features times the logit scale, `[classes, embedding]`."""
    scale = jnp.exp(given.clip.logit_scale[...])
    return Fixed(scale * text.hand_crafted_features(given, template))


def most_confident(
    labels: Int[np.ndarray, " images"], confidence: Float[np.ndarray, " images"], shots: int
) -> Int[np.ndarray, " chosen"]:
    """Return the places, ascending, of at most so many images of each label, the surest.

    Of equally sure ones the first are taken.
    """
    order = np.lexsort((-confidence, labels))
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    return np.sort(order[rank < shots])
