"""Datasets that TFDS has stored as ArrayRecord files, opened without TensorFlow."""

import contextlib
import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Int32

from coop_jax import writing
from coop_jax.data.examples import Source
from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

logger = logging.getLogger(__name__)

_LONG = 20_000
"""Records from which on reading all of them takes long enough to say so."""


_told: set[Path] = set()
"""Copies of which it is said already that they are damaged."""


class Checked:
    """Records of a copy, as they were written; where one is not, the original, and a line says so.

    ArrayRecord keeps a hash of every block and compares it with what it reads. What is compared
    besides is the image that the record says it is of: files may be exchanged.
    """

    def __init__(
        self,
        source: Source,
        copy: Path,
        *,
        original: Source | None = None,
        names: Sequence[str] | np.ndarray | None = None,
        file_feature: str = "file_name",
    ):
        """Compare nothing yet.

        Args:
            source: the records.
            copy: their folder, for messages.
            original: the same images, where they are.
            names: file name of every record, if that is known.
            file_feature: the feature that tells it.
        """
        self._source, self._copy, self._original = source, copy, original
        self._names, self._feature = names, file_feature

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        try:
            record = self._source[index]
            name = _text(record[self._feature])
            if self._names is None or name == self._names[index]:
                return record
            reason = f"the image {name} in place of {self._names[index]}"
        except Exception as error:  # ArrayRecord and TFDS raise many kinds
            reason = f"{type(error).__name__}: {one_line(error):.200}"
        expected = f"{self._copy}: expected its records as they were written, got {reason}"
        if self._original is None:
            raise MachineError(f"{expected}; remove the folder and prepare it again")
        if self._copy not in _told:
            _told.add(self._copy)
            logger.warning(
                "%s; the originals of damaged ones are read instead, until `coop_jax prepare` has"
                " made the copy again",
                expected,
            )
        return self._original[index]


class Records:
    """Chosen records of several sources, one behind the other; may be pickled and shared."""

    def __init__(self, sources: Sequence[Source], positions: Int[np.ndarray, " chosen"]):
        """`positions` count through all the sources, from 0."""
        self._sources, self._positions = tuple(sources), positions
        self._starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        position = self._positions[index]
        part = int(np.searchsorted(self._starts, position, "right")) - 1
        return self._sources[part][int(position - self._starts[part])]


def open_copy(path: Path) -> "DatasetBuilder":
    """A builder that reads the files that TFDS has written to a folder.

    Args:
        path: the folder of a version, e.g. `data_dir/dtd/3.0.1`.

    Raises:
        InputError: the folder cannot be read, or its files are no ArrayRecord files.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # TFDS raises many kinds
        raise InputError(
            f"expected a dataset that TFDS has prepared in {path}, got {one_line(error):.300};"
            " remove the folder and prepare it again"
        ) from error
    formats = [found.value for found in builder.info.available_file_formats()]
    if "array_record" not in formats:
        raise InputError(
            f"expected ArrayRecord files in {path}, got {', '.join(formats) or 'none'}; remove the"
            " folder and prepare it again, or convert it with"
            f" `tfds convert_format --dataset_version_dir={path}"
            " --out_file_format=array_record`"
        )
    return builder


def open_split(builder: "DatasetBuilder", split: str) -> Source:
    """Random access to the records of a split; images stay encoded."""
    import tensorflow_datasets as tfds

    features: Any = builder.info.features
    decoders = {
        name: tfds.decode.SkipDecoding()
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Image)
    }
    # TFDS's decorator hides the method's parameters from the type checker.
    as_data_source: Any = builder.as_data_source
    return as_data_source(split, decoders=decoders, file_format="array_record")


def index(
    source: Source, kept: Path, file_feature: str = "file_name"
) -> tuple[Int32[np.ndarray, " records"], np.ndarray]:
    """Label and file name of every record, kept in a file so that all are read only once.

    The file has a digest of itself. A damaged one is made again, and a line says so.

    Args:
        source: the records; each has `label` and the file feature.
        kept: the file, which is not written if its folder cannot be.
        file_feature: the feature that tells the image's file.

    Returns:
        Labels, and file names as strings.
    """
    if kept.is_file() or kept.is_dir():
        with contextlib.suppress(Exception):  # damaged archives raise many kinds
            arrays = dict(np.load(io.BytesIO(kept.read_bytes()), allow_pickle=False))
            labels, names = arrays["labels"], arrays["file_names"]
            if arrays["sha256"] == _digest(labels, names) and len(labels) == len(source):
                return labels, names
        logger.warning("%s: expected it as it was written, got damage; it is made again", kept)
    if len(source) >= _LONG:
        logger.info("reading the labels of %d records once, for %s", len(source), kept)
    labels, names = rows(source, file_feature)
    file = io.BytesIO()
    np.savez(file, labels=labels, file_names=names, sha256=np.array(_digest(labels, names)))
    writing.remove_unfinished(kept.parent, shared=True)
    with contextlib.suppress(OSError):
        writing.write_whole(kept, file.getvalue())
    return labels, names


def rows(
    source: Source, file_feature: str = "file_name"
) -> tuple[Int32[np.ndarray, " records"], np.ndarray]:
    """Label and file name of every record, all of which are read."""
    records = (source[position] for position in range(len(source)))
    pairs = [(record["label"], _text(record[file_feature])) for record in records]
    labels = np.array([label for label, _ in pairs], np.int32)
    return labels, np.array([name for _, name in pairs], str)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _digest(labels: np.ndarray, names: np.ndarray) -> str:
    said = f"{labels.dtype} {labels.shape} {names.dtype} {names.shape} ".encode()
    return hashlib.sha256(said + labels.tobytes() + names.tobytes()).hexdigest()
