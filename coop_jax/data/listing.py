"""The files of a dataset and what they show, found before any image is read."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coop_jax.classes import spelled
from coop_jax.data import decoding
from coop_jax.errors import InputError
from coop_jax.printing import plural

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".heic", ".heif", ".hif"),
)
"""Endings of files that count as images; those of HEIF need pillow-heif."""

LEFTOVERS = frozenset(
    [
        *("__macosx", "icon\r"),
        *("thumbs.db", "thumbs.db:encryptable", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found"),
        *("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot"),
        *("picasa.ini", "zbthumbnail.info", "__pycache__"),
    ]
)
"""Files and folders of archives, servers and systems that nobody put there, in small letters."""


class Files(NamedTuple):
    """Image files of a split, relative to the listing's root, and the label of each."""

    paths: Sequence[str] = ()
    labels: Sequence[int] = ()


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a dataset.

    Attributes:
        root: the folder that the paths are relative to.
        class_names: name of every label, with spaces, as prompts use them.
        splits: files of "train", "val" and "test"; train and val may be empty.
        class_ids: what tells the classes from each other where their names do not.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, Files]
    class_ids: tuple[str, ...] = ()


def is_image(name: str) -> bool:
    """Return whether a file's name ends as an image's."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether there is a regular file or a link to one, not links in a circle."""
    with contextlib.suppress(OSError):
        return entry.is_file()
    return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether there is a folder or a link to one, not links in a circle."""
    with contextlib.suppress(OSError):
        return entry.is_dir()
    return False


def is_leftover(name: str) -> bool:
    """Return whether a file or folder is passed over: hidden, or no one's work (`LEFTOVERS`)."""
    lower = name.lower()
    return lower.startswith(".") or lower in LEFTOVERS or lower.endswith(":zone.identifier")


def warn_of_others(root: Path, others: Sequence[str]) -> None:
    """Say in one line what is passed over, if anything is."""
    if others:
        what = plural(
            len(others),
            "file or folder that is no image by its name",
            "files and folders that are no images by their names",
        )
        logger.warning("%s: passed over %s: %s", root, what, some(others))


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name; leftovers are passed over.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not is_leftover(entry.name)]
    except OSError as error:
        raise InputError(
            f"expected a folder {folder}, got an error ({error.strerror}); create it or put the"
            " images where it is"
        ) from error
    return sorted(shown, key=lambda entry: entry.name)


def read_split_file(path: Path, root: Path) -> Listing:
    """Read a CoOp-style split: JSON with lists train, val and test of [path, label, class name].

    Labels are numbered from 0; class names are those of the train list (protocol 2.4), and those of
    the other lists must be the same.

    Args:
        path: the JSON file.
        root: the folder that its paths are relative to.

    Raises:
        InputError: the file cannot be read, a row is not of that form, train or test is empty, the
            labels have gaps, or one label has two names.
    """
    try:
        content = json.loads(decoding.read(path).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected a split file {path} in JSON, got {error}; restore it or save it as UTF-8"
        ) from error
    if not (
        isinstance(content, dict)
        and {"train", "test"} <= set(content) <= set(SPLITS)
        and all(isinstance(rows, list) for rows in content.values())
    ):
        raise InputError(
            f"{path}: expected an object with the lists {', '.join(SPLITS)} alone, got"
            f" {str(content)[:80]}; write them (val may be left out)"
        )
    names: dict[int, str] = {}
    splits = {}
    for split in SPLITS:
        rows = content.get(split, [])
        for number, row in enumerate(rows):
            _check_row(row, f"{path}: {split}[{number}]")
            if split == "train":
                names.setdefault(row[1], row[2])
            if names.get(row[1], row[2]) != row[2]:
                raise InputError(
                    f"{path}: expected one name per label, got {names[row[1]]!r} and {row[2]!r} for"
                    f" label {row[1]}; correct one"
                )
        splits[split] = Files([row[0] for row in rows], [row[1] for row in rows])
    _check_labels(names, splits, str(path))
    return Listing(root, spelled(names[label] for label in sorted(names)), splits)


def _check_row(row: Any, place: str) -> None:
    if not (
        isinstance(row, list)
        and [type(part) for part in row] == [str, int, str]
        and row[0].strip()
        and row[1] >= 0
        and row[2].strip()
    ):
        raise InputError(
            f"{place}: expected [path, label, class name] with a label of at least 0, got"
            f" {str(row)[:80]}; correct the row"
        )


def _check_labels(names: dict[int, str], splits: dict[str, Files], place: str) -> None:
    for split in ("train", "test"):
        if not splits[split].paths:
            raise InputError(f"{place}: expected images in {split}, got an empty list; add some")
    if sorted(names) != list(range(len(names))):
        absent = (label for label in range(len(names)) if label not in names)
        raise InputError(
            f"{place}: expected training images of every label from 0 to {max(names)}, got none of"
            f" {next(absent)}; number the labels without gaps"
        )
    for split, files in splits.items():
        unknown = sorted(set(files.labels) - set(names))
        if unknown:
            shown = some([str(label) for label in unknown])
            raise InputError(
                f"{place}: expected labels from 0 to {len(names) - 1} in {split}, as in train, got"
                f" {shown}; add training images of them or remove the rows"
            )


def absent_files(root: Path, paths: Iterable[str]) -> list[str]:
    """Those of the paths that are no files below root."""
    return [path for path in paths if not os.path.isfile(root / path)]


def check_files(listing: Listing, place: str) -> Listing:
    """The listing itself, if every file that it names exists.

    Raises:
        InputError: files are absent; the message has their number and the first ones.
    """
    paths = [path for files in listing.splits.values() for path in files.paths]
    absent = absent_files(listing.root, paths)
    if absent:
        raise InputError(
            f"{place}: expected all of its {len(paths)} images in {listing.root}, got none for"
            f" {len(absent)} of them ({some(absent)}); restore the files or correct the split"
        )
    return listing


def label_array(files: Files) -> np.ndarray:
    """The labels as int32."""
    return np.asarray(files.labels, np.int32)


def some(values: Sequence[str], limit: int = 5) -> str:
    """The first values and the number of the others, for a message."""
    shown = ", ".join(values[:limit]) or "none"
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"
