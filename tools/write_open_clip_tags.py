"""Write the table of open_clip's pretrained tags, from the open_clip that is installed.

    python tools/write_open_clip_tags.py

Of each tag with a repository on the Hugging Face hub it has that, whether the weights were trained
with QuickGELU, and what of the pixels differs from OpenAI's.
"""

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "coop_jax" / "assets" / "open_clip_tags.json"
PIXELS = ("mean", "std", "interpolation", "resize_mode")


def table() -> dict[str, Any]:
    """Return the settings that most tags have, and by model and tag those of all others."""
    from open_clip import pretrained  # pyright: ignore[reportMissingImports]

    usual = {key: pretrained._pcfg()[key] for key in PIXELS}
    models: dict[str, dict[str, Any]] = {}
    for model, tag in pretrained.list_pretrained():
        said = pretrained.get_pretrained_cfg(model, tag)
        # The -quickgelu models have the same tags; a tag without a repository is not known here.
        if model.endswith("-quickgelu") or not said["hf_hub"]:
            continue
        entry = {"repository": "/".join(said["hf_hub"].split("/")[:2])}
        entry |= {"quick_gelu": True} if said.get("quick_gelu") else {}
        entry |= {key: said[key] for key in PIXELS if said[key] != usual[key]}
        models.setdefault(model, {})[tag] = entry
    return json.loads(json.dumps({"usual": usual, "models": models}))


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=1) + "\n")
