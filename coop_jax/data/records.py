"""Datasets that TFDS has stored as ArrayRecord files, opened without TensorFlow."""

import contextlib
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Int32

from coop_jax.data.examples import Source
from coop_jax.errors import InputError

if TYPE_CHECKING:
    from tensorflow_datasets.core import DatasetBuilder

logger = logging.getLogger(__name__)

_LONG = 20_000
"""Records from which on reading all of them takes long enough to say so."""


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
            f"expected a dataset that TFDS has prepared in {path}, got {error}; remove the folder"
            " and prepare it again"
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

    Args:
        source: the records; each has `label` and the file feature.
        kept: the file, which is not written if its folder cannot be.
        file_feature: the feature that tells the image's file.

    Returns:
        Labels, and file names as strings.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        arrays = np.load(kept)
        if len(arrays["labels"]) == len(source):
            return arrays["labels"], arrays["file_names"]
    if len(source) >= _LONG:
        logger.info("reading the labels of %d records once, for %s", len(source), kept)
    rows = [_label_and_name(source[position], file_feature) for position in range(len(source))]
    labels = np.array([label for label, _ in rows], np.int32)
    file_names = np.array([name for _, name in rows], str)
    with contextlib.suppress(OSError):
        unfinished = kept.with_suffix(f".{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, labels=labels, file_names=file_names)
        unfinished.replace(kept)
    return labels, file_names


def _label_and_name(record: Mapping[str, Any], file_feature: str) -> tuple[int, str]:
    name = record[file_feature]
    return record["label"], name.decode() if isinstance(name, bytes) else name
