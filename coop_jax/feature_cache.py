"""Features on disk, each array under the digest of all that it depends on."""

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from coop_jax import parallel
from coop_jax.terminal import check_folder
from coop_jax.writing import reason, remove_unfinished, said, write_whole

logger = logging.getLogger(__name__)

Arrays = dict[str, Float[np.ndarray, "images ..."]]


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
        arrays = {
            name: array
            for name, array in kept.items()
            if parallel.all_agree(array is not None) and array is not None
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
