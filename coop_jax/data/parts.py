"""Images that nobody has split, cut into train, val and test by what they are."""

import hashlib
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from coop_jax.data.listing import SPLITS, Files, some
from coop_jax.data.sampling import FRACTIONS
from coop_jax.errors import InputError
from coop_jax.terminal import count_images

logger = logging.getLogger(__name__)

LEAST_IMAGES = 4
CUTS = FRACTIONS[0], sum(FRACTIONS)
"""The ends of train and of val."""

_THREADS = 8
_MANY = 1_000
"""Images from which on their reading has a progress bar."""


def cut(root: Path, files: Files, labels: Sequence[str], place: str) -> dict[str, Files]:
    """Cut files into about 50 % train, 20 % val and 30 % test, each by itself.

    The SHA-256 of a file's bytes, read as a number from 0 to 1, says which part the image belongs
    to. So it stays there whatever becomes of other images, of its own name and of the order, and
    copies of an image stay together. (By its name, a copy could be in train and in test, and
    renaming would move it.) The price is that the shares are about these, and that every file is
    read whole. In a class so small that a part would stay empty, `filled` moves images, which is
    logged.

    Args:
        root: the folder that the paths are relative to.
        files: what to cut; the order is kept.
        labels: what messages call the classes.
        place: what messages call the whole.

    Raises:
        InputError: a class has fewer than `LEAST_IMAGES` images, not counting copies, or a file
            cannot be read.
    """
    found = digests(root, files.paths)
    classes: dict[int, set[str]] = defaultdict(set)
    for digest, label in zip(found, files.labels, strict=True):
        classes[label].add(digest)
    _check_counts(classes, Counter(files.labels), labels, place)
    parts = {label: filled(images) for label, images in classes.items()}
    _say_what_was_filled(parts, labels, place)
    chosen = [parts[label][digest] for digest, label in zip(found, files.labels, strict=True)]
    return {split: _selected(files, [one == split for one in chosen]) for split in SPLITS}


def part_of(digest: str) -> str:
    """The split that a hexadecimal SHA-256 falls into."""
    number = int(digest[:16], 16) / 16**16
    return SPLITS[sum(number >= end for end in CUTS)]


def filled(images: Iterable[str]) -> dict[str, str]:
    """The split of each of a class's images, none of the three without an image.

    It is `part_of`, unless a split would be empty. Then, in the order of the digests, the ends of
    train and val are shifted by as few images as it takes: those nearest to the end move to the
    split beside theirs, and the others stay. So one image more or less never takes another from
    train to test, or back.

    Args:
        images: hexadecimal SHA-256 of at least 3 different images.
    """
    ordered = sorted(set(images))
    counts = Counter(map(part_of, ordered))
    first = min(max(counts["train"], 1), len(ordered) - 2)
    second = min(max(counts["train"] + counts["val"], first + 1), len(ordered) - 1)
    ends = zip(SPLITS, (0, first, second), (first, second, len(ordered)), strict=True)
    return {digest: split for split, start, end in ends for digest in ordered[start:end]}


def digests(root: Path, paths: Sequence[str]) -> list[str]:
    """Hexadecimal SHA-256 of the bytes of each file below root.

    Raises:
        InputError: one cannot be read.
    """
    is_short = len(paths) < _MANY
    bar = nullcontext() if is_short else count_images(len(paths), "looked at")
    with bar as tell, ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: _digest(root / path, tell), paths))


def _digest(path: Path, tell: Callable[[int], None] | None) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"expected an image file {path}, got an error ({error.strerror}); restore it or make it"
            " readable"
        ) from error
    if tell:
        tell(1)
    return digest


def _check_counts(
    classes: dict[int, set[str]], files: Counter[int], labels: Sequence[str], place: str
) -> None:
    few = []
    for label, images in sorted(classes.items()):
        if len(images) < LEAST_IMAGES:
            copies = f" (in {files[label]} files)" * (files[label] > len(images))
            few.append(f"{len(images)} of {labels[label]}{copies}")
    if few:
        raise InputError(
            f"{place}: expected at least {LEAST_IMAGES} images of every class, no two the same, to"
            f" cut them into train, val and test, got {some(few)}; add images or make the split"
            " yourself"
        )


def _say_what_was_filled(
    parts: dict[int, dict[str, str]], labels: Sequence[str], place: str
) -> None:
    moved = {
        labels[label]: sum(part_of(digest) != split for digest, split in images.items())
        for label, images in sorted(parts.items())
    }
    shown = [f"{label} {count}" for label, count in moved.items() if count]
    if shown:
        logger.warning(
            "%s: filled up the parts that small classes would leave empty (images moved: %s); such"
            " an image may change its part when the class grows",
            *(place, some(shown)),
        )


def _selected(files: Files, wanted: Sequence[bool]) -> Files:
    paths = itertools.compress(files.paths, wanted)
    return Files(list(paths), list(itertools.compress(files.labels, wanted)))
