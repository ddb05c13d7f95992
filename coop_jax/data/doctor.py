"""Find what is wrong with a dataset on disk: counts, class names, the split, every image."""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coop_jax.data import catalog, class_names, decoding, repeats
from coop_jax.data.examples import Dataset, Examples, ImageCache
from coop_jax.data.listing import SPLITS, absent_files, read_split_file, some
from coop_jax.data.official import OFFICIAL, Official
from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line, plural
from coop_jax.reading import CONTEXT_LENGTH, least_tokens

SHOWN = 20
"""Number of files, or class names, that are named."""

CONTEXT_VECTORS = 16
"""Context vectors of the papers' prompts, and of `fit` unless the user says otherwise."""

DARK = 2**14
"""Below it are all values of an image of 12 bits, or 14, in a file of 16 bits."""

_CHUNK = 256


@dataclass
class Findings:
    """The findings about a dataset.

    Attributes:
        name: the dataset's name.
        dataset: the dataset, if it could be opened.
        problems: what is wrong and how to mend it, a line each.
        warnings: what may be meant, but changes what results mean, a line each.
        notes: what is as it should be, or good to know, a line each.
        absent: files that the split names and that are not there.
    """

    name: str
    dataset: Dataset | None = None
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
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
    except (InputError, MachineError) as error:
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
    if findings.dataset.texts is None:
        _check_names_as_texts(findings, findings.dataset)
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
            f"{len(findings.absent)} of {plural(len(paths), 'image')}"
            f" {'is' if len(findings.absent) == 1 else 'are'} missing:"
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
        findings.notes.append(f"TFDS left out {plural(lacking, 'broken image')}")
    elif differing:
        shown = ", ".join(f"{expected} in {split}, got {n}" for split, n, expected in differing)
        findings.problems.append(
            f"expected images: {shown}; unpack the images and fetch the split again, as CoOp's"
            " DATASETS.md says"
        )
    classes = len(findings.dataset.classes.names)
    if classes != row.n_classes:
        findings.problems.append(
            f"expected {row.n_classes} classes, got {classes}; unpack the images and fetch the"
            " split again, as CoOp's DATASETS.md says"
        )


def _check_class_names(findings: Findings, row: Official) -> None:
    assert findings.dataset is not None
    names, expected = findings.dataset.classes.names, class_names.shipped(findings.name)
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


def _check_names_as_texts(findings: Findings, dataset: Dataset) -> None:
    """Look for names that no method takes: empty, of the same text, or too long for any CLIP."""
    try:
        dataset.classes.check()
    except InputError as error:
        findings.problems.append(one_line(error))
    most = CONTEXT_LENGTH - CONTEXT_VECTORS - len(("start", "full stop", "end"))
    long = [
        f"{name!r:.80} ({count} or more)"
        for name in dataset.classes.names
        if (count := least_tokens(name)) > most
    ]
    if long:
        findings.problems.append(
            f"expected class names of at most {most} tokens, which a CLIP of {CONTEXT_LENGTH} has"
            f" left beside {CONTEXT_VECTORS} context vectors, got {some(long, SHOWN)}; shorten them"
        )


def _chosen_classes(dataset: Dataset) -> tuple[str, ...]:
    """CoOp's names of the wnids whose folders ImageNet-A's or -R's images are in."""
    names = class_names.imagenet()
    wnids = sorted({str(path).split("/")[-2] for path in dataset.test.file_names})
    return tuple(names.get(wnid, wnid) for wnid in wnids)


class Seen(NamedTuple):
    """An image as examined: what is wrong with it, or else its content and what is unusual.

    Attributes:
        error: why it cannot be read.
        digest: SHA-256 of its bytes.
        lies: it has an EXIF orientation that would turn it.
        highest: of a 16-bit image the highest value, else -1.
    """

    error: str = ""
    digest: bytes | None = None
    lies: bool = False
    highest: int = -1


