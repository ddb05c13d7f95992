"""The TFDS builder of the digits, which writes ArrayRecord files without TensorFlow."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from coop_jax.data.sampling import FRACTIONS, split_by_class
from coop_jax.errors import InputError

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
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        pixels = np.rint(images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        train, val, test = split_by_class(labels, FRACTIONS)
        splits = {"train": train, "val": val, "test": test}
        return {
            split: self._generate_examples(pixels, labels, indices)
            for split, indices in splits.items()
        }

    def _generate_examples(
        self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, Example]]:
        for index in indices.tolist():
            encoded = io.BytesIO()
            Image.fromarray(pixels[index]).save(encoded, "PNG")
            yield (
                index,
                {
                    "image": encoded.getvalue(),
                    "label": int(labels[index]),
                    "file_name": f"{index:04d}.png",
                },
            )


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
    """Write a dataset's ArrayRecord files unless they exist, and open them.

    Nothing goes over the network for the digits, nothing is printed, and a failed or interrupted
    build leaves no dataset behind.

    Returns:
        A builder that reads the files on disk.

    Raises:
        InputError: if the data directory cannot be written.
    """
    path = Path(builder.data_path)
    if not path.exists():
        try:
            tfds.display_progress_bar(False)
            quiet = contextlib.redirect_stdout(io.StringIO())
            with quiet, tempfile.TemporaryDirectory() as downloads:
                builder.download_and_prepare(
                    download_dir=downloads,
                    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                    file_format="array_record",
                )
        except OSError as error:
            another_process_was_first = path.exists()
            if not another_process_was_first:
                raise InputError(
                    f"expected to write the dataset to {path}, got {error}; "
                    "name another data directory or make room there"
                ) from error
    return tfds.builder_from_directory(path)
