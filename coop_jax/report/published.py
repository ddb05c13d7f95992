"""The papers' accuracies, to stand beside measured ones: `coop_jax/assets/published.json`."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

from coop_jax import assets
from coop_jax.classes import spelled
from coop_jax.data.official import OFFICIAL
from coop_jax.results import Result

FROM_MEMORY = "memory_unverified"
"""The status of a number that nobody has checked against the paper."""

_CELL = ("method", "backbone", "shots", "dataset", "split")
_METHOD_SETTINGS = ("n_ctx", "class_token_position")
_SOURCE = {"cross_dataset": "imagenet", "domain_generalization": "imagenet"}
"""The dataset that a protocol trains on, if not on what it evaluates."""


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
        """Return what stands before the number in a table: "~" from memory, "*" with a note."""
        return "~" if self.status == FROM_MEMORY else "*" if self.note else ""


def find(
    results: Sequence[Result],
    *,
    protocol: str,
    dataset: str,
    split: str,
    shots: int,
    averaged: Collection[str] = (),
) -> Published | None:
    """The papers' number for the same as these results of one method, or None.

    None unless each result is of a dataset of the papers, whole and by its catalogue name, with
    the papers' prompt or trained as they train; so a split that is not CoOp's ("test of TFDS") and
    class-specific contexts have none. With `averaged`, the datasets of an average, the number is
    the papers' average over the same.
    """
    averages = assets.read_json("published.json")["averaged_over"]
    if averaged and set(averaged) != set(averages.get(protocol, ())):
        return None
    like, name = results[0], "average" if averaged else dataset
    for record in _index().get((like.method, like.backbone, shots, name, split), ()):
        if record.get("protocol", protocol) == protocol and all(
            _has_settings(result, record) and _is_comparable(result, _SOURCE.get(protocol))
            for result in results
        ):
            names = (field.name for field in dataclasses.fields(Published))
            return Published(**{name: record[name] for name in names if name in record})
    return None


def _is_comparable(result: Result, source: str | None) -> bool:
    """Return whether a result is of the papers' images and classes, and learned as they learn."""
    from coop_jax import presets  # brings JAX, which --help can do without

    row, config = OFFICIAL.get(result.dataset), result.config
    if row is None or result.dataset not in (config.get("dataset"), *config.get("targets", ())):
        return False
    base = -(-row.n_classes // 2)
    n_classes = {"base": base, "new": row.n_classes - base}.get(result.split, row.n_classes)
    is_whole = result.split in ("base", "new") or result.n_examples == row.sizes[-1]
    is_precise = config.get("clip", {}).get("dtype") in presets.PRECISIONS
    if result.n_classes != n_classes or not is_whole or not is_precise:
        return False
    return result.prompt is not None or (
        result.trained_on == config["dataset"] == (source or result.dataset)
        and not result.settings.get("class_specific")
        and presets.trains_as_published(config, result.method)
    )


def _has_settings(result: Result, record: dict[str, Any]) -> bool:
    if result.prompt is not None:
        return result.prompt == record.get("prompt", OFFICIAL[result.dataset].template)
    settings = {name: result.settings.get(name) for name in _METHOD_SETTINGS}
    settings["context_init"] = context_init(result)
    return all(record.get(name, value) == value for name, value in settings.items())


def context_init(result: Result) -> str:
    """The phrase that the context began with; "" for none."""
    return spelled([str(result.settings.get("context_init", ""))])[0].strip()


@functools.cache
def _index() -> dict[tuple, list[dict[str, Any]]]:
    index: dict[tuple, list[dict[str, Any]]] = {}
    for record in assets.read_json("published.json")["numbers"]:
        index.setdefault(tuple(record[name] for name in _CELL), []).append(record)
    return index
