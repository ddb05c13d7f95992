"""The tensors in weights files of any kind, under the names that a CLIP has by itself."""

import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coop_jax.clip import source
from coop_jax.clip.source import SafetensorsFiles
from coop_jax.clip.weights import Tensors
from coop_jax.errors import InputError

WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model|clip_model|clip)\.)+")
"""The names in front of a CLIP's own, where it was saved as a part of something else."""

ROOT = "logit_scale"
"""A tensor that every CLIP has at its root, whoever named the others."""

KEPT_POSITIONS = 20
"""The positions that LongCLIP takes from the first of its two tables."""


def open_files(paths: Sequence[Path]) -> Tensors:
    """Return the tensors of a file or of its shards, told apart by content: safetensors or torch.

    Names that a wrapper puts in front of all tensors of a CLIP (`module.`, `model.`,
    `clip_model.`, ...) are taken off, and what is not below them is left out. LongCLIP's two tables
    of positions become the one that its code adds up.

    Raises:
        InputError: a file is of neither kind or damaged, there are several CLIPs in it, or the
            extra `torch` is needed and absent.
    """
    kinds = {_is_safetensors(path) for path in paths}
    if kinds == {True}:
        tensors: Tensors = SafetensorsFiles(tuple(paths))
    else:
        from coop_jax.clip.torch_archive import TorchArchive

        tensors = Joined([TorchArchive(path) for path in paths], paths[0])
    return _one_table(_unwrapped(tensors, str(paths[0])))


def header(tensors: Tensors) -> Mapping[str, str]:
    """Return the metadata in the header of a safetensors file; of other files {}."""
    while isinstance(tensors, Renamed):
        tensors = tensors.inner
    return tensors.metadata if isinstance(tensors, SafetensorsFiles) else {}


class Joined:
    """The tensors of several files.

    Raises:
        InputError: a tensor is in two of them.
    """

    def __init__(self, files: Sequence[Tensors], where: Path):
        self._of: dict[str, Tensors] = {}
        for file in files:
            source.check_once(file.names() & self._of.keys(), where)
            self._of |= dict.fromkeys(file.names(), file)

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._of[name].shape(name)

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._of[name].read(name)


class Renamed:
    """The tensors whose names begin with a prefix, without it.

    Attributes:
        inner: the tensors, under their whole names.
    """

    def __init__(self, inner: Tensors, prefix: str):
        self.inner, self._prefix = inner, prefix

    def names(self) -> set[str]:
        """All tensor names, those of other tensors left out."""
        start = self._prefix
        return {name.removeprefix(start) for name in self.inner.names() if name.startswith(start)}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self.inner.shape(self._prefix + name)

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self.inner.read(self._prefix + name)


class LongTable(Renamed):
    """LongCLIP's tensors with one table of positions: the first rows of one, the rest of another.

    Its code adds the first table, zero behind `KEPT_POSITIONS`, and the second, zero before.
    """

    FIRST, SECOND = "positional_embedding", "positional_embedding_res"

    def __init__(self, inner: Tensors):
        super().__init__(inner, "")

    def names(self) -> set[str]:
        """All tensor names but the second table's."""
        return self.inner.names() - {self.SECOND}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        tensor = self.inner.read(name)
        if name != self.FIRST:
            return tensor
        rest = self.inner.read(self.SECOND)
        return np.concatenate([tensor[:KEPT_POSITIONS], rest[KEPT_POSITIONS:]])


def _one_table(tensors: Tensors) -> Tensors:
    tables = {LongTable.FIRST, LongTable.SECOND}
    if not tables <= tensors.names() or len({tensors.shape(name) for name in tables}) > 1:
        return tensors
    return LongTable(tensors)


def _unwrapped(tensors: Tensors, where: str) -> Tensors:
    prefixes = {name.removesuffix(ROOT) for name in tensors.names() if name.endswith(ROOT)}
    prefixes = {prefix for prefix in prefixes if not prefix or WRAPPERS.fullmatch(prefix)}
    if not prefixes or "" in prefixes:
        return tensors
    if len(prefixes) > 1:
        raise InputError(
            f"{where}: expected one CLIP, got one under each of {', '.join(sorted(prefixes))}; save"
            " the one that is meant by itself"
        )
    return Renamed(tensors, prefixes.pop())


def _beginning(path: Path) -> tuple[bytes, int]:
    """Return the first bytes of a file, and how many it has."""
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                return file.read(9), status.st_size
        got = "a folder, a pipe or a device"
    except OSError as error:
        got = error.strerror
    raise InputError(f"{path}: expected a file of weights, got {got}; fetch it again")


def _is_safetensors(path: Path) -> bool:
    """Tell the kind of a weights file by its first bytes.

    Raises:
        InputError: it is of no kind that holds weights.
    """
    start, size = _beginning(path)
    if len(start) == 9 and start[8:] == b"{":
        return True
    if start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        return False
    got = f"{size} bytes that begin with {start!r}" if size else "an empty file"
    advice = "fetch it again: it is truncated, damaged or of another kind"
    if start.startswith(b"version "):
        got, advice = "what Git LFS leaves in a large file's place", "run git lfs pull"
    raise InputError(
        f"{path}: expected a TorchScript archive, what torch.save wrote of tensors, or a"
        f" safetensors file, got {got}; {advice}"
    )
