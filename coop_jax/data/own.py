"""A user's own images: a folder, a table, or a CoOp-style split; nothing to program."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coop_jax.data.listing import (
    SPLITS,
    Files,
    Listing,
    check_files,
    class_folders,
    labelled_folders,
    read_split_file,
    some,
    spoken,
)
from coop_jax.data.sampling import split_by_class
from coop_jax.errors import InputError

LEAST_IMAGES = 4
OTHER_NAMES_OF_VAL = ("valid", "validation", "dev")
FRACTIONS = (0.5, 0.2)
"""Train's and val's share of every class where the user gives no split (protocol 2.1)."""


def read(path: Path, class_names: Path | None = None) -> Listing:
    """List a user's images.

    Args:
        path: one of
            a folder `{train,test[,val]}/<class>/*.jpg`;
            a folder `<class>/*.jpg`, which is split 50 / 20 / 30 % per class;
            a `.csv` with the columns `path`, `label` and, if it is split already, `split`;
            a `.json` with lists train, val and test of [path, label, class name].
            Paths in files are relative to the file's folder.
        class_names: a text file that says how prompts spell the classes, one line "label class
            name" per class, where the label is the folder's name, the CSV's label or the JSON's
            number (separated by a tab if it has spaces). Without it, labels are the names.

    Raises:
        InputError: the layout is not one of these, an image is absent, train or test is empty, or
            the class-name file does not name exactly the classes.
    """
    if path.suffix.lower() == ".json":
        listing = check_files(read_split_file(path, path.parent), str(path))
        labels = [str(number) for number in range(len(listing.class_names))]
    elif path.suffix.lower() == ".csv":
        listing, labels = _table(path)
    elif path.is_file():
        raise InputError(f"expected a folder, a .csv or a .json, got the file {path}; choose one")
    elif (path / "train").is_dir() or (path / "test").is_dir():
        listing, labels = _split_folder(path)
    else:
        folders = class_folders(path)
        labels = [folder.name for folder in folders]
        numbered = [(folder, label) for label, folder in enumerate(folders)]
        files = labelled_folders(path, {"all": numbered})["all"]
        listing = Listing(path, spoken(labels), _cut(files, labels, str(path)))
    if class_names is not None:
        names = _read_class_names(class_names, labels)
        listing = Listing(listing.root, names, listing.splits)
    return listing


def _split_folder(root: Path) -> tuple[Listing, list[str]]:
    folders = {
        split: class_folders(root / split)
        for split in SPLITS
        if split != "val" or (root / split).is_dir()
    }
    misnamed = [name for name in OTHER_NAMES_OF_VAL if (root / name).is_dir()]
    if misnamed and "val" not in folders:
        raise InputError(
            f"expected validation images in {root / 'val'}, got a folder {misnamed[0]}; rename it"
            " to val or move it away"
        )
    labels = [folder.name for folder in folders["train"]]
    for split, found in folders.items():
        unknown = sorted({folder.name for folder in found} - set(labels))
        if unknown:
            raise InputError(
                f"expected in {root / split} only classes that {root / 'train'} has, got also "
                f"{some(unknown)}; add training images of them or remove the folders"
            )
    numbers = {name: number for number, name in enumerate(labels)}
    splits = labelled_folders(
        root,
        {
            split: [(folder, numbers[folder.name]) for folder in folders.get(split, ())]
            for split in SPLITS
        },
    )
    return Listing(root, spoken(labels), splits), labels


def _table(path: Path) -> tuple[Listing, list[str]]:
    columns, rows = _read_rows(path)
    is_split = "split" in columns
    labels = sorted({row["label"] for row in rows if row.get("split", "train") == "train"})
    unknown = sorted({row["label"] for row in rows} - set(labels))
    if unknown:
        raise InputError(
            f"{path}: expected training images of every label, got none of {some(unknown)};"
            " add some or remove the lines"
        )
    number = {label: index for index, label in enumerate(labels)}

    def files(split: str | None) -> Files:
        chosen = [row for row in rows if split is None or row["split"] == split]
        return Files([row["path"] for row in chosen], [number[row["label"]] for row in chosen])

    splits = (
        {split: files(split) for split in SPLITS}
        if is_split
        else _cut(files(None), labels, str(path))
    )
    for split in ("train", "test"):
        if not splits[split].paths:
            raise InputError(f"{path}: expected images of split {split}, got none; add lines")
    return check_files(Listing(path.parent, spoken(labels), splits), str(path)), labels


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a table, without the spaces around names and values."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"expected a table {path}, got {error}; save it as UTF-8 CSV") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    columns = lines[0][1] if lines else []
    if not {"path", "label"} <= set(columns):
        raise InputError(
            f"{path}: expected the columns path, label and perhaps split, got"
            f" {', '.join(columns) or 'none'}; write them into the first line, separated by commas"
        )
    rows = []
    for number, cells in lines[1:]:
        row = dict(zip(columns, cells, strict=False))
        complete = len(cells) == len(columns) and row["path"] and row["label"]
        if not complete or row.get("split", "test") not in SPLITS:
            raise InputError(
                f"{path}:{number}: expected {', '.join(columns)}, not empty (a split is one of"
                f" {', '.join(SPLITS)}), got {cells}; correct the line, with quotes around a value"
                " that has a comma"
            )
        rows.append(row)
    return columns, rows


def _cut(files: Files, labels: Sequence[str], place: str) -> dict[str, Files]:
    """Cut files without a split into train, val and test, class by class."""
    if not labels:
        raise InputError(f"{place}: expected images, got none; add lines")
    counts = np.bincount(files.labels)
    least = int(counts.argmin())
    if counts[least] < LEAST_IMAGES:
        raise InputError(
            f"{place}: expected at least {LEAST_IMAGES} images of every class, to cut them into"
            f" train, val and test, got {counts[least]} of {labels[least]}; add images or make the"
            " split yourself"
        )
    parts: list[list[int]] = [part.tolist() for part in split_by_class(files.labels, FRACTIONS)]
    return {
        split: Files([files.paths[i] for i in part], [files.labels[i] for i in part])
        for split, part in zip(SPLITS, parts, strict=True)
    }


def _read_class_names(path: Path, labels: Sequence[str]) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a class-name file {path}, got {error}; restore it or save it as UTF-8"
        ) from error
    rows = [line.strip().split("\t" if "\t" in line else None, 1) for line in lines if line.strip()]
    faulty = [row[0] for row in rows if len(row) != 2]
    if faulty:
        raise InputError(
            f"{path}: expected lines 'label class name', got only {faulty[0]!r}; write the class"
            " name behind it"
        )
    named = [label.strip() for label, _ in rows]
    missing, unknown = sorted(set(labels) - set(named)), sorted(set(named) - set(labels))
    doubled = sorted(label for label, count in Counter(named).items() if count > 1)
    if missing or unknown or doubled:
        raise InputError(
            f"{path}: expected one line for each of the {len(labels)} labels, got none for"
            f" {some(missing)}, other labels: {some(unknown)}, more than one line for"
            f" {some(doubled)}; correct the lines, with a tab behind a label that has spaces"
        )
    names = {label.strip(): name.strip() for label, name in rows}
    return spoken(names[label] for label in labels)
