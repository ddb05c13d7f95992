"""CoOp's class names, shipped for datasets that do not bring them and to check those that do."""

import functools
import importlib.resources
import json
from typing import Any

from coop_jax.classes import spelled


def shipped(dataset: str) -> tuple[str, ...]:
    """The class names of a dataset of the papers in label order, with spaces (protocol 2.4).

    ImageNet's variants have ImageNet's; ImageNet-A and -R use 200 of them.
    """
    names = _names().get(dataset) or _names()["imagenet"]
    return spelled(names.values() if isinstance(names, dict) else names)


def imagenet() -> dict[str, str]:
    """CoOp's names of ImageNet's classes by wnid, in label order."""
    return dict(_names()["imagenet"])


@functools.cache
def _names() -> dict[str, Any]:
    file = importlib.resources.files("coop_jax.assets") / "class_names.json"
    return json.loads(file.read_text(encoding="utf-8"))
