"""Copies of image files in ArrayRecord shards, which are faster to read than a million files."""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.data import decoding, records
from coop_jax.data.examples import Source
from coop_jax.data.listing import SPLITS, Listing
from coop_jax.errors import InputError

FOLDER = "prepared"
VERSION = "1.0.0"
SHARD_BYTES = 100 * 2**20
"""Image bytes after which a shard is closed."""

# Shards begin with this name; TFDS allows letters, digits and underscores alone.
_NAME = "images"
_UNFINISHED = "unfinished"
_STAT_THREADS = 32
_STAT_CHUNK = 1_000


def find(name: str, listing: Listing, data_dir: Path) -> Path | None:
    """The finished copy of exactly these files, if there is one.

    Files are looked at (size, time) only if there is a copy of a dataset of this name.
    """
    if not any((data_dir / FOLDER).glob(f"{_slug(name)}-*/{VERSION}")):
        return None
    copy = _folder(name, listing, file_states(listing), data_dir) / VERSION
    return copy if copy.is_dir() else None


def open_sources(listing: Listing, copy: Path) -> dict[str, Source]:
    """The records of each split that has images, in the order of the listing.

    Raises:
        InputError: the copy cannot be read.
    """
    builder = records.open_copy(copy)
    return {
        split: records.open_split(builder, stored) for split, stored in stored_as(listing).items()
    }


def stored_as(listing: Listing) -> dict[str, str]:
    """The split under which each split's images are stored: ImageNet's val and test are one."""
    stored: dict[str, str] = {}
    for split in SPLITS:
        paths = listing.splits[split].paths
        if len(paths):
            same = (other for other in stored.values() if listing.splits[other].paths == paths)
            stored[split] = next(same, split)
    return stored


def file_states(listing: Listing) -> dict[str, np.ndarray]:
    """Size in bytes and modification time in ns of every file [files 2]; -1 where there is none."""

    def look(paths: Sequence[str]) -> list[tuple[int, int]]:
        return [_state(listing.root / path) for path in paths]

    states = {}
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        for split, files in listing.splits.items():
            chunks = [
                files.paths[start : start + _STAT_CHUNK]
                for start in range(0, len(files.paths), _STAT_CHUNK)
            ]
            found = [state for part in pool.map(look, chunks) for state in part]
            states[split] = np.array(found, np.int64).reshape(-1, 2)
    return states


@dataclass(frozen=True)
class Shard:
    """Images `start` to `stop` of a split, in shard `number` of `count`."""

    split: str
    number: int
    count: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """As TFDS names its files."""
        return f"{_NAME}-{self.split}.array_record-{self.number:05d}-of-{self.count:05d}"


def plan(split: str, sizes: np.ndarray, limit: int = SHARD_BYTES) -> list[Shard]:
    """Cut images of these sizes in bytes into shards of at most about `limit` bytes."""
    groups = np.cumsum(sizes) // limit
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    ends = [*starts[1:].tolist(), len(sizes)]
    bounds = zip(starts.tolist(), ends, strict=True)
    return [Shard(split, k, len(starts), start, stop) for k, (start, stop) in enumerate(bounds)]


def write(
    name: str,
    listing: Listing,
    data_dir: Path,
    workers: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Path:
    """Copy the files of a listing bit for bit, unless it is done already.

    An interrupted copy is never used, and goes on where it was: shards that are complete stay.

    Args:
        name: the dataset's name.
        listing: its files.
        data_dir: where the folder `prepared` is or will be.
        workers: threads, each of which writes a shard at a time.
        advance: is told how many more images are done, from any thread.

    Returns:
        The folder, which `tfds.builder_from_directory` reads.

    Raises:
        InputError: a file cannot be read, or the folder cannot be written.
    """
    states = file_states(listing)
    folder = _folder(name, listing, states, data_dir)
    finished, unfinished = folder / VERSION, folder / _UNFINISHED
    stored = sorted(set(stored_as(listing).values()))
    shards = [shard for split in stored for shard in plan(split, states[split][:, 0].clip(0))]
    if finished.is_dir():
        advance(sum(shard.stop - shard.start for shard in shards))
        return finished
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        write_shard = functools.partial(_write_shard, listing, unfinished, advance)
        with ThreadPoolExecutor(workers) as pool:
            try:
                list(pool.map(write_shard, shards))
            finally:
                pool.shutdown(cancel_futures=True)
        for left in unfinished.glob(f"*.{_UNFINISHED}"):
            left.unlink()
        _write_metadata(listing, shards, states, unfinished)
        unfinished.rename(finished)
    except OSError as error:
        another_process_was_first = finished.is_dir()
        if another_process_was_first:
            return finished
        raise InputError(
            f"expected to write copies of images to {folder}, got {error}; name another data"
            " directory or make room there"
        ) from error
    return finished


def count(listing: Listing) -> int:
    """Return the number of images of a copy of the listing."""
    return sum(len(listing.splits[split].paths) for split in set(stored_as(listing).values()))


def _write_shard(
    listing: Listing, folder: Path, advance: Callable[[int], None], shard: Shard
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    file = folder / shard.file_name
    if file.exists():
        advance(shard.stop - shard.start)
        return
    files = listing.splits[shard.split]
    features = _features(listing.class_names)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.{_UNFINISHED}")
    # Images are compressed already, and TFDS reads groups of one record.
    writer = ArrayRecordWriter(os.fspath(unfinished), "group_size:1,uncompressed")
    try:
        for place in range(shard.start, shard.stop):
            path, label = files.paths[place], int(files.labels[place])
            record = {"image": _read(listing.root / path), "label": label, "file_name": path}
            writer.write(features.serialize_example(record))
            advance(1)
    finally:
        writer.close()
    unfinished.replace(file)


def _read(path: Path) -> bytes:
    try:
        return decoding.read(path)
    except OSError as error:
        raise InputError(
            f"expected an image file {path}, got an error ({error.strerror}); restore it or make it"
            " readable"
        ) from error


def _write_metadata(
    listing: Listing, shards: Sequence[Shard], states: dict[str, np.ndarray], folder: Path
) -> None:
    import tensorflow_datasets as tfds

    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[s.stop - s.start for s in shards if s.split == split],
            num_bytes=int(states[split][:, 0].sum()),
        )
        for split in dict.fromkeys(shard.split for shard in shards)
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(listing.class_names),
        split_infos=splits,
        version=VERSION,
        check_data=False,
    )


def _features(class_names: Sequence[str]) -> Any:
    import tensorflow_datasets as tfds

    twice = {name for name in class_names if class_names.count(name) > 1}
    names = [f"{n} ({label})" if n in twice else n for label, n in enumerate(class_names)]
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=names),
            "file_name": tfds.features.Text(),
        }
    )


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _folder(name: str, listing: Listing, states: dict[str, np.ndarray], data_dir: Path) -> Path:
    """The copy's folder, whose name tells of the files' names, labels, sizes and times."""
    digest = hashlib.sha256(repr(listing.class_names).encode())
    for split in SPLITS:
        files = listing.splits[split]
        digest.update(repr((split, list(files.paths))).encode())
        digest.update(np.asarray(files.labels, np.int64).tobytes())
        digest.update(states[split].tobytes())
    return data_dir / FOLDER / f"{_slug(name)}-{digest.hexdigest()[:16]}"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name)
