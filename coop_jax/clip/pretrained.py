"""The names that open_clip has for pretrained weights, e.g. ViT-B-16/laion2b_s34b_b88k."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coop_jax.errors import InputError

TABLE = Path(__file__).parent.parent / "assets" / "open_clip_tags.json"
"""Written from open_clip itself by `tools/write_open_clip_tags.py`."""

QUICK_GELU = "-quickgelu"
"""The end of the names of open_clip's models with that activation."""


@dataclasses.dataclass(frozen=True)
class Tag:
    """The weights under one of open_clip's tags.

    Attributes:
        repository: on the Hugging Face hub.
        quick_gelu: whether they were trained with that activation, by a model of any name.
        pixels: what open_clip makes of pixels for this tag, whatever the repository says.
    """

    repository: str
    quick_gelu: bool
    pixels: Mapping[str, Any]

    def config(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """Return the repository's `open_clip_config.json` with the pixels of the tag.

        Raises:
            InputError: it says nothing of the model, or another activation than open_clip.
        """
        model = stated.get("model_cfg")
        if not isinstance(model, Mapping) or bool(model.get("quick_gelu")) != self.quick_gelu:
            raise InputError(
                f"{self.repository}: expected an open_clip_config.json with quick_gelu"
                f" {self.quick_gelu}, as open_clip has it for this tag, got {model!s:.80}; to take"
                f" the repository's word, name hf-hub:{self.repository}"
            )
        pixels = stated.get("preprocess_cfg")
        others = pixels if isinstance(pixels, Mapping) else {}
        return {**stated, "preprocess_cfg": {**others, **self.pixels}}


def find(name: str) -> Tag | None:
    """Return the tag that MODEL/TAG names; None if MODEL is no model of open_clip.

    Both are read as open_clip reads them: ViT-B/16 for ViT-B-16, and tags in any case.

    Raises:
        InputError: there is no tag, or the model has none of that name.
    """
    models = _table()["models"]
    model, _, tag = name.rpartition("/") if "/" in name else (name, "", "")
    model = model.replace("/", "-")
    tags = models.get(model.removesuffix(QUICK_GELU))
    if tags is None:
        return None
    if model.endswith(QUICK_GELU):
        tags = {known: entry for known, entry in tags.items() if entry.get("quick_gelu")}
    entry = dict(tags.get(tag.lower().replace("-", "_"), {}))
    if not entry:
        raise InputError(
            f"expected {model} with a tag of open_clip whose weights are on the hub,"
            f" {', '.join(tags) or 'of which it has none'}, got {tag or 'none'}; name e.g."
            f" {model}/{next(iter(tags), 'TAG')}"
        )
    repository, quick_gelu = entry.pop("repository"), entry.pop("quick_gelu", False)
    return Tag(repository, quick_gelu, {**_table()["usual"], **entry})


@functools.cache
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text("utf-8"))
