"""Checkpoint tensors to a CLIP and back: everything filled, all checked."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from coop_jax.clip.config import CLIPConfig, ViTConfig
from coop_jax.clip.fingerprint import digest
from coop_jax.clip.model import CLIP
from coop_jax.clip.naming import namings, slots, transformers_namings
from coop_jax.errors import InputError

IGNORED = ("position_ids", "num_batches_tracked", "attn_mask")
LISTED = 8
"""Tensors that do not fit which an error names."""
IGNORED_NAMES = {"input_resolution", "context_length", "vocab_size"}


class Tensors(Protocol):
    """A mapping from tensor names to arrays, read one at a time: the loader reads from it."""

    def names(self) -> set[str]:
        """All tensor names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        ...


def build(tensors: Tensors, config: CLIPConfig, dtype: DTypeLike, where: str) -> CLIP:
    """A CLIP of this config filled from the tensors.

    Raises:
        InputError: tensors are missing, unknown or of another shape; the first are listed.
    """
    abstract = nnx.eval_shape(lambda: CLIP(config, dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    flat = dict(nnx.to_flat_state(state))
    patch = config.vision.patch_size if isinstance(config.vision, ViTConfig) else 0
    present = tensors.names()
    table = slots(config, namings(present, config), flat)
    if flat.keys() != {slot.path for slot in table}:
        first = ", ".join(sorted(present)[:3]) or "none"
        raise InputError(
            f"{where}: expected the tensors of the towers that its config describes, got others"
            f" ({first:.200}, ...); use a complete, unmodified checkpoint with its own config"
        )
    problems = [
        f"{name}: unknown"
        for name in sorted(present - {slot.name for slot in table} - IGNORED_NAMES)
        if not name.endswith(IGNORED)
    ]
    # Nothing is allocated before all shapes fit: a damaged config may state huge ones.
    shapes = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in flat.items()}
    for slot in table:
        place = slot.place(shapes[slot.path])
        if slot.name not in present:
            problems.append(f"{slot.name}: missing")
            continue
        expected, got = slot.checkpoint_shape(place.shape, patch), tensors.shape(slot.name)
        leading = len(got) - len(expected)
        if got[leading:] != expected or math.prod(got[:leading]) != 1:
            problems.append(f"{slot.name}: expected {list(expected)}, got {list(got)}")
    if problems:
        others = [f"and {len(problems) - LISTED} more"] * (len(problems) > LISTED)
        raise InputError(
            f"{where}: expected the tensors of a CLIP of these dimensions, got {len(problems)} that"
            f" do not fit ({'; '.join([*problems[:LISTED], *others])}); use a complete, unmodified"
            " checkpoint with its own config"
        )
    values = {path: np.empty(leaf.shape, np.float32) for path, leaf in flat.items()}
    for slot in table:
        place = slot.place(values[slot.path])
        place[...] = slot.to_module(np.asarray(tensors.read(slot.name)), place.shape)
    rounded = {path: values[path].astype(leaf.dtype, copy=False) for path, leaf in flat.items()}
    filled = [(path, leaf.replace(jax.device_put(rounded[path]))) for path, leaf in flat.items()]
    clip = nnx.merge(graphdef, nnx.from_flat_state(filled))
    if dtype != jnp.float32:
        clip.rounded_from = digest(rounded), digest(values)
    return clip


def transformers_tensors(clip: CLIP) -> dict[str, np.ndarray]:
    """The weights under transformers' names, as `model.safetensors` of a CLIP folder holds them."""
    flat = dict(nnx.to_flat_state(nnx.state(clip)))
    vision = clip.config.vision
    if not isinstance(vision, ViTConfig):
        raise InputError(
            "expected a ViT image tower, as transformers' CLIP has, got a ResNet; keep its files"
        )
    return {
        slot.name: np.array(
            slot.to_checkpoint(slot.place(np.asarray(flat[slot.path][...])), vision.patch_size),
            order="C",
        )
        for slot in slots(clip.config, transformers_namings(clip.config), flat)
    }
