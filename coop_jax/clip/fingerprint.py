"""A digest that tells the weights of CLIPs apart, whatever file they came from."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from flax import nnx

from coop_jax.clip.features import FeatureSpace
from coop_jax.clip.model import CLIP

Path = tuple[Any, ...]
"""The place of a weight in the module."""


def fingerprint(clip: CLIP | FeatureSpace) -> str:
    """Return SHA-256, hexadecimal, of all weights and of what is computed with them.

    The same CLIP has the same fingerprint from OpenAI's, open_clip's and Hugging Face's files and
    in any compute dtype: where that rounds the weights, those in the file count, as long as none
    has been changed since.
    """
    weights = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(clip))}
    found = digest(weights)
    if clip.rounded_from and clip.rounded_from[0] == found:
        found = clip.rounded_from[1]
    config = json.dumps(_without_defaults(clip.config), sort_keys=True)
    return hashlib.sha256(f"{found} {config}".encode()).hexdigest()


def _without_defaults(config: Any) -> Any:
    """Return what a config says but for defaults: a new field leaves fingerprints as they are.

    The end token and the offsets of a crop are left out: makers of the same CLIP differ in them.
    """
    if not dataclasses.is_dataclass(config):
        return config
    values = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {
        field.name: _without_defaults(value)
        for field, value in values.items()
        if value != field.default and field.name not in ("end_token", "offsets")
    }


def digest(weights: Mapping[Path, Any]) -> str:
    """Return SHA-256, hexadecimal, of arrays as float32 by path.

    It depends neither on their order nor on how the towers are written.
    """

    def of(path: Path) -> bytes:
        values = np.ascontiguousarray(weights[path], "<f4")
        name = f"{'.'.join(map(str, path))} {list(values.shape)}\n"
        sha = hashlib.sha256(name.encode())
        sha.update(values.data)
        return sha.digest()

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        return hashlib.sha256(b"".join(pool.map(of, sorted(weights, key=str)))).hexdigest()
