"""The images that a method has learned from, so that tests can leave them out."""

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from coop_jax.data.examples import Examples
from coop_jax.errors import InputError
from coop_jax.printing import plural

logger = logging.getLogger(__name__)

KEY = "image_digests"
"""The key of the digests in a training record."""

DIGITS = 16
"""Hexadecimal digits of a digest.

They are enough: that any of 50,000 test images has those of one of 16,000 others by chance has a
probability of 4e-11.
"""

_THREADS = 8


def digests(*splits: Examples) -> list[str]:
    """The digests of images, sorted, each once.

    A digest is the beginning of the SHA-256 of the encoded bytes: those of the file, in a prepared
    copy as well; of pixels that are given in memory those of the PNG that is made of them.

    Raises:
        InputError: an image cannot be read.
    """
    return sorted({digest for examples in splits for digest in _digests(examples)})


def among(training: Mapping[str, Any], examples: Examples) -> Bool[np.ndarray, " examples"]:
    """Find the images that a method has learned from; those that cannot be read are none.

    Args:
        training: the record of how it was trained; without digests, nothing is known to be used.
        examples: the images.

    Raises:
        InputError: the record has something else where the digests should be.
    """
    known = training.get(KEY, [])
    if not isinstance(known, list) or not all(isinstance(digest, str) for digest in known):
        raise InputError(
            f"expected a list of digests as {KEY} of a training record, got {known!r:.80};"
            " fetch what was saved again"
        )
    if not known:
        return np.zeros(len(examples), bool)
    used = {digest[:DIGITS] for digest in known}
    found = _digests(examples, forgiving=True)
    return np.array([digest in used for digest in found], bool)


def to_count(
    training: Mapping[str, Any], examples: Examples, *, leave_out: bool = True
) -> Int[np.ndarray, " counted"]:
    """The places of the images that tell how good a method is; how many it has seen is logged.

    Args:
        training: as in `among`.
        examples: the images.
        leave_out: take those that it has not learned from; otherwise all.

    Raises:
        InputError: none are left; or as `among`.
    """
    used = among(training, examples)
    if leave_out and len(used) and used.all():
        raise InputError(
            f"expected {examples.split} images that this was not learned from, got"
            f" {len(used)}, all of which were used to learn it; add others or choose another split"
        )
    tell(used, examples.split, "left out" if leave_out else "counted all the same")
    return np.flatnonzero(~used) if leave_out else np.arange(len(used))


def tell(used: Bool[np.ndarray, " examples"], split: str, what: str) -> None:
    """Log how many of a split's images were used, if any, and what is done about them."""
    if used.any():
        logger.warning(
            "%d of %s %s used to learn this; %s %s",
            *(used.sum(), plural(len(used), f"{split} image")),
            *(("was", "it is") if used.sum() == 1 else ("were", "they are")),
            what,
        )


def _digests(examples: Examples, *, forgiving: bool = False) -> list[str]:
    def digest(index: int) -> str:
        try:
            return hashlib.sha256(examples.encoded(index)).hexdigest()[:DIGITS]
        except InputError:
            if forgiving:
                return ""
            raise

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(digest, range(len(examples))))
