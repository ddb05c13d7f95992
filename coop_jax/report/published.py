"""The papers' accuracies, to stand beside measured ones: `coop_jax/assets/published.json`."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Collection
from typing import Any

from coop_jax.results import Result

FROM_MEMORY = "memory_unverified"
"""The status of a number that nobody has checked against the paper."""

_CELL = ("method", "backbone", "shots", "dataset", "split")
_METHOD_SETTINGS = ("n_ctx", "class_token_position")


@dataclasses.dataclass(frozen=True)
class Published:
    """One published number: `value` in percent, how it was read (`status`), and where (`source`).

    `status` is "source_text", "source_image", "derived_from_source" or "memory_unverified",
    `source` a key of the file's sources; `note` says what else a reader must know.
    """

    value: float
    status: str
    source: str
    note: str | None = None

    @property
    def mark(self) -> str:
        """What stands before the number in a table: "~" from memory, "*" with a note."""
        return "~" if self.status == FROM_MEMORY else "*" if self.note else ""


def find(like: Result, *, protocol: str, dataset: str, split: str, shots: int) -> Published | None:
    """The papers' number for the method, its settings and the backbone of `like`, or None.

    A split that is not CoOp's ("test of TFDS") has none, nor have class-specific contexts and
    hand-crafted prompts other than the dataset's own. A result whose config does not say how its
    context began matches any beginning.
    """
    if like.class_specific:
        return None
    for record in _index().get((like.method, like.backbone, shots, dataset, split), ()):
        if record.get("protocol", protocol) == protocol and _has_settings(like, record):
            names = (field.name for field in dataclasses.fields(Published))
            return Published(**{name: record[name] for name in names if name in record})
    return None


def find_average(
    like: Result, *, protocol: str, datasets: Collection[str], split: str, shots: int
) -> Published | None:
    """As `find`, for the average over `datasets`, if those are the paper's."""
    if set(datasets) != set(_content()["averaged_over"].get(protocol, ())):
        return None
    return find(like, protocol=protocol, dataset="average", split=split, shots=shots)


def _has_settings(like: Result, record: dict[str, Any]) -> bool:
    if any(record.get(name, value) != value for name, value in _settings(like).items()):
        return False
    templates = like.config.get("templates")
    if like.prompt is not None and templates and "dataset" not in templates:
        return False
    method = like.config.get("method")
    begins = method.get("context_init") if isinstance(method, dict) else None
    wanted = record.get("context_init")
    return begins is None or wanted is None or begins.replace("_", " ").strip() == wanted


def _settings(like: Result) -> dict[str, Any]:
    return {name: getattr(like, name) for name in _METHOD_SETTINGS}


@functools.cache
def _content() -> dict[str, Any]:
    file = importlib.resources.files("coop_jax.assets") / "published.json"
    return json.loads(file.read_text("utf-8"))


@functools.cache
def _index() -> dict[tuple, list[dict[str, Any]]]:
    index: dict[tuple, list[dict[str, Any]]] = {}
    for record in _content()["numbers"]:
        index.setdefault(tuple(record[name] for name in _CELL), []).append(record)
    return index
