"""Open any dataset: one of the papers', the built-in digits, or a user's own images."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coop_jax.classes import Classes
from coop_jax.data import copies, features, overlay, own, records, repeats
from coop_jax.data.examples import Dataset, Examples, FileSource
from coop_jax.data.listing import SPLITS, Listing, label_array
from coop_jax.data.official import OFFICIAL, Official
from coop_jax.errors import InputError, MachineError
from coop_jax.terminal import check_name

logger = logging.getLogger(__name__)

DIGITS = "digits"


def names() -> list[str]:
    """The names of the catalogue."""
    return [DIGITS, *OFFICIAL]


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    class_names: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Open a dataset.

    Args:
        name: a name of the catalogue (see `names`); the path of a user's own images: a folder, a
            `.csv` or a `.json` (see `own.read`); or that of features, an `.npz` (see
            `features.read`).
        data_dir: for the papers' datasets CoOp's `$DATA` folder; by default `$TFDS_DATA_DIR` or
            `~/tensorflow_datasets`.
        class_names: a file that names the classes of own images, as `own.read` takes it.

    Returns:
        Class names (underscores replaced by spaces, protocol 2.4), templates and the three splits.

    Raises:
        InputError: there is no such dataset, a layout cannot be used, files are absent, or the
            data directory cannot be written.
    """
    for path in (name, data_dir, class_names):
        if path:
            check_name(path)
    name = os.fspath(name)
    if name in names() and class_names:
        raise InputError(
            f"expected a class-name file for own images alone, got {class_names} for {name}; the"
            " catalogue has its class names"
        )
    if name == DIGITS:
        return _digits(data_directory(data_dir))
    if name in OFFICIAL:
        return _official(name, OFFICIAL[name], data_directory(data_dir))
    path = Path(name).expanduser()
    if path.suffix.lower() == features.SUFFIX and path.is_file():
        if class_names:
            raise InputError(
                f"expected class names in {path} itself, got {class_names}; leave that out"
            )
        return features.read(path)
    title, listing = own_listing(name, class_names)
    templates = ("a photo of a {}.",)
    return open_listing(title, listing, templates, data_dir=data_directory(data_dir), upright=True)


def check_names(chosen: Sequence[str]) -> None:
    """See that each is a name of the catalogue or an existing path.

    Raises:
        InputError: one is neither.
    """
    for name in chosen:
        if name not in names() and not os.path.exists(os.path.expanduser(name)):
            raise InputError(
                f"expected a dataset's name ({', '.join(names())}) or the path of a folder, .csv,"
                f' .json or .npz, got "{name}"; choose a name of the list or an existing path'
            )


def own_listing(
    name: str, class_names: str | os.PathLike[str] | None = None
) -> tuple[str, Listing]:
    """The name and the files of a user's own images.

    Raises:
        InputError: the name is neither in the catalogue nor a path, or as `own.read` and
            `repeats.check_listing`.
    """
    check_names([name])
    path = Path(name).expanduser().resolve()
    listing = own.read(path, Path(class_names).expanduser() if class_names else None)
    repeats.check_listing(listing, str(path))
    return path.stem if path.is_file() else path.name, listing


def data_directory(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return where datasets lie: the given folder, `$TFDS_DATA_DIR`, or TFDS's default."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(given).expanduser()


def open_listing(
    name: str,
    listing: Listing,
    templates: tuple[str, ...],
    *,
    data_dir: Path,
    repeated: tuple[str, ...] = (),
    upright: bool = False,
) -> Dataset:
    """A dataset whose images are read from the files of a listing.

    Where `data_dir` has a copy of them (see `prepare`), they are read from there instead: labels,
    file names and order are the same. What is damaged of it is read from the files, and a line says
    so. `upright`: as in `Examples`.
    """
    copy = copies.find(name, listing, data_dir)
    sources = {} if copy is None else copies.open_sources(listing, copy)
    copy = copy if sources else None
    splits = {}
    for split in SPLITS:
        files = listing.splits[split]
        paths = np.asarray(files.paths, str)
        source = sources.get(split) or FileSource(listing.root, paths)
        labels, numbers = label_array(files), np.arange(len(paths))
        splits[split] = Examples(source, split, labels, paths, numbers, upright=upright)
    place = f"folder {listing.root}" if copy is None else f"prepared copy {copy}"
    return Dataset(
        name,
        Classes(listing.class_names, listing.class_ids, repeated),
        templates,
        **splits,
        place=place,
    )


def _official(name: str, row: Official, data_dir: Path) -> Dataset:
    if not row.has_images(data_dir):
        return overlay.load(name, row, data_dir)
    listing = row.layout(data_dir / row.folder)
    return open_listing(name, listing, (row.template,), data_dir=data_dir, repeated=row.repeated)


def _digits(data_dir: Path) -> Dataset:
    from coop_jax.data import digits  # TFDS takes a while

    try:
        copy = digits.prepare(data_dir)
    except MachineError as error:
        logger.warning("%s; the digits are read from scikit-learn instead", error)
        copy = None
    splits = {}
    for split in SPLITS:
        source = digits.Drawn(split)
        if copy is None:
            labels, file_names = records.rows(source)
        else:
            stored = records.open_split(records.open_copy(copy), split)
            source = records.Checked(stored, copy, original=source)
            labels, file_names = records.index(source, copy / f"index-{split}.npz")
        splits[split] = Examples(source, split, labels, file_names, np.arange(len(labels)))
    place = "scikit-learn" if copy is None else f"TFDS copy {copy}"
    templates = ('a photo of the number: "{}".',)
    return Dataset(DIGITS, Classes(digits.DIGIT_NAMES), templates, **splits, place=place)
