"""Make datasets quick to read.

  coop_jax prepare dtd eurosat --data-dir=DATA

Image files in folders are copied bit for bit into shards; a dataset of the papers whose images are
not there is downloaded and prepared by TFDS (needs pip install 'coop_jax[prepare]').
"""

import argparse
import contextlib
import importlib.util
import os
import sys
from pathlib import Path

import tensorflow_datasets as tfds

from coop_jax import command_line, writing
from coop_jax.data import catalog, copies, digits, overlay
from coop_jax.data.listing import Listing
from coop_jax.data.official import OFFICIAL, Catalogued
from coop_jax.errors import InputError
from coop_jax.printing import one_line
from coop_jax.terminal import count_images


def prepare(
    name: str, data_dir: Path, class_names: str | None = None, workers: int | None = None
) -> str:
    """Prepare a dataset, unless it is done already.

    Args:
        name: a name of the catalogue or the path of own images, as `catalog.load` takes it.
        data_dir: the data directory; CoOp's `$DATA` for the papers' datasets.
        class_names: the class-name file of own images.
        workers: threads that copy; by default one per processor.

    Returns:
        Where the dataset is now, in words.

    Raises:
        InputError: there is no such dataset, its files cannot be used, or TFDS cannot prepare it.
        MachineError: nothing can be written.
    """
    if name == catalog.DIGITS:
        digits.prepare(data_dir)
        return catalog.load(name, data_dir).place
    if name not in OFFICIAL:
        title, listing = catalog.own_listing(name, class_names)
        return _copy(title, listing, data_dir, workers)
    row = OFFICIAL[name]
    if row.has_images(data_dir):
        return _copy(name, row.layout(data_dir / row.folder), data_dir, workers)
    if row.tfds is None:
        raise overlay.absent(name, row, data_dir)
    if not (data_dir / row.tfds.folder).is_dir():
        download(row.tfds, data_dir)
    # Opening the dataset once writes the index, while the folder can be written.
    return overlay.load(name, row, data_dir).place


def download(wanted: Catalogued, data_dir: Path) -> None:
    """Let TFDS download a dataset and write it as ArrayRecord files.

    Raises:
        InputError: TensorFlow is absent, or TFDS fails.
        MachineError: the disk takes no more.
    """
    request = f"{wanted.name}:{wanted.version}"
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"expected TensorFlow, with which TFDS prepares {request}, got none; run"
            " `pip install 'coop_jax[prepare]'`: training and testing need no TensorFlow"
        )
    tfds.display_progress_bar(sys.stderr.isatty())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder = tfds.builder(request, data_dir=data_dir)
            # What Google stores ready-made has another file format.
            config = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except Exception as error:  # TFDS and its builders raise many kinds
        writing.raise_if_of_disk(error, f"write {request}")
        raise InputError(
            f"expected TFDS to download and prepare {request} in {data_dir}, got"
            f" {type(error).__name__}: {one_line(error)}; see to that, and try again"
        ) from error


def _copy(title: str, listing: Listing, data_dir: Path, workers: int | None) -> str:
    with count_images(copies.count(listing), title) as advance:
        workers = workers or os.cpu_count() or 1
        return f"prepared copy {copies.write(title, listing, data_dir, workers, advance)}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(catalog.names())}, or a folder, .csv or .json of own images",
    )
    parser.add_argument("--data-dir", help="data directory; default $TFDS_DATA_DIR")
    parser.add_argument(
        "--workers", type=command_line.positive, help="threads; default one per processor"
    )
    parser.add_argument("--class-names", metavar="FILE", help="class names of own images")


def run(chosen: argparse.Namespace) -> int:
    """Prepare the datasets."""
    catalog.check_names(chosen.names)
    official = [name for name in chosen.names if name in catalog.names()]
    if chosen.class_names and official:
        raise InputError(
            f"--class-names: expected own images alone, got {', '.join(official)}; the"
            " catalogue has its class names"
        )
    data_dir = catalog.data_directory(chosen.data_dir)
    for name in chosen.names:
        place = prepare(name, data_dir, chosen.class_names, chosen.workers)
        print(f"{name}: {place}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(command_line.main("prepare", __name__))
