"""Copies of image files in ArrayRecord shards, which are faster to read than a million files."""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax import writing
from coop_jax.data import decoding, making, records
from coop_jax.data.examples import FileSource, Source
from coop_jax.data.listing import SPLITS, Listing, some
from coop_jax.errors import InputError, MachineError
from coop_jax.printing import one_line, plural
from coop_jax.terminal import check_folder

logger = logging.getLogger(__name__)

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

    Damaged records are read from the files. Where the copy cannot be opened at all there are none,
    and a line says so.
    """
    try:
        builder = records.open_copy(copy)
        opened = {
            split: records.open_split(builder, stored)
            for split, stored in stored_as(listing).items()
        }
        lengths = {split: len(source) for split, source in opened.items()}
        expected = {split: len(listing.splits[split].paths) for split in opened}
        if lengths != expected:
            raise InputError(f"expected the records {expected}, got {lengths}")
    except Exception as error:  # ArrayRecord and TFDS raise many kinds
        logger.warning(
            "%s: expected a copy as it was written, got %s; the original files are read instead,"
            " until `coop_jax prepare` has made it again",
            *(copy, one_line(error)),
        )
        return {}
    sources = {}
    for split, source in opened.items():
        paths = np.asarray(listing.splits[split].paths, str)
        files = FileSource(listing.root, paths)
        sources[split] = records.Checked(source, copy, original=files, names=paths)
    return sources


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

    An interrupted copy is never used, and goes on where it was: shards that are complete stay. Of a
    finished one every record is read, and what is damaged is written again. Another process that
    makes the same copy is waited for.

    Args:
        name: the dataset's name.
        listing: its files.
        data_dir: where the folder `prepared` is or will be.
        workers: threads, each of which writes a shard at a time.
        advance: is told how many more images are done, from any thread.

    Returns:
        The folder, which `tfds.builder_from_directory` reads.

    Raises:
        InputError: a file cannot be read, or the data directory is a file.
        MachineError: the folder cannot be written.
    """
    states = file_states(listing)
    folder = _folder(name, listing, states, data_dir)
    stored = sorted(set(stored_as(listing).values()))
    shards = [shard for split in stored for shard in plan(split, states[split][:, 0].clip(0))]
    check_folder(folder, "to write copies of images to a data directory")
    with writing.said("write copies of images", folder), making.alone(folder) as is_alone:
        _write(listing, folder, shards, states, workers, advance, is_alone)
    return folder / VERSION


def _write(
    listing: Listing,
    folder: Path,
    shards: Sequence[Shard],
    states: dict[str, np.ndarray],
    workers: int,
    advance: Callable[[int], None],
    is_alone: bool,
) -> None:
    finished, unfinished = folder / VERSION, folder / _UNFINISHED
    if finished.is_dir():
        if _is_whole(listing, finished, shards, workers):
            advance(sum(shard.stop - shard.start for shard in shards))
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        finished.rename(unfinished)
    unfinished.mkdir(parents=True, exist_ok=True)
    names = {shard.file_name for shard in shards}
    for left in unfinished.iterdir() if is_alone else ():
        if left.name not in names:
            left.unlink()
    write_shard = functools.partial(_write_shard, listing, unfinished, advance)
    with ThreadPoolExecutor(workers) as pool:
        try:
            list(pool.map(write_shard, shards))
        finally:
            pool.shutdown(cancel_futures=True)
    _write_metadata(listing, shards, states, unfinished)
    making.sync(unfinished)
    try:
        unfinished.rename(finished)
    except OSError:
        if not finished.is_dir():  # another process was first, without locks
            raise
    writing.sync_folder(folder)


def _is_whole(listing: Listing, copy: Path, shards: Sequence[Shard], workers: int) -> bool:
    """Tell whether a finished copy is as it was written; a line says what is not."""
    with ThreadPoolExecutor(workers) as pool:
        damages = list(pool.map(lambda shard: _damage(listing, copy, shard), shards))
    damaged = [damage for damage in damages if damage]
    if not damaged and open_sources(listing, copy):
        return True
    logger.warning(
        "%s: expected it as it was written, got %s; it is made again",
        *(copy, f"{plural(len(damaged), 'damaged file')} ({some(damaged, 1)})"),
    )
    return False


def _damage(listing: Listing, folder: Path, shard: Shard) -> str:
    """Say what is wrong with a shard; nothing where all its records are those of its files."""
    from array_record.python.array_record_module import ArrayRecordReader

    features, paths = _features(listing.class_names), listing.splits[shard.split].paths
    try:
        reader = ArrayRecordReader(os.fspath(folder / shard.file_name))
        if (got := reader.num_records()) != shard.stop - shard.start:
            return f"{shard.file_name}: {plural(got, 'record')}"
        for place in range(shard.start, shard.stop):
            (record,) = reader.read([place - shard.start])
            name = features.deserialize_example_np(record, decoders=_decoders())["file_name"]
            if name.decode() != paths[place]:
                return f"{shard.file_name}: another image than {paths[place]}"
    except Exception as error:  # ArrayRecord and TFDS raise many kinds
        return f"{shard.file_name}: {type(error).__name__}: {one_line(error):.200}"
    return ""


def count(listing: Listing) -> int:
    """Return the number of images of a copy of the listing."""
    return sum(len(listing.splits[split].paths) for split in set(stored_as(listing).values()))


def _write_shard(
    listing: Listing, folder: Path, advance: Callable[[int], None], shard: Shard
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    file = folder / shard.file_name
    if file.exists() and not _damage(listing, folder, shard):
        advance(shard.stop - shard.start)
        return
    files = listing.splits[shard.split]
    features = _features(listing.class_names)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.{_UNFINISHED}")
    try:
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
        making.sync(unfinished)
        unfinished.replace(file)
    except RuntimeError as error:  # of ArrayRecord's
        raise MachineError(
            f"expected to write copies of images, got {one_line(error)}; make room, and the same"
            " command goes on"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


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


def _decoders() -> dict[str, Any]:
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


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
