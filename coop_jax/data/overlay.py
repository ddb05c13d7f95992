"""The papers' datasets from TFDS's catalogue, with CoOp's split and class names laid over."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32

from coop_jax.classes import Classes, spelled
from coop_jax.data import class_names, layouts, records
from coop_jax.data.examples import Dataset, Examples, Source
from coop_jax.data.listing import SPLITS, Files, read_split_file, some
from coop_jax.data.official import Catalogued, Official
from coop_jax.data.sampling import FRACTIONS, split_by_class
from coop_jax.errors import InputError
from coop_jax.printing import plural

logger = logging.getLogger(__name__)

ORIGIN = "TFDS"
"""Whose the images are, and whose split it is where CoOp's is absent."""

IMAGENET_FOLDER = "imagenet"


def load(name: str, row: Official, data_dir: Path) -> Dataset:
    """Open a dataset that TFDS has prepared, as CoOp has it.

    Labels, class names, order and file names are those of CoOp's split file where it is in the
    dataset's `$DATA` folder, and its absence is warned of; ImageNet and its variants need none.

    Raises:
        InputError: there is no prepared copy, it cannot be read, or it and the split file do not
            have the same images.
    """
    if row.tfds is None or not (data_dir / row.tfds.folder).is_dir():
        raise absent(name, row, data_dir)
    copy = _open(row.tfds, data_dir / row.tfds.folder)
    if row.split_file is None:
        dataset = _by_wnid(name, row, copy, data_dir)
    elif (data_dir / row.folder / row.split_file.name).is_file():
        split = data_dir / row.folder / row.split_file.name
        dataset = _as_split_file(name, row, copy, split)
    else:
        dataset = _as_tfds(name, row, copy, data_dir / row.folder / row.split_file.name)
    return dataset


def absent(name: str, row: Official, data_dir: Path) -> InputError:
    """The error that a dataset is at none of its places."""
    layout = f"{data_dir / row.folder / row.images} (CoOp's DATASETS.md)"
    if row.tfds is None:
        return InputError(
            f"expected {name} in {layout}, got no such folder; put it there, or name another data"
            " directory (data_dir): TFDS has no images of it that would do"
        )
    return InputError(
        f"expected {name} in {layout} or {data_dir / row.tfds.folder} (TFDS), got neither; put it"
        f" there, or run `coop_jax prepare {name} --data-dir={data_dir}`, or name"
        " another data directory (data_dir)"
    )


@dataclass(frozen=True)
class _Copy:
    """All the splits of a prepared dataset that CoOp's come from, one behind the other."""

    place: Path
    sources: Sequence[Source]
    splits: np.ndarray
    labels: Int32[np.ndarray, " records"]
    label_names: tuple[str, ...]
    paths: np.ndarray

    def examples(self, split: str, positions: np.ndarray, labels: np.ndarray) -> Examples:
        """The records at these positions, in this order; `labels` are those of all records."""
        source = records.Records(self.sources, positions)
        chosen = labels[positions].astype(np.int32)
        return Examples(source, split, chosen, self.paths[positions], np.arange(len(positions)))

    def relabelled(self, new: Sequence[int]) -> Int[np.ndarray, " records"]:
        """The labels, each replaced by its new one."""
        return np.asarray(new, np.int64)[self.labels]

    def sorted_split(self, tfds_split: str, labels: np.ndarray) -> Int[np.ndarray, " chosen"]:
        """Positions of a TFDS split's records whose label is not -1, by label and path."""
        chosen = np.flatnonzero((self.splits == tfds_split) & (labels >= 0))
        return chosen[np.lexsort((self.paths[chosen], labels[chosen]))]


def _open(row: Catalogued, place: Path) -> _Copy:
    builder = records.open_copy(place)
    features: Any = builder.info.features
    label_names = tuple(features["label"].names)
    tfds_splits = [split for split in dict.fromkeys(row.splits) if split]
    lacking = sorted(set(tfds_splits) - set(builder.info.splits))
    if lacking:
        raise InputError(
            f"expected the splits {', '.join(tfds_splits)} in {place}, got none of"
            f" {', '.join(lacking)}; remove the folder and prepare it again"
        )
    sources, splits, labels, paths = [], [], [], []
    for split in tfds_splits:
        source = records.open_split(builder, split)
        found, files = records.index(source, place / f"index-{split}.npz", row.file_feature)
        sources.append(source)
        splits += [split] * len(found)
        labels.append(found)
        paths += [
            row.path(split, label_names[label], file)
            for label, file in zip(found.tolist(), files.tolist(), strict=True)
        ]
    return _Copy(
        place, sources, np.array(splits), np.concatenate(labels), label_names, np.array(paths)
    )


def _as_split_file(name: str, row: Official, copy: _Copy, split_file: Path) -> Dataset:
    assert row.tfds is not None
    listing = read_split_file(split_file, copy.place)
    # TFDS lower-cases the names of Caltech's folders.
    places = {path.lower(): place for place, path in enumerate(copy.paths.tolist())}
    found = {
        split: np.array([places.get(path.lower(), -1) for path in files.paths], np.int64)
        for split, files in listing.splits.items()
    }
    _check_missing(row.tfds, copy, split_file, listing.splits, found)
    parts = {}
    for split, positions in found.items():
        files, there = listing.splits[split], positions >= 0
        labels = np.asarray(files.labels, np.int32)[there]
        source = records.Records(copy.sources, positions[there])
        paths = np.array(files.paths, str)[there]
        parts[split] = Examples(source, split, labels, paths, np.arange(len(labels)))
    _check_labels(copy, split_file, found, listing.splits)
    place = f"TFDS copy {copy.place}"
    return Dataset(
        name,
        Classes(listing.class_names),
        (row.template,),
        **parts,
        place=place,
        pixels_from=ORIGIN,
    )


