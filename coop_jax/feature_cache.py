"""Features on disk, each array under the digest of all that it depends on."""

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from coop_jax import parallel
from coop_jax.provenance import digest
from coop_jax.terminal import check_folder
from coop_jax.writing import reason, remove_unfinished, said, write_whole

logger = logging.getLogger(__name__)

Arrays = dict[str, Float[np.ndarray, "images ..."]]
Requests = Int[np.ndarray, "images 2"]
"""Rows of (epoch, place among the examples)."""


class Cache:
    """A folder of arrays.

    A file is an `.npy` followed by its SHA-256; one that does not match is made again. Files are
    written beside their place and renamed, so that several processes may share a folder.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(os.path.expanduser(folder))

    def get(self, keys: Mapping[str, str], make: Callable[[list[str]], Arrays]) -> Arrays:
        """Return arrays by name: what is kept under their keys, and what `make` makes of the rest.

        What is made is kept. Of several processes that train together all make an array, unless all
        find it, and the first keeps it.

        Args:
            keys: hexadecimal, by name.
            make: from the names of missing arrays to these arrays.

        Raises:
            InputError: a file is in the folder's place.
            MachineError: the folder cannot be written.
        """
        check_folder(self._folder, "a folder for features")
        paths = {name: self._folder / key[:2] / f"{key}.features" for name, key in keys.items()}
        kept = {name: self._read(path) for name, path in paths.items()}
        is_found = parallel.all_agree_each([array is not None for array in kept.values()])
        arrays = {
            name: array
            for (name, array), found in zip(kept.items(), is_found, strict=True)
            if found and array is not None
        }
        missing = [name for name in keys if name not in arrays]
        made = make(missing) if missing else {}
        kept_now = {paths[name]: made[name] for name in missing}
        if missing:
            parallel.first_does(lambda: self._keep_all(kept_now), "keep features")
        return arrays | made

    def _keep_all(self, made: Mapping[Path, np.ndarray]) -> None:
        for path, array in made.items():
            self._keep(path, array)

    def _read(self, path: Path) -> np.ndarray | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning(
                "%s cannot be read (%s): its features are made again", path, reason(error)
            )
            return None
        array, checksum = content[:-32], content[-32:]
        if hashlib.sha256(array).digest() == checksum:
            with contextlib.suppress(ValueError, EOFError):
                return np.load(io.BytesIO(array), allow_pickle=False)
        logger.warning("%s is damaged: its features are made again", path)
        return None

    def _keep(self, path: Path, made: np.ndarray) -> None:
        file = io.BytesIO()
        np.save(file, made, allow_pickle=False)
        array = file.getvalue()
        with said("keep features", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():  # which is nobody's, and said when it was read
                return
            remove_unfinished(path.parent, shared=True)
            write_whole(path, array + hashlib.sha256(array).digest())


class _Part(NamedTuple):
    """Requests whose features are kept as one array; its `rows` are wanted at these `places`."""

    requests: Requests
    rows: Int[np.ndarray, " wanted"]
    places: Int[np.ndarray, " wanted"]


def kept(
    cache: Cache,
    fields: Sequence[str],
    known: Sequence[Any],
    requests: Requests,
    count: int,
    make: Callable[[Requests, Sequence[str]], Arrays],
) -> Arrays:
    """Return fields of requested images, those that are kept and those that `make` makes.

    An epoch is made and kept as a whole, in the order of the examples, where more than half of it
    is wanted: methods that see the same images in other batches find it.

    Args:
        cache: where they are kept.
        fields: their names.
        known: all that features depend on besides field and requests, as JSON.
        requests: rows of (epoch, place among the examples).
        count: of examples; 0 where an epoch has too many images to make at a time.
        make: from requests and fields to these fields.

    Raises:
        InputError, MachineError: as `Cache.get`.
    """
    parts = _parts(requests, count)
    keys = {
        f"{field} {number}": digest([*known, part.requests.tolist(), field])
        for number, part in enumerate(parts)
        for field in fields
    }

    def make_parts(missing: list[str]) -> Arrays:
        wanted = [name.split(" ") for name in missing]
        numbers = sorted({int(number) for _, number in wanted})
        made = make(
            np.concatenate([parts[number].requests for number in numbers]),
            [field for field in fields if any(field == name for name, _ in wanted)],
        )
        ends = np.cumsum([len(parts[number].requests) for number in numbers])[:-1]
        cut = {field: np.split(array, ends) for field, array in made.items()}
        return {f"{f} {number}": cut[f][numbers.index(int(number))] for f, number in wanted}

    found = cache.get(keys, make_parts)
    arrays: Arrays = {}
    for field in fields:
        first = found[f"{field} 0"]
        arrays[field] = np.empty((len(requests), *first.shape[1:]), first.dtype)
        for number, part in enumerate(parts):
            arrays[field][part.places] = found[f"{field} {number}"][part.rows]
    return arrays


def _parts(requests: Requests, count: int) -> list[_Part]:
    """Cut requests into epochs that are kept as a whole, and what is left."""
    found, is_left = [], np.ones(len(requests), bool)
    for epoch in np.unique(requests[:, 0]):
        places = np.flatnonzero(requests[:, 0] == epoch)
        rows = requests[places, 1]
        if 2 * len(np.unique(rows)) > count > 0:
            whole = np.stack([np.full(count, epoch), np.arange(count)], axis=1)
            found.append(_Part(whole, rows, places))
            is_left[places] = False
    left = np.flatnonzero(is_left)
    if len(left) or not found:
        found.append(_Part(requests[left], np.arange(len(left)), left))
    return found
