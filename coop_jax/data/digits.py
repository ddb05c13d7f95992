"""The TFDS builder of the digits, which writes ArrayRecord files without TensorFlow."""

import contextlib
import functools
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from coop_jax import writing
from coop_jax.data import making
from coop_jax.data.sampling import FRACTIONS, split_by_class
from coop_jax.errors import MachineError
from coop_jax.printing import one_line
from coop_jax.terminal import check_folder

logger = logging.getLogger(__name__)

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

Example = dict[str, Any]


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """scikit-learn's 1,797 handwritten digits as 8x8 greyscale PNG images.

    A pixel is round(value * 255 / 16). Every class is split 50 / 20 / 30 % into train, val and test
    by the fallback rule of protocol section 2.1. `file_name` is the four-digit index in
    `load_digits` and ".png".
    """

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded. Without this, TFDS 4.9.10 looks for checksums with a package that it
    # does not require (tensorflow/datasets#11212).
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=list(DIGIT_NAMES)),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Example]]]:
        return {split: self._generate_examples(split) for split in examples()}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        for example in examples()[split]:
            yield int(example["file_name"].removesuffix(".png")), example


class Drawn:
    """The digits of a split without a copy: made from scikit-learn's when one is asked for."""

    def __init__(self, split: str):
        self._split = split

    def __len__(self) -> int:
        return len(examples()[self._split])

    def __getitem__(self, index: int) -> Example:
        return examples()[self._split][index]


@functools.cache
def examples() -> dict[str, list[Example]]:
    """Return the records of every split, from scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    parts = dict(zip(("train", "val", "test"), split_by_class(labels, FRACTIONS), strict=True))
    return {
        split: [
            {
                "image": _png(pixels[index]),
                "label": int(labels[index]),
                "file_name": f"{index:04d}.png",
            }
            for index in indices.tolist()
        ]
        for split, indices in parts.items()
    }


def _png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def prepare(data_dir: Path) -> Path:
    """Write the digits' ArrayRecord files, unless they are there and whole; their folder.

    Nothing goes over the network, nothing is printed. A build that fails or is interrupted leaves
    no dataset behind, and what is left of it is removed at the next one. A copy that is not as it
    was written is made again, and a line says so.

    Raises:
        InputError: the data directory is a file.
        MachineError: it cannot be written.
    """
    copy = data_dir / "digits" / str(Digits.VERSION)
    if not (copy.is_dir() and not making.damage(copy)):
        check_folder(copy, "to write the dataset to a data directory")
        with writing.said("write the dataset", copy), making.alone(copy) as is_alone:
            _make(copy, is_alone)
    return copy


def _make(copy: Path, is_alone: bool) -> None:
    if copy.is_dir():
        if not (damage := making.damage(copy)):
            return
        logger.warning("%s: expected it as it was written, got %s; it is made again", copy, damage)
    if is_alone:
        for left in copy.parent.glob(f".{copy.name}.*{writing.UNFINISHED}"):
            shutil.rmtree(left)
    unfinished = Path(tempfile.mkdtemp(writing.UNFINISHED, f".{copy.name}.", dir=copy.parent))
    try:
        builder = Digits(data_dir=unfinished)
        tfds.display_progress_bar(False)
        quiet = contextlib.redirect_stdout(io.StringIO())
        with quiet, tempfile.TemporaryDirectory(dir=unfinished) as downloads:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="array_record",
            )
        made = Path(builder.data_path)
        making.sign(made)
        if copy.is_dir():
            copy.rename(unfinished / "damaged")
        with contextlib.suppress(FileExistsError):  # another process was first, without locks
            made.rename(copy)
        writing.sync_folder(copy.parent)
    except RuntimeError as error:  # of ArrayRecord's
        raise MachineError(
            f"expected to write the dataset to {copy}, got {one_line(error)}; make room, and the"
            " same command goes on"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
