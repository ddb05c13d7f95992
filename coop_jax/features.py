"""Image features: encoded in large batches, since a frozen tower gives each image one feature."""

import collections
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from coop_jax import parallel
from coop_jax.clip import CLIP
from coop_jax.clip.preprocess import normalize

AHEAD = 2
"""Batches that the device may work on while the host makes the next."""


@functools.lru_cache(maxsize=8)
def _encoder(graphdef: nnx.GraphDef[CLIP], mesh: Mesh):
    def encode(state: nnx.State, pixels: Array) -> Array:
        clip = nnx.merge(graphdef, state)
        images = normalize(pixels, clip.config.mean, clip.config.std)
        return clip.encode_image(images).astype(jnp.float32)

    return jax.jit(
        encode,
        in_shardings=(parallel.replicated(mesh), parallel.over_data(mesh, 0)),
        out_shardings=parallel.replicated(mesh),
    )


def encode(
    clip: CLIP,
    batches: Iterable[UInt8[np.ndarray, "batch size size 3"]],
    mesh: Mesh,
    *,
    batch_size: int = 256,
) -> Float[np.ndarray, "images embedding"]:
    """Unnormalised float32 features of a stream of pixel batches of at most `batch_size` images.

    Every batch is padded with black images to the same number, one that the mesh can split evenly,
    and their features are dropped; so there is one compilation.
    """
    graphdef, state = nnx.split(clip)
    encoder = _encoder(graphdef, mesh)
    state = parallel.put(state, parallel.replicated(mesh))
    rows = batch_size + parallel.padding(batch_size, mesh)
    found: list[np.ndarray] = []
    pending: collections.deque[tuple[Array, int]] = collections.deque()

    def collect(leave: int) -> None:
        while len(pending) > leave:
            features, count = pending.popleft()
            found.append(np.asarray(features)[:count])

    for pixels in batches:
        count = len(pixels)
        pixels = np.pad(pixels, [(0, rows - count), (0, 0), (0, 0), (0, 0)])
        pending.append((encoder(state, pixels), count))
        collect(leave=AHEAD)
    collect(leave=0)
    return np.concatenate([np.zeros((0, clip.config.embedding), np.float32), *found])
