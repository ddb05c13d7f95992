"""TFDS builders that write ArrayRecord files without TensorFlow: digits and image folders."""

import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from coop_jax.data.sampling import split_by_class
from coop_jax.errors import InputError

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

Example = dict[str, Any]


class _LocalBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What both builders share: one layout of features, records in the order of the generators."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Without this, TFDS 4.9.10 looks for checksums with a package that it
    # does not require (tensorflow/datasets#11212).
    url_infos = None

    class_names: Sequence[str]

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=list(self.class_names)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )


class Digits(_LocalBuilder, skip_registration=True):
    """scikit-learn's 1,797 handwritten digits as 8x8 greyscale PNG images.

    A pixel is round(value * 255 / 16). Every class is split 50 / 20 / 30 % into train, val and test
    by the fallback rule of protocol section 2.1. `file_name` is the four-digit index in
    `load_digits` and ".png".
    """

    class_names = DIGIT_NAMES

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Example]]]:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        train, val, test = split_by_class(labels, (0.5, 0.2))
        splits = {"train": train, "val": val, "test": test}
        return {
            split: self._generate_examples(pixels, labels, indices)
            for split, indices in splits.items()
        }

    def _generate_examples(
        self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, Example]]:
        for index in indices.tolist():
            encoded = io.BytesIO()
            Image.fromarray(pixels[index]).save(encoded, "PNG")
            yield (
                index,
                {
                    "image": encoded.getvalue(),
                    "label": int(labels[index]),
                    "file_name": f"{index:04d}.png",
                },
            )


class ImageFolder(_LocalBuilder, skip_registration=True):
    """A folder `root/{train,test[,val]}/<class>/*.jpg`, its files stored bit for bit.

    Labels number the class folders of `train` in sorted order. Without a `val` folder there are no
    validation images. `file_name` is the path relative to `root`. The dataset's name
    ends in a hash of the files' names, sizes and modification times, so a changed folder is stored
    anew.
    """

    def __init__(self, *, root: str | os.PathLike[str], **kwargs: Any):
        """Look at the folder's listing; nothing is read or written yet.

        Args:
            root: the folder.
            **kwargs: those of a TFDS builder, e.g. `data_dir`.

        Raises:
            InputError: if the layout is not the one above.
        """
        self._folder = scan_folder(root)
        self.class_names = self._folder.classes
        # TFDS declares the name per class; a folder's own name keeps its files apart from others'.
        self.name = self._folder.name  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Example]]]:
        return {
            split: self._generate_examples(files)
            for split, files in self._folder.splits.items()
            if files
        }

    def _generate_examples(self, files: Sequence[str]) -> Iterator[tuple[int, Example]]:
        labels = {name: label for label, name in enumerate(self._folder.classes)}
        for key, file_name in enumerate(files):
            yield (
                key,
                {
                    "image": (self._folder.root / file_name).read_bytes(),
                    "label": labels[Path(file_name).parts[1]],
                    "file_name": file_name,
                },
            )


class Folder(NamedTuple):
    """What an image folder holds, and the TFDS name it is stored under.

    `splits` has paths relative to `root`, by class, sorted.
    """

    root: Path
    name: str
    classes: tuple[str, ...]
    splits: dict[str, list[str]]


def scan_folder(root: str | os.PathLike[str]) -> Folder:
    """List an image folder.

    Args:
        root: a folder `root/{train,test[,val]}/<class>/<image file>`; hidden files and files that
            do not end like an image are passed over.

    Returns:
        Classes and files, as `ImageFolder` stores them.

    Raises:
        InputError: if `train` or `test` is missing or empty, a class has no training image, or
            another split has a class that train lacks.
    """
    root = Path(root).resolve()
    files = {split: _list_split(root, split) for split in ("train", "val", "test")}
    classes = tuple(sorted(files["train"]))
    for split, found in files.items():
        if unknown := sorted(set(found) - set(classes)):
            raise InputError(
                f"expected in {root / split} only classes that {root / 'train'} has, got also "
                f"{', '.join(unknown)}; add training images of them or remove the folders"
            )
    splits = {
        split: [f for name in classes for f in found.get(name, ())]
        for split, found in files.items()
    }
    return Folder(root, _dataset_name(root, splits), classes, splits)


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Write a dataset's ArrayRecord files unless they exist, and open them.

    Nothing goes over the network for the builders of this module, nothing is printed unless stderr
    is a terminal, and a failed or interrupted build leaves no dataset behind.

    Args:
        builder: a TFDS builder.

    Returns:
        A builder that reads the files on disk.

    Raises:
        InputError: if the data directory cannot be written.
    """
    path = Path(builder.data_path)
    if not path.exists():
        try:
            with _quiet(), tempfile.TemporaryDirectory() as downloads:
                builder.download_and_prepare(
                    download_dir=downloads,
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                    file_format="array_record",
                )
        except OSError as error:
            another_process_was_first = path.exists()
            if not another_process_was_first:
                raise InputError(
                    f"expected to write the dataset to {path}, got {error}; "
                    "name another data directory or make room there"
                ) from error
    return tfds.builder_from_directory(path)


def _list_split(root: Path, split: str) -> dict[str, list[str]]:
    folder = root / split
    if not folder.is_dir():
        if split == "val":
            return {}
        raise InputError(
            f"expected an image folder {root} with train/<class>/ and test/<class>/, "
            f"got no {folder}; create it or name another folder"
        )
    found = {
        entry.name: sorted(
            file.relative_to(root).as_posix()
            for file in entry.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        )
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".")
    }
    broken = [name for files in found.values() for name in files if not (root / name).is_file()]
    if broken:
        raise InputError(
            f"expected image files in {folder}, got links to nothing: {', '.join(broken)}; restore"
            " or remove them"
        )
    empty = [name for name, files in found.items() if not files]
    if split != "val" and (empty or not found):
        raise InputError(
            f"expected image files ({', '.join(IMAGE_SUFFIXES)}) in {folder}/<class>/, got none"
            f"{' for ' + ', '.join(empty) if empty else ''}; add images or remove the class folder"
        )
    return {name: files for name, files in found.items() if files}


def _dataset_name(root: Path, splits: dict[str, list[str]]) -> str:
    digest = hashlib.sha256()
    for split, files in splits.items():
        for file in files:
            status = (root / file).stat()
            digest.update(f"{split}\0{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    readable = re.sub(r"[^a-z0-9]+", "_", root.name.lower())[:40].strip("_")
    return f"image_folder_{readable}_{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    interactive = sys.stderr.isatty()
    tfds.display_progress_bar(interactive)
    with contextlib.redirect_stdout(sys.stderr if interactive else io.StringIO()):
        yield
