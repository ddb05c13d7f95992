"""What can be wrong with a dataset on disk: counts, class names, the split, every image."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coop_jax.data import catalog, class_names
from coop_jax.data.examples import Dataset, Examples, ImageCache
from coop_jax.data.listing import SPLITS, absent_files, read_split_file, some
from coop_jax.data.official import OFFICIAL, Official
from coop_jax.errors import InputError
from coop_jax.terminal import one_line

SHOWN = 20
"""How many files, or class names, are named."""

_CHUNK = 256


@dataclass
class Findings:
    """What was found out about a dataset.

    Attributes:
        name: the dataset's name.
        dataset: the dataset, if it could be opened.
        problems: what is wrong and how to mend it, a line each.
        notes: what is as it should be, or good to know, a line each.
        absent: files that the split names and that are not there.
    """

    name: str
    dataset: Dataset | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def counts(self) -> list[tuple[str, int, int | None]]:
        """Split, number of images, and expected number where there is one."""
        if self.dataset is None:
            return []
        row = OFFICIAL.get(self.name)
        expected = row.sizes if row and not self.dataset.origin else (None,) * 3
        numbers = [len(getattr(self.dataset, split)) for split in SPLITS]
        return list(zip(SPLITS, numbers, expected, strict=True))


def examine(name: str, data_dir: Path) -> Findings:
    """Open a dataset and look at everything but the images."""
    findings = Findings(name)
    row = OFFICIAL.get(name)
    if row and row.split_file:
        _check_split_file(findings, row, data_dir / row.folder / row.split_file.name)
    try:
        findings.dataset = _open(findings, row, data_dir)
    except InputError as error:
        findings.problems.append(one_line(error))
        return findings
    if findings.dataset.origin:
        findings.notes.append(
            f"the split is that of {findings.dataset.origin}: results do not compare with the"
            " papers'"
        )
    if row:
        _check_counts(findings, row)
        _check_class_names(findings, row)
    return findings


def _open(findings: Findings, row: Official | None, data_dir: Path) -> Dataset:
    """As `catalog.load`, but files that a split file names may be absent."""
    if row is None or row.split_file is None or not row.has_images(data_dir):
        return catalog.load(findings.name, data_dir)
    root = data_dir / row.folder
    split_file = root / row.split_file.name
    if not split_file.is_file():
        return catalog.load(findings.name, data_dir)
    listing = read_split_file(split_file, root / row.split_file.images)
    paths = dict.fromkeys(path for files in listing.splits.values() for path in files.paths)
    findings.absent = absent_files(listing.root, paths)
    if findings.absent:
        findings.problems.append(
            f"{len(findings.absent)} of {len(paths)} images are missing:"
            f" {some(findings.absent, SHOWN)}; restore them in {listing.root}"
        )
    return catalog.open_listing(findings.name, listing, (row.template,), data_dir=data_dir)


def _check_split_file(findings: Findings, row: Official, path: Path) -> None:
    assert row.split_file is not None
    if not path.is_file():
        return
    found = git_hash(path)
    if found == row.split_file.git_hash:
        findings.notes.append(f"{path.name} is CoOp's")
    else:
        findings.problems.append(
            f"{path}: expected CoOp's file (git hash {row.split_file.git_hash}), got another"
            f" ({found}): results do not compare with the papers'; fetch it by the link in CoOp's"
            " DATASETS.md"
        )


def git_hash(path: Path) -> str:
    """SHA-1 of a file as a git blob, as `git hash-object` prints it."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _check_counts(findings: Findings, row: Official) -> None:
    assert findings.dataset is not None
    differing = [(s, n, e) for s, n, e in findings.counts if e is not None and n != e]
    lacking = sum(expected - number for _, number, expected in differing)
    allowed = row.tfds.allow_missing if row.tfds and "TFDS" in findings.dataset.place else 0
    if 0 < lacking <= allowed:
        findings.notes.append(f"TFDS left out {lacking} broken images")
    elif differing:
        shown = ", ".join(f"{expected} in {split}, got {n}" for split, n, expected in differing)
        findings.problems.append(
            f"expected images: {shown}; unpack the images and fetch the split again, as CoOp's"
            " DATASETS.md says"
        )
    classes = len(findings.dataset.class_names)
    if classes != row.n_classes:
        findings.problems.append(
            f"expected {row.n_classes} classes, got {classes}; unpack the images and fetch the"
            " split again, as CoOp's DATASETS.md says"
        )


def _check_class_names(findings: Findings, row: Official) -> None:
    assert findings.dataset is not None
    names, expected = findings.dataset.class_names, class_names.shipped(findings.name)
    if row.split_file is None and row.n_classes < len(expected):
        expected = _chosen_classes(findings.dataset)
    differing = [
        f"label {label}: {got!r} for {wanted!r}"
        for label, (got, wanted) in enumerate(zip(names, expected, strict=False))
        if got != wanted
    ]
    if not differing:
        findings.notes.append(f"the {len(names)} class names are CoOp's")
        return
    findings.problems.append(
        f"expected CoOp's class names, got {some(differing, SHOWN)}; restore the split file or"
        " class-name list unless you mean to change them"
    )


def _chosen_classes(dataset: Dataset) -> tuple[str, ...]:
    """CoOp's names of the wnids whose folders ImageNet-A's or -R's images are in."""
    names = class_names.imagenet()
    wnids = sorted({str(path).split("/")[-2] for path in dataset.test.file_names})
    return tuple(names.get(wnid, wnid) for wnid in wnids)


def decode(findings: Findings, advance: Callable[[int], None], threads: int | None = None) -> None:
    """Decode every image that is there; broken ones are problems.

    Args:
        findings: the dataset; problems are added to it.
        advance: is told how many more images are done.
        threads: by default one per processor.
    """
    broken: list[str] = []
    missing = set(findings.absent)
    for examples in _distinct(findings):

        def look(chunk: range, examples: Examples = examples) -> list[str]:
            errors = [_error(examples, i) for i in chunk if examples.file_names[i] not in missing]
            advance(len(chunk))
            return [error for error in errors if error]

        chunks = (
            range(start, min(start + _CHUNK, len(examples)))
            for start in range(0, len(examples), _CHUNK)
        )
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            broken += itertools.chain.from_iterable(pool.map(look, chunks))
    total = count(findings)
    if broken:
        findings.problems.append(f"{len(broken)} of {total} images cannot be read")
        findings.problems += broken[:SHOWN]
    elif not missing:
        findings.notes.append(f"all {total} images can be read")


def count(findings: Findings) -> int:
    """How many images `decode` looks at."""
    return sum(len(examples) for examples in _distinct(findings))


def _distinct(findings: Findings) -> Iterator[Examples]:
    """The splits, without one that has another's images, as ImageNet's has; nothing is kept."""
    if findings.dataset is None:
        return
    seen: list[np.ndarray] = []
    for split in SPLITS:
        examples: Examples = getattr(findings.dataset, split)
        if not any(np.array_equal(examples.file_names, other) for other in seen):
            seen.append(examples.file_names)
            yield dataclasses.replace(examples, cache=ImageCache(0))


def _error(examples: Examples, index: int) -> str | None:
    try:
        examples.image(index)
    except InputError as error:
        return one_line(error)
    except Exception as error:  # a damaged shard raises many kinds
        return (
            f"expected the image {examples.file_names[index]} of {examples.split}, got"
            f" {type(error).__name__}: {one_line(error)}; remove the copy and prepare it again"
        )
    return None
