"""A folder of images as people have them: which folders in it are splits, and which are classes."""

import dataclasses
import functools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from coop_jax.data.listing import (
    IMAGE_SUFFIXES,
    SPLITS,
    Files,
    entries_of,
    is_file,
    is_folder,
    is_image,
    some,
    warn_of_others,
)
from coop_jax.errors import InputError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names that people give the splits, in small letters."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The contents of a folder, without leftovers, sorted by name.

    Attributes:
        path: where it is.
        images: names of the image files.
        others: names of the other files.
        broken: names of what is called as an image but is no regular file, as a link to nothing.
        folders: the folders in it.
    """

    path: Path
    images: tuple[str, ...]
    others: tuple[str, ...]
    broken: tuple[str, ...]
    folders: tuple["Folder", ...]

    @property
    def name(self) -> str:
        """Its last name, read as UTF-8 whatever the locale's encoding is."""
        return os.fsencode(self.path.name).decode(errors="surrogateescape")

    @functools.cached_property
    def count(self) -> int:
        """The number of images in it and below it."""
        return len(self.images) + sum(folder.count for folder in self.folders)

    @property
    def filled(self) -> list["Folder"]:
        """The folders in it that have images."""
        return [folder for folder in self.folders if folder.count]

    @property
    def is_group(self) -> bool:
        """True where it has images, but none right in it."""
        return self.count > 0 and not self.images

    def paths(self, root: Path, kind: str) -> list[str]:
        """Paths, relative to root, of the "images", "others" or "broken" in it and below it."""
        return [
            f"{folder.path.relative_to(root).as_posix()}/{name}"
            for folder in self.walk()
            for name in getattr(folder, kind)
        ]

    def walk(self) -> Iterator["Folder"]:
        """Yield the folder and all below it, each before those in it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()


def scan(path: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Folder:
    """List a folder and all below it; links to folders are followed, but for those to one above.

    Raises:
        InputError: a folder cannot be listed.
    """
    images, others, broken, folders = [], [], [], []
    entries = entries_of(path)
    state = path.stat()
    above |= {(state.st_dev, state.st_ino)}
    for entry in entries:
        if is_folder(entry):
            found = entry.stat()
            if (found.st_dev, found.st_ino) not in above:
                folders.append(scan(path / entry.name, above))
        elif not is_image(entry.name):
            others.append(entry.name)
        else:
            (images if is_file(entry) else broken).append(entry.name)
    return Folder(path, tuple(images), tuple(others), tuple(broken), tuple(folders))


def files_of(root: Path, classes: Mapping[str, Iterable[tuple[Folder, int]]]) -> dict[str, Files]:
    """The image files in and below each split's folders, in order, with the folders' labels.

    What else is in the folders, but for leftovers, is warned of in one line.

    Raises:
        InputError: a folder has no image file, or what is called as one is none.
    """
    rows = {
        split: [(path, label) for one, label in labelled for path in one.paths(root, "images")]
        for split, labelled in classes.items()
    }
    every = [folder for labelled in classes.values() for folder, _ in labelled]
    _refuse_empty(every)
    broken = [path for folder in every for path in folder.paths(root, "broken")]
    if broken:
        raise InputError(
            f"expected image files in {root}, got links to nothing or no files: {some(broken)};"
            " restore them or move them away"
        )
    warn_of_others(root, [path for folder in every for path in folder.paths(root, "others")])
    return {
        split: Files([path for path, _ in found], [label for _, label in found])
        for split, found in rows.items()
    }


def split_of(name: str) -> str | None:
    """The split that people mean by a name, if any."""
    return next((split for split in SPLITS if name.lower() in SPLIT_NAMES[split]), None)


def arrange(path: Path) -> dict[str, list[Folder]]:
    """The class folders of every split of a folder; where it has no splits, those of "all".

    A split is a folder of a split's name (`SPLIT_NAMES`) that has folders with images; with images
    right in it, it is a class like any other. A folder that is alone in another stands for that
    one, as when an archive was unpacked twice. All that is below a class's folder is of the class.

    Raises:
        InputError: the folder cannot be listed, or it is not clear what the classes are.
    """
    root = _unwrapped(scan(path))
    named = {split: [] for split in SPLITS}
    for folder in root.filled:
        if split := split_of(folder.name):
            named[split].append(folder)
    alike = [folder for folders in named.values() for folder in folders]
    if all(any(folder.filled for folder in named[split]) for split in ("train", "test")):
        return _by_split(root, named)
    if any(folder.is_group for folder in alike):
        _refuse_part_of_a_split(root, alike)
    if alike and len(alike) == len(root.filled):
        _refuse_images_in_splits(root, alike)
    return {"all": _classes(root)}


def _unwrapped(folder: Folder) -> Folder:
    """The folder, or the innermost that is alone in it and has no images but in folders."""
    while not folder.images and len(folder.filled) == 1:
        (inner,) = folder.filled
        is_split = split_of(inner.name) and inner.name.lower() != folder.name.lower()
        if is_split or not inner.is_group:
            break
        folder = inner
    return folder


def _by_split(root: Folder, named: Mapping[str, Sequence[Folder]]) -> dict[str, list[Folder]]:
    folders = [folder for several in named.values() for folder in several]
    flat = [folder for folder in folders if not folder.filled]
    if flat:
        _refuse_images_in_splits(root, flat)
    doubled = [folder for several in named.values() if len(several) > 1 for folder in several]
    if doubled:
        raise InputError(
            f"{root.path}: expected one folder per split, got {_seen(doubled)}; put the images of"
            " one split into one folder"
        )
    others = [f"{other.name}/ ({_content(other)})" for other in root.filled if other not in folders]
    _warn_of_images_beside(root, folders, others)
    return {split: _classes(_unwrapped(one)) for split, several in named.items() for one in several}


def _classes(folder: Folder) -> list[Folder]:
    """The folders in a folder as its classes, each with all images in it and below it."""
    classes = list(folder.folders)
    if not classes:
        content = _counted(folder)
        seen = "an empty one" if content == "nothing" else f"none, but {content} right in it"
        raise InputError(
            f"expected a folder per class in {folder.path}, got {seen}; put each class's images"
            " into a folder of its name"
        )
    _refuse_empty(classes)
    if not any(one.images for one in classes) and not _are_wrapped(classes):
        _refuse_groups(folder, classes)
    _warn_of_images_beside(folder, classes)
    deep = [f"{one.name} ({_names(one.filled)})" for one in classes if one.filled]
    if deep:
        logger.warning(
            "%s: images in subfolders count for the class, too: %s", folder.path, some(deep)
        )
    return classes


def _are_wrapped(classes: Sequence[Folder]) -> bool:
    """Tell whether each folder holds a single one of its name, or all one of the same name."""
    inner = [[folder.name.lower() for folder in one.filled] for one in classes]
    own = [[one.name.lower()] for one in classes]
    same = len(classes) > 1 and len(inner[0]) == 1 and all(names == inner[0] for names in inner)
    return same or inner == own


def _refuse_empty(classes: Sequence[Folder]) -> None:
    empty = [one for one in classes if not one.count]
    if empty:
        raise InputError(
            f"expected image files ({', '.join(IMAGE_SUFFIXES)}) in every class's folder of"
            f" {empty[0].path.parent}, got {_seen(empty)}; add images, convert other files to JPEG"
            " or PNG, or move away a folder that is no class"
        )


def _refuse_part_of_a_split(root: Folder, named: Sequence[Folder]) -> NoReturn:
    group = next(folder.path for folder in named if folder.is_group)
    raise InputError(
        f"{root.path}: expected a folder train and a folder test, each with a folder per class, got"
        f" {_seen(root.folders)}; add what is missing; or name {group} as the dataset, to have it"
        f" cut into train, val and test; or, if {group.name} is a class, move its images out of the"
        " subfolders"
    )


def _refuse_images_in_splits(root: Folder, flat: Sequence[Folder]) -> NoReturn:
    raise InputError(
        f"{root.path}: expected a folder per class in {_names(flat)}, got images right in"
        f" {_seen(flat)}; put each class's images into a folder of its name, as"
        f" {flat[0].name}/cat; or list the images in a .csv with the columns path, label and, for"
        " splits, split"
    )


def _refuse_groups(folder: Folder, classes: Sequence[Folder]) -> NoReturn:
    inner = [f"{one.name}/{deep.name} ({deep.count})" for one in classes for deep in one.filled]
    raise InputError(
        f"{folder.path}: expected images right in each class's folder, got none there, but"
        f" {folder.count} one folder deeper, in the subfolders {some(inner, 8)}; if these are the"
        f" classes, move them up into {folder.path}; if the classes are {_names(classes)}, move the"
        " images up; or list the images in a .csv with the columns path and label"
    )


def _warn_of_images_beside(
    folder: Folder, used: Sequence[Folder], others: Sequence[str] = ()
) -> None:
    """Say which images and folders of images are neither in a class nor in a split."""
    beside = [*others, *folder.images]
    if beside:
        logger.warning(
            "%s: passed over images beside the folders %s: %s",
            *(folder.path, _names(used), some(beside)),
        )


def _seen(folders: Sequence[Folder]) -> str:
    """Each folder's name, with a few words for what is in it."""
    return some([f"{folder.name} ({_content(folder)})" for folder in folders])


def _content(folder: Folder) -> str:
    inside = f" in the subfolders {_names(folder.filled)}" if folder.is_group else ""
    return f"{_counted(folder)}{inside}"


def _counted(folder: Folder) -> str:
    """The number of images, or else of what other files there are, by ending."""
    if folder.count:
        return f"{folder.count} image{'s' * (folder.count > 1)}"
    names = [name for one in folder.walk() for name in (*one.others, *one.broken)]
    endings = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names)
    return ", ".join(f"{count} {ending}" for ending, count in endings.most_common(3)) or "nothing"


def _names(folders: Sequence[Folder]) -> str:
    return some([folder.name for folder in folders])