def decode(findings: Findings, advance: Callable[[int], None]) -> None:
    """Decode every image that is there; broken ones are problems.

    Images that are there more than once (the same bytes) are warnings.

    Args:
        findings: the dataset; problems, warnings and notes are added to it.
        advance: is told how many more images are done.
    """
    missing = set(findings.absent)

    def look(examples: Examples, chunk: range) -> list[Seen]:
        names = examples.file_names
        found = [Seen() if names[index] in missing else _look(examples, index) for index in chunk]
        advance(len(chunk))
        return found

    seen: dict[str, list[Seen]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for split, examples in _distinct(findings).items():
            every = range(len(examples))
            chunks = [every[start : start + _CHUNK] for start in every[::_CHUNK]]
            looked = pool.map(functools.partial(look, examples), chunks)
            seen[split] = list(itertools.chain.from_iterable(looked))
    total = count(findings)
    broken = [one.error for found in seen.values() for one in found if one.error]
    if broken:
        findings.problems.append(f"{len(broken)} of {plural(total, 'image')} cannot be read")
        findings.problems += broken[:SHOWN]
    elif not missing:
        findings.notes.append(f"all {plural(total, 'image')} can be read")
    _describe_unusual(findings, seen)
    _compare(findings, {split: [one.digest for one in found] for split, found in seen.items()})


def compare_paths(findings: Findings) -> None:
    """Look for images that are there more than once, by their paths alone."""
    splits = _distinct(findings)
    paths = {split: one.file_names.tolist() for split, one in splits.items()}
    _compare(
        findings, {split: list(map(os.path.normpath, found)) for split, found in paths.items()}
    )


def _compare(findings: Findings, keys: dict[str, list[Any]]) -> None:
    """Warn of images that are there more than once.

    ImageNet's val and test are one on purpose; of other datasets each split counts.
    """
    dataset = findings.dataset
    if dataset is None:
        return
    splits = {split: getattr(dataset, split) for split in SPLITS}
    if findings.name not in OFFICIAL:
        for split, other in itertools.permutations(SPLITS, 2):
            if split not in keys and other in keys and _same_files(splits[split], splits[other]):
                keys = keys | {split: keys[other]}
    findings.warnings += repeats.describe(splits, keys, dataset.classes.names)


def _describe_unusual(findings: Findings, seen: dict[str, list[Seen]]) -> None:
    """Say how many images have an orientation, and which 16-bit images have fewer bits in them."""
    dataset = findings.dataset
    if dataset is None:
        return
    lying = sum(one.lies for found in seen.values() for one in found)
    if lying:
        turned = dataset.train.upright
        what = "turned as it says" if turned else "not turned, as in the official code"
        findings.notes.append(f"images with an EXIF orientation: {lying}, which are {what}")
    dark = {
        str(getattr(dataset, split).file_names[index]): one.highest
        for split, found in seen.items()
        for index, one in enumerate(found)
        if 0 < one.highest < DARK
    }
    if dark:
        findings.warnings.append(
            f"16-bit images with no value above {max(dark.values()):,} of 65,535, as"
            f" {max(dark.values()).bit_length()}-bit data has: {len(dark)} ({some([*dark])}), which"
            " are nearly black; scale their values to 16 bits"
        )


def count(findings: Findings) -> int:
    """Return the number of images that `decode` looks at."""
    return sum(map(len, _distinct(findings).values()))


def _distinct(findings: Findings) -> dict[str, Examples]:
    """The splits, without one that has another's images, as ImageNet's has; nothing is kept."""
    distinct: dict[str, Examples] = {}
    if findings.dataset is not None:
        for split in SPLITS:
            examples: Examples = getattr(findings.dataset, split)
            if not any(_same_files(examples, other) for other in distinct.values()):
                distinct[split] = dataclasses.replace(examples, cache=ImageCache(0))
    return distinct


def _same_files(examples: Examples, other: Examples) -> bool:
    return np.array_equal(examples.file_names, other.file_names)


def _look(examples: Examples, index: int) -> Seen:
    if examples.features is not None:
        return Seen("", hashlib.sha256(examples.encoded(index)).digest())
    try:
        encoded = examples.encoded(index)
        image = decoding.decode(encoded, examples.place(index), upright=False)
    except (InputError, MachineError) as error:
        return Seen(one_line(error))
    lies = decoding.orientation(image) != 1
    return Seen("", hashlib.sha256(encoded).digest(), lies, decoding.highest(image, encoded))
