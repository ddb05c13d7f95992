"""What tells the weights of one CLIP from another's, whatever file they came from."""

import functools
import hashlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax.clip.config import CLIPConfig
from coop_jax.clip.model import CLIP


def fingerprint(clip: CLIP) -> str:
    """SHA-256, hexadecimal, of the weights that are float32 whatever the CLIP computes in.

    These are embeddings, normalisations and the logit scale. The same weights give the same
    fingerprint from OpenAI's, open_clip's and Hugging Face's files and in any compute dtype. The
    matrices, which are rounded to the compute dtype, are left out: a CLIP that was tuned in its
    matrices alone is not told from the original.
    """
    sha = hashlib.sha256()
    leaves = dict(nnx.to_flat_state(nnx.state(clip)))
    for path in _always_float32(clip.config):
        values = np.ascontiguousarray(leaves[path][...], "<f4")
        sha.update(f"{'.'.join(map(str, path))} {list(values.shape)}\n".encode())
        sha.update(values.data)
    return sha.hexdigest()


@functools.cache
def _always_float32(config: CLIPConfig) -> list[tuple[Any, ...]]:
    """Where these weights stand, in an order that does not depend on how the towers are written."""
    in_half = nnx.eval_shape(lambda: CLIP(config, jnp.float16, rngs=nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(in_half))
    return sorted((path for path, leaf in flat if leaf.dtype == jnp.float32), key=str)
