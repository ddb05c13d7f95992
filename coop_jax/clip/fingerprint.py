"""A digest that tells the weights of CLIPs apart, whatever file they came from."""

import hashlib
from collections.abc import Collection
from typing import Any

import numpy as np
from flax import nnx

from coop_jax.clip.model import CLIP

Path = tuple[Any, ...]
"""The place of a weight in the module."""


def fingerprint(clip: CLIP) -> str:
    """SHA-256, hexadecimal, of the weights that are float32 whatever the CLIP computes in.

    These are embeddings, normalisations and the logit scale. The same weights give the same
    fingerprint from OpenAI's, open_clip's and Hugging Face's files and in any compute dtype. The
    matrices, which are rounded to the compute dtype, are left out: a CLIP that was tuned in its
    matrices alone is not told from the original.
    """
    sha = hashlib.sha256()
    leaves = dict(nnx.to_flat_state(nnx.state(clip)))
    for path in always_float32(leaves):
        values = np.ascontiguousarray(leaves[path][...], "<f4")
        sha.update(f"{'.'.join(map(str, path))} {list(values.shape)}\n".encode())
        sha.update(values.data)
    return sha.hexdigest()


def always_float32(paths: Collection[Path]) -> list[Path]:
    """Those of a CLIP's weights that are no matrix, nor the bias of one.

    Their order does not depend on how the towers are written.
    """
    return sorted(
        (
            path
            for path in paths
            if path[-1] != "projection" and (*path[:-1], "kernel") not in paths
        ),
        key=str,
    )
