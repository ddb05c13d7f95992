"""From what the user names to files: a backbone, a folder, a file or a hub repository."""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.clip import pretrained, vocabulary
from coop_jax.errors import InputError
from coop_jax.reading import read_json

OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that does not take what is fetched from the hub."""

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

WEIGHTS = {
    "transformers": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    "open_clip": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
        "open_clip_pytorch_model.pth",
        "model.safetensors",
        "pytorch_model.bin",
    ),
}
"""The names of the weights in each maker's layout; the first that is there counts, as for them."""

CONFIGS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "open_clip_config.json",
)
TOKENIZER_FILES = vocabulary.FILES
INDEX = ".index.json"
HUB = "hf-hub:"
"""The beginning of open_clip's spelling of a hub id."""


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of one CLIP.

    Attributes:
        name: as it was named.
        weights: one file, or its shards.
        layout: whose config is beside them, "transformers" or "open_clip"; "" where a file was
            named, whose tensors tell.
        tokenizer: the folder of the tokenizer's files.
        tag: open_clip's, by which it was named.
    """

    name: str
    weights: tuple[Path, ...]
    layout: str
    tokenizer: Path
    tag: pretrained.Tag | None = None

    @property
    def folder(self) -> Path:
        """The folder of the weights."""
        return self.weights[0].parent

    def config(self, name: str) -> dict[str, Any]:
        """Return a config that lies beside the weights; {} where there is none.

        Raises:
            InputError: it is not JSON.
        """
        return read_json(self.folder / name)

    def open_clip_config(self) -> dict[str, Any]:
        """Return what open_clip says of the CLIP; {} where nothing is said.

        Raises:
            InputError: the file is not JSON, or contradicts the tag.
        """
        stated = self.config("open_clip_config.json")
        return self.tag.config(stated) if self.tag else stated

    def files(self) -> list[Path]:
        """Every file that the numbers depend on."""
        beside = (self.folder / name for name in CONFIGS)
        tokenizer = (self.tokenizer / name for name in TOKENIZER_FILES)
        return [*self.weights, *(path for path in (*beside, *tokenizer) if path.is_file())]


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


def repository(name: str) -> str:
    """Return the hub id of what a CLIP is called; the name itself where it has none."""
    if name in BACKBONES:
        return BACKBONES[name]
    with contextlib.suppress(InputError):
        if tag := pretrained.find(name):
            return tag.repository
    return name.removeprefix(HUB)


def resolve(name: str, tokenizer: str | Path | None = None) -> Source:
    """Find (and where needed fetch) the files of a CLIP.

    Args:
        name: "tiny" (the embedded one), a backbone name of the papers, a folder or a file, a hub
            id, "hf-hub:" and a hub id, or MODEL/TAG of open_clip, as `coop_jax.clip.load` has it.
        tokenizer: a folder with tokenizer files, where they do not lie beside the weights.

    Raises:
        InputError: nothing of that name, or files are missing.
    """
    path, tag = Path(os.path.expanduser(name)), None
    if name == EMBEDDED:
        folder, layout = EMBEDDED_FOLDER, ""
    elif name in BACKBONES:
        folder, layout = _fetched(BACKBONES[name], "open_clip"), "open_clip"
    elif os.path.isdir(path):
        folder, layout = path, ""
    elif os.path.isfile(path):
        return Source(name, (path,), "", _tokenizer(name, tokenizer or path.parent))
    elif tag := pretrained.find(name):
        folder, layout = _fetched(tag.repository, "open_clip"), "open_clip"
    elif name.startswith(HUB):
        folder, layout = _fetched(name.removeprefix(HUB), "open_clip"), "open_clip"
    elif (
        name.count("/") == 1
        and not name.startswith((".", "~", "/"))
        and path.suffix not in (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    ):
        folder, layout = _fetched(name, ""), ""
    else:
        raise InputError(
            f"expected a CLIP, {EMBEDDED}, {', '.join(BACKBONES)}, an existing folder or weights"
            " file, a hub id ORGANISATION/NAME, or MODEL/TAG of open_clip, got"
            f" {name!r:.80}; correct the name"
        )
    layout, first = _chosen(folder, _names_in(folder), layout)
    files = _shards(folder / first)
    return Source(name, files, layout, _tokenizer(name, tokenizer or folder), tag)


def _fetched(repository: str, layout: str) -> Path:
    """Return the folder of a repository's files, as far as a layout has them; "" for either.

    Raises:
        InputError: they cannot be fetched, or are not there.
    """
    wanted = ["open_clip_config.json"] if layout == "open_clip" else list(CONFIGS[:-1])
    folder = _snapshot(repository, [*wanted, *TOKENIZER_FILES])
    names = _names_on_hub(repository) or _names_in(folder)
    needs_config = layout == "open_clip" and repository not in BACKBONES.values()
    if needs_config and "open_clip_config.json" not in names:
        raise InputError(
            f"{repository}: expected open_clip_config.json, got {', '.join(sorted(names)):.300};"
            f" name {repository} for transformers' layout"
        )
    layout, first = _chosen(Path(repository), names, layout, _has_model_type(folder))
    wanted = [first, "open_clip_config.json"] if layout == "open_clip" else [first]
    folder = _snapshot(repository, wanted)
    return _snapshot(repository, _shard_names(folder / first)) if first.endswith(INDEX) else folder


def _snapshot(repository: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OF_DISK:
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"expected to fetch {repository!s:.80} from the hub, got {reason}; check the network"
            f" and the name ({EMBEDDED}, {', '.join(BACKBONES)}, or a hub id), or name a folder"
            " with its files"
        ) from error


def _names_on_hub(repository: str) -> set[str]:
    """Return the names of a repository's files; none without a network."""
    from huggingface_hub import HfApi

    try:
        return set(HfApi(library_name="coop_jax").list_repo_files(repository))
    except Exception:  # as many kinds as there are networks; what is cached may still do
        return set()


