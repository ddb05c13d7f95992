"""The readers that `fuzz.py` feeds, by name."""

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from coop_jax.errors import InputError, MachineError
from fuzzing import clips, data, records
from fuzzing.inputs import Target

LONGEST = 5_000
"""Characters of the longest message that a reader may refuse something with."""

TARGETS: dict[str, Callable[[Path], Target]] = {
    "split": data.split,
    "csv": data.table,
    "class_names": data.class_names,
    "features": data.features,
    "image": data.image,
    "index": data.index,
    "results": records.results,
    "saved": records.saved,
    "safetensors": clips.safetensors,
    "torch": clips.torch_file,
    "pickle": clips.pickle,
    "official": records.official,
    "hugging_face_config": clips.hugging_face_config,
    "open_clip_config": clips.open_clip_config,
    "clip": clips.clip,
    "tokenizer": clips.tokenizer,
    "command": records.command,
    "setting": records.setting,
    "program": records.program,
}
"""A function for each, of a folder for its files."""

NEED_TORCH = ("torch", "pickle", "official")
"""What needs torch; the others are for every environment."""


def names() -> list[str]:
    """Return the targets that can run here: some need torch."""
    has_torch = importlib.util.find_spec("torch") is not None
    return [name for name in TARGETS if has_torch or name not in NEED_TORCH]


def open_target(name: str, folder: Path) -> Target:
    """Return a target that writes its files into a folder; refusals are no crashes."""
    target = TARGETS[name](folder)

    def run(content: bytes) -> None:
        try:
            with contextlib.redirect_stdout(None):
                target.run(content)
        except (InputError, MachineError) as error:
            if len(str(error)) > LONGEST:
                raise AssertionError(f"a message of {len(str(error))} characters") from error

    return target._replace(run=run)
