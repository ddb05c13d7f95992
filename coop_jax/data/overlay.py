"""The papers' datasets from TFDS's catalogue, with CoOp's split and class names laid over."""

import functools
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
from coop_jax.data.listing import SPLITS, label_array, read_split_file, some
from coop_jax.data.official import Catalogued, Official
from coop_jax.data.sampling import FRACTIONS, split_by_class
from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line, plural

logger = logging.getLogger(__name__)

ORIGIN = "TFDS"
"""Whose the images are, and whose split it is where CoOp's is absent."""

IMAGENET_FOLDER = "imagenet"


def load(name: str, row: Official, data_dir: Path) -> Dataset:
    """Open a dataset that TFDS has prepared, as CoOp has it.

    Labels, class names, order and file names are those of CoOp's split file where it is in the
    dataset's `$DATA` folder, and its absence is warned of; ImageNet and its variants need none.

    Raises:
        InputError: there is no prepared copy, it is of another kind, or it and the split file do
            not have the same images.
        MachineError: it is damaged.
    """
    if row.tfds is None or not (data_dir / row.tfds.folder).is_dir():
        raise absent(name, row, data_dir)
    copy = _open(row.tfds, data_dir / row.tfds.folder)
    split_file = row.split_file and data_dir / row.folder / row.split_file.name
    origin = ""
    if split_file is None:
        classes, splits = _by_wnid(row, row.tfds, copy, data_dir)
    elif split_file.is_file():
        classes, splits = _as_split_file(row.tfds, copy, split_file)
    else:
        logger.warning(
            "%s: no %s, so the split is TFDS's and results do not compare with the papers'; for"
            " CoOp's put that file there (CoOp's DATASETS.md has the link)",
            *(name, split_file),
        )
        classes, splits = _as_tfds(row.tfds, copy, class_names.shipped(name))
        origin = ORIGIN if row.tfds.splits[-1] else f"{ORIGIN}, cut anew"
    return Dataset(
        name,
        classes,
        (row.template,),
        splits["train"],
        splits["val"],
        splits["test"],
        origin=origin,
        place=f"TFDS copy {copy.place}",
        pixels_from=ORIGIN,
    )


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

    def examples(
        self, split: str, positions: np.ndarray, labels: np.ndarray, paths: np.ndarray | None = None
    ) -> Examples:
        """The records at these positions, with their labels and, if CoOp has others, paths."""
        source, numbers = records.Records(self.sources, positions), np.arange(len(positions))
        paths = self.paths[positions] if paths is None else paths
        return Examples(source, split, labels.astype(np.int32), paths, numbers)

    def relabelled(self, new: Sequence[int]) -> Int[np.ndarray, " records"]:
        """The labels, each replaced by its new one."""
        return np.asarray(new, np.int64)[self.labels]

    def sorted_splits(
        self, tfds_splits: Sequence[str], labels: np.ndarray
    ) -> dict[str, Int[np.ndarray, " chosen"]]:
        """Positions of the records of each split whose label is not -1, by label and path."""
        positions = {}
        for split, tfds_split in zip(SPLITS, tfds_splits, strict=True):
            chosen = np.flatnonzero((self.splits == tfds_split) & (labels >= 0))
            positions[split] = chosen[np.lexsort((self.paths[chosen], labels[chosen]))]
        return positions


def _open(row: Catalogued, place: Path) -> _Copy:
    """Open all of a copy's splits, whose files have no digests of ours.

    Raises:
        InputError: it is of another kind.
        MachineError: it is damaged.
    """
    try:
        return _opened(row, place)
    except (InputError, MachineError):
        raise
    except Exception as error:  # damaged files of TFDS lead to many kinds
        raise MachineError(
            f"expected a dataset as TFDS wrote it in {place}, got {type(error).__name__}:"
            f" {one_line(error):.200}; remove the folder and prepare it again"
        ) from error


def _opened(row: Catalogued, place: Path) -> _Copy:
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
        checked = functools.partial(records.Checked, source, place, file_feature=row.file_feature)
        found, files = records.index(checked(), place / f"index-{split}.npz", row.file_feature)
        sources.append(checked(names=files))
        splits += [split] * len(found)
        labels.append(found)
        paths += [
            row.path(split, label_names[label], file)
            for label, file in zip(found.tolist(), files.tolist(), strict=True)
        ]
    return _Copy(
        place, sources, np.array(splits), np.concatenate(labels), label_names, np.array(paths)
    )


def _as_split_file(
    row: Catalogued, copy: _Copy, split_file: Path
) -> tuple[Classes, dict[str, Examples]]:
    listing = read_split_file(split_file, copy.place)
    # TFDS lower-cases the names of Caltech's folders.
    places = {path.lower(): place for place, path in enumerate(copy.paths.tolist())}
    splits, missing = {}, []
    for split, files in listing.splits.items():
        positions = np.array([places.get(path.lower(), -1) for path in files.paths], np.int64)
        labels, paths, there = label_array(files), np.array(files.paths, str), positions >= 0
        splits[split] = copy.examples(split, positions[there], labels[there], paths[there])
        missing += paths[~there].tolist()
    if len(missing) > row.allow_missing:
        raise InputError(
            f"{split_file}: expected its images among the {len(copy.paths)} of {copy.place}, got"
            f" none for {len(missing)} of them ({some(missing)}); restore the official file or"
            f" prepare {row.name} {row.version} again"
        )
    if missing:
        logger.warning(
            "TFDS left out %s of %s, and so do we: %s",
            *(plural(len(missing), "image"), split_file.name, some(missing)),
        )
    return Classes(listing.class_names), splits


def _as_tfds(
    row: Catalogued, copy: _Copy, names: tuple[str, ...]
) -> tuple[Classes, dict[str, Examples]]:
    labels = copy.relabelled(_coop_labels(row, copy, names))
    positions = copy.sorted_splits(row.splits, labels)
    if not row.splits[-1]:
        whole = positions["train"]
        cut = split_by_class(labels[whole], FRACTIONS)
        positions = {split: whole[part] for split, part in zip(SPLITS, cut, strict=True)}
    chosen = {split: copy.examples(split, at, labels[at]) for split, at in positions.items()}
    return Classes(names), chosen


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


def _by_wnid(
    official: Official, row: Catalogued, copy: _Copy, data_dir: Path
) -> tuple[Classes, dict[str, Examples]]:
    names = _imagenet_names(data_dir, official.folder)
    unknown = sorted(set(copy.label_names) - set(names))
    if unknown:
        raise InputError(
            f"expected the classes of {layouts.CLASS_NAMES_FILE} in {copy.place}, got also"
            f" {some(unknown)}; restore {layouts.CLASS_NAMES_FILE}"
        )
    wnids = list(names)
    if row.present_only:
        present = {copy.label_names[label] for label in np.unique(copy.labels)}
        wnids = [wnid for wnid in names if wnid in present]
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    labels = copy.relabelled([numbers.get(wnid, -1) for wnid in copy.label_names])
    classes = Classes(tuple(names[wnid] for wnid in wnids), tuple(wnids), official.repeated)
    positions = copy.sorted_splits(row.splits, labels)
    return classes, {split: copy.examples(split, at, labels[at]) for split, at in positions.items()}


def _imagenet_names(data_dir: Path, folder: str) -> dict[str, str]:
    """The class names of the `$DATA` folder if they are there, else the shipped ones."""
    for root in (data_dir / folder, data_dir / IMAGENET_FOLDER):
        if (root / layouts.CLASS_NAMES_FILE).is_file():
            return layouts.imagenet_class_names(root)
    return class_names.imagenet()