def _check_missing(
    row: Catalogued,
    copy: _Copy,
    split_file: Path,
    splits: dict[str, Files],
    found: dict[str, np.ndarray],
) -> None:
    missing = [
        splits[split].paths[place]
        for split, positions in found.items()
        for place in np.flatnonzero(positions < 0).tolist()
    ]
    if len(missing) > row.allow_missing:
        raise InputError(
            f"{split_file}: expected its images among the {len(copy.paths)} of {copy.place}, got"
            f" none for {len(missing)} of them ({some(missing)}); restore the official file or"
            f" prepare {row.name} {row.version} again"
        )
    if missing:
        logger.warning(
            "TFDS left out %s of %s, and so do we: %s",
            plural(len(missing), "image"),
            split_file.name,
            some(missing),
        )


def _check_labels(
    copy: _Copy, split_file: Path, found: dict[str, np.ndarray], splits: dict[str, Files]
) -> None:
    """Each of TFDS's labels must be one label of the split file, whatever their numbers."""
    pairs = {
        (int(copy.labels[place]), label): copy.paths[place]
        for split, positions in found.items()
        for place, label in zip(positions, splits[split].labels, strict=True)
        if place >= 0
    }
    seen: dict[int, int] = {}
    for (tfds_label, label), path in pairs.items():
        if seen.setdefault(tfds_label, label) != label:
            raise InputError(
                f"{split_file}: expected one label for all images of TFDS's class"
                f" {copy.label_names[tfds_label]!r}, got {seen[tfds_label]} and, for {path},"
                f" {label}; restore the official file or prepare {copy.place} again"
            )


def _as_tfds(name: str, row: Official, copy: _Copy, split_file: Path) -> Dataset:
    assert row.tfds is not None
    logger.warning(
        "%s: no %s, so the split is TFDS's and results do not compare with the papers'; for CoOp's"
        " put that file there (CoOp's DATASETS.md has the link)",
        name,
        split_file,
    )
    names = class_names.shipped(name)
    labels = copy.relabelled(_coop_labels(row.tfds, copy, names))
    positions = {
        split: copy.sorted_split(tfds_split, labels)
        for split, tfds_split in zip(SPLITS, row.tfds.splits, strict=True)
    }
    origin = ORIGIN
    if not row.tfds.splits[-1]:
        whole = positions["train"]
        cut = split_by_class(labels[whole], FRACTIONS)
        positions = {split: whole[part] for split, part in zip(SPLITS, cut, strict=True)}
        origin = f"{ORIGIN}, cut anew"
    train, val, test = (copy.examples(split, positions[split], labels) for split in SPLITS)
    place = f"TFDS copy {copy.place}"
    own = (row.template,)
    return Dataset(name, Classes(names), own, train, val, test, origin, place, pixels_from=ORIGIN)


def _coop_labels(row: Catalogued, copy: _Copy, names: tuple[str, ...]) -> list[int]:
    """CoOp's label of each of TFDS's; -1 for classes that CoOp leaves out."""
    numbers = {name: number for number, name in enumerate(names)}
    renamed = [row.rename(label_name) for label_name in copy.label_names]
    called = [name and spelled([name])[0] for name in renamed]
    unknown = [name for name in called if name is not None and name not in numbers]
    if unknown:
        raise InputError(
            f"expected CoOp's classes in {copy.place}, got also {some(unknown)}; prepare"
            f" {row.name} {row.version} again"
        )
    return [-1 if name is None else numbers[name] for name in called]


def _by_wnid(name: str, row: Official, copy: _Copy, data_dir: Path) -> Dataset:
    assert row.tfds is not None
    names = _imagenet_names(data_dir, row.folder)
    unknown = sorted(set(copy.label_names) - set(names))
    if unknown:
        raise InputError(
            f"expected the classes of {layouts.CLASS_NAMES_FILE} in {copy.place}, got also"
            f" {some(unknown)}; restore {layouts.CLASS_NAMES_FILE}"
        )
    wnids = list(names)
    if row.tfds.present_only:
        present = {copy.label_names[label] for label in np.unique(copy.labels)}
        wnids = [wnid for wnid in names if wnid in present]
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    labels = copy.relabelled([numbers.get(wnid, -1) for wnid in copy.label_names])
    train, val, test = (
        copy.examples(split, copy.sorted_split(tfds_split, labels), labels)
        for split, tfds_split in zip(SPLITS, row.tfds.splits, strict=True)
    )
    return Dataset(
        name,
        Classes(tuple(names[wnid] for wnid in wnids), tuple(wnids), row.repeated),
        (row.template,),
        train,
        val,
        test,
        place=f"TFDS copy {copy.place}",
        pixels_from=ORIGIN,
    )


def _imagenet_names(data_dir: Path, folder: str) -> dict[str, str]:
    """The class names of the `$DATA` folder if they are there, else the shipped ones."""
    for root in (data_dir / folder, data_dir / IMAGENET_FOLDER):
        if (root / layouts.CLASS_NAMES_FILE).is_file():
            return layouts.imagenet_class_names(root)
    return class_names.imagenet()
