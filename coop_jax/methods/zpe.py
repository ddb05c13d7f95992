"""ZPE: a pool of prompts, each weighted by how sure it makes CLIP of unlabelled images (2023)."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text, unlabeled
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Stage
from coop_jax.templates import IMAGENET_80

NAME = "ZPE"
PAPER = "Allingham et al., ICML 2023"

EXACT = precision(jnp.float32)

WEIGHTS = ("softmax", "scores", "equal")

AT_ONCE = 4096
"""Images whose logits of one prompt are in memory at a time."""

LIMITS = {"share": (0, 1)}

logger = logging.getLogger(__name__)

FILES = ("pretrain_features",)


def default_config() -> dict[str, Any]:
    """Return ZPE's settings.

    Settings:
        templates: the pool, hand-crafted prompts with {} for the class name; empty: OpenAI's 80 for
            ImageNet, or all text features that are given.
        weights: "softmax" of the scores, the "scores" themselves, or "equal" ones.
        select: keep only prompts whose score is high.
        threshold: those that are kept are so many times the median absolute deviation above the
            median.
        pretrain_features: an .npy file of the CLIP's features `[images, embedding]` of images such
            as it was pre-trained on, whose mean logits count as much as those of the unlabelled
            images; none if empty.
        share: of the unlabelled images, the first ones, whose mean logits are subtracted.
    """
    return {
        "templates": (),
        "weights": "softmax",
        "select": False,
        "threshold": 0.5,
        "pretrain_features": "",
        "share": 1.0,
    }


class Method(base.Method):
    """Logits of all prompts, averaged by weights that unlabelled images give them.

    A weight is of a prompt alone, so that what is learned serves any class names. The labelled
    training images are not used.

    Attributes:
        bank: text features of length one, `[prompts, classes, embedding]`.
        weights: of the prompts, whose magnitudes sum to one; equal before `prepare`.
    """

    uses = frozenset({"unlabeled"})

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["weights"] not in WEIGHTS:
            raise InputError(
                f"weights: expected one of {', '.join(WEIGHTS)}, got {config['weights']!r:.80};"
                " choose one"
            )
        pool = (given.template,) if given.texts is not None else IMAGENET_80
        prompts = text.HandCrafted(given, tuple(config["templates"]) or pool)
        self.bank = Fixed(unit(prompts.encode(given.clip, now=True)))
        count, _, size = self.bank.shape
        self.weights = Kept(jnp.full(count, 1 / count, jnp.float32))
        self.kind, self.share = config["weights"], config["share"]
        self.threshold = config["threshold"] if config["select"] else None
        path = config["pretrain_features"]
        self.pretrain = Fixed(mean_of_file(path, size)) if path else None
        if path:
            self.uses = frozenset({"unlabeled", "other_images"})

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps: `prepare` weighs the prompts."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Weigh the prompts.

        Raises:
            InputError: there are no unlabelled images, or no prompt is far enough above the median.
        """
        features = unit(jnp.asarray(unlabeled.unlabeled_features(NAME, data)))
        counted = max(round(len(features) * self.share), 1)
        means = [features[:counted].mean(axis=0)]
        if self.pretrain is not None:
            means.append(self.pretrain[...])
        scale = jnp.exp(clip.logit_scale[...])
        found = scores(scale * self.bank[...], features, means)
        self.weights[...] = jnp.asarray(weigh(found, self.kind, self.threshold), jnp.float32)
        kept = int(np.count_nonzero(self.weights[...]))
        logger.info("ZPE: %d of %d prompts count, by %d images", kept, len(found), len(features))
        return data

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return the weighted sums of text features, which are not of length one."""
        return jnp.einsum("p,pce->ce", self.weights[...], self.bank[...], precision=EXACT)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the weighted mean of all prompts' logits."""
        features = unit(jnp.asarray(images.features))
        return clip.scaled(jnp.dot(features, texts.T, precision=EXACT))


def scores(
    texts: Float[Array, "prompts classes embedding"],
    features: Float[Array, "images embedding"],
    means: Sequence[Float[Array, " embedding"]] = (),
) -> Float[np.ndarray, " prompts"]:
    """Return the mean over images of each prompt's highest logit, in float64.

    Args:
        texts: text features of length one, times the logit scale.
        features: image features of length one.
        means: of image features; the mean of their logits is subtracted from each class's.
    """
    offset = jnp.zeros(texts.shape[:2], jnp.float32)
    if len(means):
        offset = jnp.einsum("pce,e->pc", texts, jnp.mean(jnp.stack(means), 0), precision=EXACT)
    total = np.zeros(len(texts))
    for start in range(0, len(features), AT_ONCE):
        highest = _highest(texts, offset, features[start : start + AT_ONCE])
        total += np.asarray(highest, np.float64).sum(axis=1)
    return total / len(features)


@jax.jit
def _highest(
    texts: Float[Array, "prompts classes embedding"],
    offset: Float[Array, "prompts classes"],
    features: Float[Array, "images embedding"],
) -> Float[Array, "prompts images"]:
    """Return each prompt's highest logit of every image, prompt by prompt."""

    def of_prompt(prompt: tuple[Array, Array]) -> Array:
        return (jnp.dot(features, prompt[0].T, precision=EXACT) - prompt[1]).max(axis=-1)

    return jax.lax.map(of_prompt, (texts, offset))


def weigh(
    scores: Float[np.ndarray, " prompts"], kind: str, threshold: float | None
) -> Float[np.ndarray, " prompts"]:
    """Return weights of prompts, whose magnitudes sum to one.

    Args:
        scores: of the prompts.
        kind: one of `WEIGHTS`.
        threshold: as `select` takes it; None to keep all.

    Raises:
        InputError: as `select`.
    """
    weights = {
        "softmax": np.exp(scores - scores.max()),
        "scores": scores,
        "equal": np.ones_like(scores),
    }[kind]
    if threshold is not None:
        weights = np.where(select(scores, threshold), weights, 0)
    return weights / max(np.abs(weights).sum(), np.finfo(np.float64).tiny)


def select(scores: Float[np.ndarray, " prompts"], threshold: float) -> Bool[np.ndarray, " prompts"]:
    """Return which scores are more than so many median absolute deviations above the median.

    Raises:
        InputError: none is.
    """
    above = scores - np.median(scores)
    deviation = np.median(np.abs(above))
    chosen = above > threshold * deviation
    if not chosen.any():
        raise InputError(
            f"threshold: expected one that the score of some prompt exceeds, got {threshold:g},"
            f" where the highest is at {above.max() / max(deviation, 1e-30):.3g}; lower it"
        )
    return chosen


def mean_of_file(path: str, size: int) -> Float[Array, " embedding"]:
    """Return the mean, at length one each, of the features in an .npy file.

    Raises:
        InputError: there is no such file, or it holds no rows of so many finite numbers.
    """
    place = Path(os.path.expanduser(path))
    try:
        features = np.load(place, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"{place}: expected an .npy file of image features, got {error!s:.120}; name another"
        ) from error
    is_array = isinstance(features, np.ndarray) and np.issubdtype(features.dtype, np.floating)
    shape = features.shape if is_array else ()
    if len(shape) != 2 or shape[1] != size or not shape[0]:
        raise InputError(
            f"{place}: expected floating-point features [images, {size}] of the same CLIP, got"
            f" {list(shape) or 'something else'}; make them with it"
        )
    lengths = np.linalg.norm(np.asarray(features, np.float64), axis=1)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise InputError(
            f"{place}: expected finite features, none of length zero, got others; make them again"
        )
    return jnp.asarray((features / lengths[:, None]).mean(axis=0), jnp.float32)
