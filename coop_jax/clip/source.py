"""From what the user names to files: a backbone, a folder, a file or a hub repository."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.clip import vocabulary
from coop_jax.errors import InputError

BACKBONES = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
    "ViT-B/32": "timm/vit_base_patch32_clip_224.openai",
    "ViT-B/16": "timm/vit_base_patch16_clip_224.openai",
    "ViT-L/14": "timm/vit_large_patch14_clip_224.openai",
    "ViT-L/14@336px": "timm/vit_large_patch14_clip_336.openai",
}
"""The papers' backbone names and the hub repositories that publish OpenAI's weights for them."""

OPENAI_FILES = {re.sub("[/@]", "-", name) + ".pt": name for name in BACKBONES}
"""The files that OpenAI's code downloads, e.g. ViT-L-14-336px.pt, and whose weights they are."""

EMBEDDED = "tiny"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "assets" / "tiny_clip"

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "preprocessor_config.json", "open_clip_config.json")
TOKENIZER_FILES = vocabulary.FILES


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of one CLIP. `config` is None where OpenAI's tensor names tell everything."""

    name: str
    weights: tuple[Path, ...]
    config: Path | None
    tokenizer: Path

    def files(self) -> list[Path]:
        """Every file that the numbers depend on."""
        beside = (self.weights[0].parent / name for name in CONFIGS)
        tokenizer = (self.tokenizer / name for name in TOKENIZER_FILES)
        return [*self.weights, *(path for path in (*beside, *tokenizer) if path.is_file())]


def _hub_folder(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    open_clip = repository in BACKBONES.values()
    wanted = (
        [OPEN_CLIP_WEIGHTS, "open_clip_config.json"]
        if open_clip
        else ["config.json", "preprocessor_config.json", "model*.safetensors", INDEX]
    )
    try:
        folder = snapshot_download(repository, allow_patterns=[*wanted, *TOKENIZER_FILES])
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"could not fetch {repository} from the hub ({reason}); check the network and the name"
            f" ({EMBEDDED}, {', '.join(BACKBONES)}, or a hub id), or name a folder with its files"
        ) from error
    return Path(folder)


def backbone(name: str) -> str:
    """Name a CLIP: OpenAI's file by its backbone's name, others by the last part of a path.

    Where a folder or file lies is nobody else's matter. A backbone of the papers and a hub id are
    as they were named.
    """
    if name in (EMBEDDED, *BACKBONES):
        return name
    path = os.path.abspath(os.path.expanduser(name))
    last = os.path.basename(path)
    return OPENAI_FILES.get(last, last if os.path.exists(path) else name)


def resolve(name: str, tokenizer: str | Path | None = None) -> Source:
    """Find (and where needed fetch) the files of a CLIP.

    Args:
        name: "tiny" (the embedded one), a backbone name of the papers, a folder (Hugging Face
            CLIP, or open_clip's), a `.safetensors` or `.pt` file with OpenAI's names, or the hub
            id of a Hugging Face CLIP.
        tokenizer: a folder with tokenizer files, where they do not lie beside the weights.

    Raises:
        InputError: nothing of that name, or files are missing.
    """
    path = Path(os.path.expanduser(name))
    if name == EMBEDDED:
        folder = EMBEDDED_FOLDER
    elif name in BACKBONES:
        folder = _hub_folder(BACKBONES[name])
    elif os.path.isdir(path):
        folder = path
    elif os.path.isfile(path):
        return Source(name, (path,), None, _tokenizer(name, tokenizer or path.parent))
    elif (
        name.count("/") == 1
        and not name.startswith((".", "~", "/"))
        and path.suffix not in (".pt", ".safetensors")
    ):
        folder = _hub_folder(name)
    else:
        raise InputError(
            f"unknown CLIP {name!r}: expected {EMBEDDED}, {', '.join(BACKBONES)}, an existing"
            " folder or weights file, or a hub id ORGANISATION/NAME"
        )
    weights, config = _weights(folder)
    return Source(name, weights, config, _tokenizer(name, tokenizer or folder))


def _weights(folder: Path) -> tuple[tuple[Path, ...], Path | None]:
    if (folder / OPEN_CLIP_WEIGHTS).is_file():
        return (folder / OPEN_CLIP_WEIGHTS,), None
    config = folder / "config.json"
    if config.is_file() and (folder / INDEX).is_file():
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if absent:
            raise InputError(f"{folder}: shards {', '.join(absent)} are missing; fetch them again")
        return tuple(folder / shard for shard in shards), config
    if config.is_file() and (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,), config
    raise InputError(
        f"{folder}: expected config.json with {WEIGHTS} (or its shards), or {OPEN_CLIP_WEIGHTS};"
        f" got {', '.join(sorted(entry.name for entry in folder.iterdir())) or 'an empty folder'}"
    )


def _tokenizer(name: str, folder: str | Path) -> Path:
    folder = Path(folder).expanduser()
    if not vocabulary.is_in(folder):
        raise InputError(
            f"no tokenizer for {name}: expected {', '.join(vocabulary.WHOLE)}, or vocab.json and"
            f" merges.txt, in {folder}; copy them there from the model's repository or name their"
            " folder"
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; {} where there is no such file.

    Raises:
        InputError: the file is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON, but {error}; fetch the file again") from error


class SafetensorsFiles:
    """The tensors of one or several safetensors files, read one at a time."""

    def __init__(self, paths: tuple[Path, ...]):
        from safetensors import safe_open

        self._open = safe_open
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            with self._reading(path) as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    self._file_of[name] = path
                    self._shapes[name] = tuple(file.get_slice(name).get_shape())

    @contextlib.contextmanager
    def _reading(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError

        try:
            with self._open(path, framework="np") as file:
                yield file
        except SafetensorError as error:
            raise InputError(
                f"{path}: expected a safetensors file, but it is truncated or damaged ({error});"
                " fetch it again"
            ) from error

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        with self._reading(self._file_of[name]) as file:
            return file.get_tensor(name)
