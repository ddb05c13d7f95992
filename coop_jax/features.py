"""Image features: encoded in large batches, since a frozen tower gives each image one feature."""

import collections
import contextlib
import functools
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from coop_jax import parallel
from coop_jax.clip import CLIP
from coop_jax.clip.preprocess import normalize
from coop_jax.errors import InputError

PixelsOf = Callable[
    [Int[np.ndarray, " images"], int], Iterable[UInt8[np.ndarray, "batch size size 3"]]
]

BATCH_SIZE = 256
"""Images that the frozen tower takes at once, over all devices, where nobody says otherwise."""

AHEAD = 2
"""Batches that the device may work on while the host makes the next."""


@functools.lru_cache(maxsize=8)
def compile_encoder(graphdef: nnx.GraphDef[CLIP], mesh: Mesh) -> Callable[..., Array]:
    """A jitted `encode(state, pixels)`: uint8 pixels, split over the mesh, to float32 features."""

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
    pixels_of: PixelsOf,
    count: int,
    mesh: Mesh,
    *,
    batch_size: int = BATCH_SIZE,
) -> Float[np.ndarray, "images embedding"]:
    """Unnormalised float32 features of `count` images.

    Every batch is padded with black images to the same number, one that the mesh can split evenly,
    and their features are dropped; so there is one compilation. With several processes, each makes
    the pixels for its own devices, and all get all features.

    Args:
        clip: the frozen CLIP.
        pixels_of: from image numbers to their pixels, in batches of at most the given size.
        count: number of images.
        mesh: the devices.
        batch_size: images at once, over all devices.
    """
    graphdef, state = nnx.split(clip)
    encoder = compile_encoder(graphdef, mesh)
    state = parallel.put(state, parallel.replicated(mesh))
    rows = batch_size + parallel.padding(batch_size, mesh)
    own = [
        np.arange(start, min(start + rows, count))[parallel.own_rows(rows)]
        for start in range(0, count, rows)
    ]
    size = rows // jax.process_count()
    batches = iter(pixels_of(np.concatenate([np.zeros(0, int), *own]), size))
    image_size = clip.config.vision.image_size
    nothing = np.zeros((0, image_size, image_size, 3), np.uint8)
    found: list[np.ndarray] = []
    pending: collections.deque[Array] = collections.deque()

    def collect(leave: int) -> None:
        while len(pending) > leave:
            found.append(np.asarray(pending.popleft()))

    for numbers in own:
        pixels = next(batches) if len(numbers) else nothing
        if len(pixels) < size:
            pixels = np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))
        pending.append(encoder(state, parallel.put_rows(pixels, mesh)))
        collect(leave=AHEAD)
    collect(leave=0)
    return np.concatenate([np.zeros((0, clip.config.embedding), np.float32), *found])[:count]


class Cache:
    """Features on disk, each array under the digest of all that it depends on.

    Files are written beside their place and renamed, so that several processes may share a folder.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder).expanduser()

    def get(
        self, key: str, make: Callable[[], Float[np.ndarray, "images embedding"]]
    ) -> Float[np.ndarray, "images embedding"]:
        """What is kept under `key` (hexadecimal), or else what `make` makes, which is then kept.

        Of several processes that train together all make it, unless all find it, and the first
        keeps it.

        Raises:
            InputError: the folder cannot be written.
        """
        path = self._folder / key[:2] / f"{key}.npy"
        found = None
        with contextlib.suppress(OSError, ValueError, EOFError):
            found = np.load(path)
        if parallel.all_agree(found is not None):
            assert found is not None
            return found
        made = make()
        if parallel.is_first():
            self._keep(path, made)
        return made

    def _keep(self, path: Path, made: Float[np.ndarray, "images embedding"]) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{uuid.uuid4().hex}.unfinished")
            with unfinished.open("wb") as file:
                np.save(file, made)
            unfinished.replace(path)
        except OSError as error:
            raise InputError(
                f"expected a folder for features that can be written, got {self._folder}"
                f" ({error.strerror}); make room there or name another"
            ) from error
