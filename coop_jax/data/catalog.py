"""Every dataset the package knows, in one table, and random access to its images."""

import contextlib
import dataclasses
import io
import os
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int, Int32
from PIL import Image

from coop_jax.data import builders
from coop_jax.errors import InputError


class ImageCache:
    """Decoded images kept in memory, first come, first kept, up to a number of bytes.

    Safe to use from threads; pickled and copied without its contents.
    """

    def __init__(self, limit: int = 256 * 2**20):
        """Start empty; `limit` is in bytes of decoded pixels."""
        self._limit = limit
        self._used = 0
        self._images: dict[int, Image.Image] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageCache"], tuple[int]]:
        return ImageCache, (self._limit,)

    def get(self, key: int) -> Image.Image | None:
        """The image kept under `key`, if any."""
        return self._images.get(key)

    def offer(self, key: int, image: Image.Image) -> None:
        """Keep the image if it is new and fits."""
        size = image.width * image.height * len(image.getbands())
        with self._lock:
            if key not in self._images and self._used + size <= self._limit:
                self._images[key] = image
                self._used += size


@dataclass(frozen=True)
class Examples:
    """Random access to encoded images and their labels: one split, or a part of it.

    Attributes:
        source: records with `image` (encoded bytes) and `file_name` (bytes).
        split: the split's name, for messages.
        labels: label of every example.
        file_names: file of every example, relative to the dataset's root, or an id.
        indices: where every example is in `source`.
        cache: decoded images, shared with every subset.
    """

    source: Sequence[Mapping[str, Any]] = field(repr=False)
    split: str
    labels: Int32[np.ndarray, " examples"] = field(repr=False)
    file_names: np.ndarray = field(repr=False)
    indices: Int[np.ndarray, " examples"] = field(repr=False)
    cache: ImageCache = field(default_factory=ImageCache, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Int[np.ndarray, " chosen"] | Sequence[int]) -> "Examples":
        """The examples at `indices` (positions in this object), in that order; may repeat.

        Raises:
            InputError: if an index is outside [0, len(self)).
        """
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise InputError(
                f"expected indices from 0 to {len(self) - 1} into the {self.split} split, "
                f"got {chosen.min()} to {chosen.max()}; choose from the examples there are"
            )
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            file_names=self.file_names[chosen],
            indices=self.indices[chosen],
        )

    def image(self, index: int) -> Image.Image:
        """Decode an example with Pillow, in the mode of its file.

        The image may be shared with other threads and later calls: do not modify it in place.

        Raises:
            InputError: if Pillow cannot decode the bytes; names the file and the split.
        """
        key = int(self.indices[index])
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        record = self.source[key]
        image = _decode(record["image"], str(self.file_names[index]), self.split)
        self.cache.offer(key, image)
        return image


@dataclass(frozen=True)
class Dataset:
    """A dataset with the three splits of the protocol.

    Attributes:
        name: the catalogue's name, or that of the image folder.
        class_names: name of every label, with spaces, as prompts use them.
        templates: hand-crafted prompts with `{}` for the class name; the first is the dataset's
            own.
        train: training examples.
        val: validation examples; may be empty.
        test: test examples.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples


@dataclass(frozen=True)
class Row:
    """What the catalogue says of a dataset.

    Attributes:
        builder: makes the TFDS builder, given `data_dir`.
        templates: hand-crafted prompts with `{}` for the class name.
    """

    builder: Callable[..., tfds.core.DatasetBuilder]
    templates: tuple[str, ...]


DATASETS: dict[str, Row] = {
    "digits": Row(builders.Digits, ('a photo of the number: "{}".',)),
}


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Open a dataset, writing its ArrayRecord files first if they do not exist yet.

    Args:
        name: a name in `DATASETS`, or the path of an image folder
            `root/{train,test[,val]}/<class>/*.jpg` (see `builders.ImageFolder`; without a `val`
            folder the validation split is empty).
        data_dir: where datasets are stored; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` by default.

    Returns:
        Class names (underscores replaced by spaces, protocol 2.4), templates and the three splits.

    Raises:
        InputError: if there is no such dataset, a folder's layout cannot be used, or the data
            directory cannot be written.
    """
    row = DATASETS.get(name)
    if row is None:
        row = _folder_row(name)
        name = Path(name).resolve().name
    builder = builders.prepare(row.builder(data_dir=data_dir))
    features: Any = builder.info.features
    class_names = tuple(name.replace("_", " ") for name in features["label"].names)
    train, val, test = (_open(builder, split) for split in ("train", "val", "test"))
    return Dataset(name, class_names, row.templates, train, val, test)


def _folder_row(name: str) -> Row:
    if not Path(name).is_dir():
        raise InputError(
            f"expected a dataset's name ({', '.join(sorted(DATASETS))}) or the path of an image "
            f'folder, got "{name}"; choose a name of the list or an existing folder'
        )
    return Row(partial(builders.ImageFolder, root=name), ("a photo of a {}.",))


def _open(builder: tfds.core.DatasetBuilder, split: str) -> Examples:
    if split not in builder.info.splits:
        return Examples((), split, np.zeros(0, np.int32), np.zeros(0, str), np.zeros(0, np.int64))
    # TFDS's decorator hides the method's parameters from the type checker.
    as_data_source: Any = builder.as_data_source
    source = as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    labels, file_names = _index(source, Path(builder.data_path) / f"index-{split}.npz")
    return Examples(source, split, labels, file_names, np.arange(len(labels)))


def _index(source: Sequence[Mapping[str, Any]], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and file names, kept in a file so that only the first opening reads every record."""
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        kept = np.load(path)
        return kept["labels"], kept["file_names"]
    rows = [(record["label"], _text(record["file_name"])) for record in source]
    labels = np.array([label for label, _ in rows], np.int32)
    file_names = np.array([name for _, name in rows])
    with contextlib.suppress(OSError):
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        with unfinished.open("wb") as file:
            np.savez(file, labels=labels, file_names=file_names)
        unfinished.replace(path)
    return labels, file_names


def _decode(encoded: bytes, file_name: str, split: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # Pillow's decoders raise many kinds
        raise InputError(
            f"expected a readable image in {file_name} of the {split} split, got {len(encoded)} "
            f"bytes that Pillow cannot decode ({error}); replace or remove the file"
        ) from error
    return image


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
