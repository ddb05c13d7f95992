"""A user's own images: a folder, a table, or a CoOp-style split; nothing to program."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from coop_jax.classes import spelled
from coop_jax.data import decoding, folders, parts
from coop_jax.data.listing import (
    SPLITS,
    Files,
    Listing,
    check_files,
    read_split_file,
    some,
)
from coop_jax.errors import InputError
from coop_jax.printing import escaped


def read(path: Path, class_names: Path | None = None) -> Listing:
    """List a user's images.

    Args:
        path: one of
            a folder `{train,test[,val]}/<class>/*.jpg`, where the splits may have the other names
            that `folders.SPLIT_NAMES` has;
            a folder `<class>/*.jpg`, which `parts.cut` splits about 50 / 20 / 30 %;
            a `.csv` with the columns `path`, `label` and, if it is split already, `split`;
            a `.json` with lists train, val and test of [path, label, class name].
            Paths in files are relative to the file's folder, and stay in it (links are followed);
            those of a `.csv`, which people write themselves, may be absolute.
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
    else:
        listing, labels = _folder(path)
    if class_names is not None:
        names = _read_class_names(class_names, labels)
        listing = Listing(listing.root, names, listing.splits)
    return listing


def _folder(root: Path) -> tuple[Listing, list[str]]:
    classes = folders.arrange(root)
    is_cut = "all" in classes
    labels = [folder.name for folder in classes["all" if is_cut else "train"]]
    for found in classes.values():
        unknown = sorted({folder.name for folder in found} - set(labels))
        if unknown:
            raise InputError(
                f"expected in {found[0].path.parent} only classes that train has, got also"
                f" {some(unknown)}; add training images of them or move the folders away"
            )
    number = {label: index for index, label in enumerate(labels)}
    numbered = {
        split: [(folder, number[folder.name]) for folder in found]
        for split, found in classes.items()
    }
    files = folders.files_of(root, numbered)
    if is_cut:
        files = parts.cut(root, files["all"], labels, str(root))
    splits = {split: files.get(split, Files()) for split in SPLITS}
    return Listing(root, spelled(labels), splits), labels


def _table(path: Path) -> tuple[Listing, list[str]]:
    columns, rows = _read_rows(path)
    labels = sorted({row["label"] for row in rows if row["split"] in ("train", "all")})
    unknown = sorted({row["label"] for row in rows} - set(labels))
    if unknown:
        raise InputError(
            f"{path}: expected training images of every label, got none of {some(unknown)};"
            " add some or leave out the lines"
        )
    number = {label: index for index, label in enumerate(labels)}
    files = {}
    for split in SPLITS if "split" in columns else ("all",):
        chosen = [row for row in rows if row["split"] == split]
        numbers = [number[row["label"]] for row in chosen]
        files[split] = Files([row["path"] for row in chosen], numbers)
    for split, found in files.items():
        if split != "val" and not found.paths:
            of_split = f" of split {split}" * ("split" in columns)
            raise InputError(f"{path}: expected images{of_split}, got none; add lines")
    check_files(Listing(path.parent, (), files), str(path))
    if "all" in files:
        files = parts.cut(path.parent, files["all"], labels, str(path))
    return Listing(path.parent, spelled(labels), files), labels


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows of a table, without the spaces around names and values.

    A row without a split has the split "all".
    """
    try:
        file = io.StringIO(decoding.read(path).decode("utf-8-sig"), newline="")
        reader = csv.reader(file)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"expected a table {path}, got {error}; save it as UTF-8 CSV") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    columns = lines[0][1] if lines else []
    named = escaped(", ".join(columns))
    if not {"path", "label"} <= set(columns):
        raise InputError(
            f"{path}: expected the columns path, label and perhaps split, got"
            f" {named or 'none'}; write them into the first line, separated by commas"
        )
    rows = []
    for number, cells in lines[1:]:
        row = dict(zip(columns, cells, strict=False))
        complete = len(cells) == len(columns) and row["path"] and row["label"]
        split = folders.split_of(row["split"]) if "split" in row else "all"
        if not complete or split is None:
            raise InputError(
                f"{path}:{number}: expected {named}, not empty (a split is one of"
                f" {', '.join(SPLITS)}), got {cells}; correct the line, with quotes around a value"
                " that has a comma"
            )
        rows.append(row | {"split": split})
    return columns, rows


def _read_class_names(path: Path, labels: Sequence[str]) -> tuple[str, ...]:
    try:
        lines = decoding.read(path).decode("utf-8-sig").splitlines()
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
    return spelled(names[label] for label in labels)
