"""A saved method with its CLIP, on all devices: what it takes to use it."""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax import clip as clip_package
from coop_jax import parallel
from coop_jax.classes import Classes
from coop_jax.clip import openai, source
from coop_jax.data import catalog
from coop_jax.errors import InputError
from coop_jax.frozen import load_clip, said_of
from coop_jax.saved import Saved

logger = logging.getLogger(__name__)


def apply(
    learned: Saved,
    clip: str | None = None,
    *,
    dtype: str,
    tokenizer: str = "",
    activation: str = "",
    heads: Sequence[int] = (),
    classes: Classes | None = None,
    texts: np.ndarray | None = None,
) -> tuple[Any, Any, clip_package.Tokenizer | None]:
    """Return a saved method, ready for these classes, and its CLIP on all devices.

    Args:
        learned: what was saved.
        clip: its CLIP, where that has another name or place here.
        dtype: of the CLIP.
        tokenizer: folder of the tokenizer files, where they do not lie beside the weights.
        activation: as `coop_jax.clip.load` has it; by default what was said when this was learned.
        heads: likewise.
        classes: by default those it was learned on.
        texts: their given text features; by default those that were saved.

    Raises:
        InputError: no such CLIP or another than its own, or classes that do not fit.
    """
    model, its_tokenizer = load_its_clip(
        learned, clip, dtype=dtype, tokenizer=tokenizer, activation=activation, heads=heads
    )
    method = learned.for_classes(
        model,
        its_tokenizer,
        classes,
        texts=texts,
        backbone=clip or learned.backbone,
        shards=parallel.create_mesh().size,
    )
    return method, model, its_tokenizer


def load_its_clip(
    learned: Saved,
    clip: str | None = None,
    *,
    dtype: str,
    tokenizer: str = "",
    activation: str = "",
    heads: Sequence[int] = (),
) -> tuple[Any, clip_package.Tokenizer | None]:
    """Return the CLIP that a saved method names (or `clip`) and its tokenizer; not yet compared.

    Its activation and its heads, if not said, are those that the training record has.
    Of what was learned from given features it is their space, and there is no tokenizer.

    Raises:
        InputError: there is none of that name here, a CLIP is named for given features, or JAX
            finds no device.
    """
    parallel.devices()
    if learned.space:
        if said := clip or tokenizer or activation or tuple(heads):
            raise InputError(
                f"expected no CLIP with what was learned from {learned.backbone}, got {said};"
                " leave it out"
            )
        space = clip_package.FeatureSpace(learned.space["texts"].shape[-1])
        space.logit_scale[...] = jnp.asarray(learned.space["logit_scale"])
        return space, None
    recorded = _recorded(learned)
    activation = activation or recorded.get("activation", "")
    heads = heads or recorded.get("heads", ())
    try:
        return load_clip(clip or learned.backbone, dtype, tokenizer, activation, heads)
    except InputError as error:
        if clip:
            raise
        raise InputError(
            f"expected the CLIP that this was learned with, {learned.backbone}, got none"
            f" that loads by that name ({error}); say where it is by --clip or clip="
        ) from error


def _recorded(learned: Saved) -> dict[str, Any]:
    """Return what the training record says of the CLIP that its tensors do not show."""
    recorded = said_of(learned.training)
    activation, heads = recorded.get("activation", ""), recorded.get("heads")
    if not isinstance(activation, str) or not (heads is None or openai.are_heads(heads)):
        raise InputError(
            "expected a name as activation and two whole numbers as heads of a training record, got"
            f" {recorded!r:.80}; fetch what was saved again"
        )
    return recorded


def warn_of_embedded_clip(name: str, dataset: str | None) -> None:
    """Say, once in a process, what the embedded CLIP cannot do, unless the images are the digits.

    Args:
        name: of a CLIP.
        dataset: the name of what it is used on; None where it has none.
    """
    if name == source.EMBEDDED and dataset != catalog.DIGITS:
        _warn_of_embedded_clip()


@functools.cache
def _warn_of_embedded_clip() -> None:
    logger.warning(
        "the CLIP %r knows printed digits, letters and simple shapes alone and has seen no"
        " photograph: use it to try things out, and another, e.g. ViT-B/16, for images of anything"
        " else",
        source.EMBEDDED,
    )