def _names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _has_model_type(folder: Path) -> bool:
    """Return True if `config.json` is of transformers; timm's says another thing."""
    return "model_type" in read_json(folder / "config.json")


def _chosen(
    folder: Path, names: set[str], layout: str, is_transformers: bool | None = None
) -> tuple[str, str]:
    """Return the layout of a folder, transformers' before open_clip's, and its file of weights.

    Args:
        folder: what an error names.
        names: of its files.
        layout: "" for any.
        is_transformers: whether it has a `config.json` of transformers; read from it by default.

    Raises:
        InputError: no weights with a config.
    """
    if is_transformers is None:
        is_transformers = _has_model_type(folder)
    layouts = [layout] if layout else ["transformers"] * is_transformers + ["open_clip"]
    for candidate in layouts:
        for name in WEIGHTS[candidate]:
            if name in names:
                return candidate, name
    kinds = {
        "transformers": "config.json with model.safetensors (or its shards) or pytorch_model.bin",
        "open_clip": "open_clip_config.json with open_clip_model.safetensors or"
        " open_clip_pytorch_model.bin",
    }
    expected = ", or ".join(kinds[kind] for kind in kinds if layout in ("", kind))
    got = ", ".join(sorted(names)) or "an empty folder"
    raise InputError(f"{folder}: expected {expected}, got {got:.300}; put both there")


def _shards(first: Path) -> tuple[Path, ...]:
    """Return the file itself or, if it is an index, the shards that it names.

    Raises:
        InputError: it is no index, or some of its shards are missing.
    """
    if not first.name.endswith(INDEX):
        return (first,)
    shards = _shard_names(first)
    absent = [shard for shard in shards if not os.path.isfile(first.parent / shard)]
    if absent:
        raise InputError(
            f"{first}: expected the files that it names beside it, got none of the name"
            f" {', '.join(map(repr, absent)):.200}; fetch them again"
        )
    return tuple(first.parent / shard for shard in shards)


def _shard_names(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    if isinstance(names, dict) and names:
        shards = list(names.values())
        if all(isinstance(shard, str) and shard and Path(shard).name == shard for shard in shards):
            return sorted(set(shards))
    raise InputError(
        f"{index}: expected a weight_map from names of tensors to files beside it, got"
        f" {names!r:.80}; fetch it again"
    )


def _tokenizer(name: str, folder: str | Path) -> Path:
    folder = Path(os.path.expanduser(folder))
    if not vocabulary.is_in(folder):
        raise InputError(
            f"expected a tokenizer for {name!s:.80}, {', '.join(vocabulary.WHOLE)}, or vocab.json"
            f" and merges.txt, in {folder!s:.80}, got none; copy them there from the model's"
            " repository or name their folder"
        )
    return folder


def check_once(repeated: Collection[str], path: Path) -> None:
    """Refuse tensors that an earlier file has as well.

    Raises:
        InputError: there are some.
    """
    if repeated:
        raise InputError(
            f"{path}: expected every tensor in one file, got {min(repeated)} in another one too;"
            " fetch them again"
        )


class SafetensorsFiles:
    """The tensors of one or several safetensors files, read one at a time.

    Attributes:
        metadata: what the headers say besides.
    """

    def __init__(self, paths: tuple[Path, ...]):
        from safetensors import safe_open

        self._open = safe_open
        self.metadata: dict[str, str] = {}
        self._file_of: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in paths:
            with self._reading(path) as file:
                self.metadata |= file.metadata() or {}
                check_once(self._file_of.keys() & set(file.keys()), path)
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
        """One tensor: of float16, bfloat16 or float32.

        Raises:
            InputError: its numbers are of another kind.
        """
        path = self._file_of[name]
        with self._reading(path) as file:
            if (kind := file.get_slice(name).get_dtype()) not in ("F16", "BF16", "F32"):
                raise InputError(
                    f"{path}: expected tensors of float16, bfloat16 or float32, got {name} of"
                    f" {kind}; convert it in PyTorch"
                )
            return file.get_tensor(name)
