"""Images and labels that are given as they are, as a split to train on or to classify."""

import dataclasses
import io
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, UInt8
from PIL import ExifTags, Image

from coop_jax.classes import Classes, spelled
from coop_jax.data import decoding
from coop_jax.data.examples import Dataset, Examples
from coop_jax.data.listing import some
from coop_jax.errors import InputError

ImageLike = str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "height width 3"]
"""One image: the path of its file, a PIL image, or pixels from 0 to 255."""

Images = Sequence[ImageLike] | UInt8[np.ndarray, "images height width 3"]

ImagesOrFeatures = Images | Float[np.ndarray, "*views images embedding"]
"""Images, or what an encoder made of them."""

Labels = Sequence[str] | Sequence[int] | np.ndarray

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Modes that a PNG file holds as they are; Pillow converts any other to RGB first."""


class GivenSource:
    """Given images as the bytes of files: a path's own, or else those of a PNG."""

    def __init__(self, images: Sequence[ImageLike]):
        self._images = images
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        image = self._images[index]
        if isinstance(image, str | os.PathLike):
            return {"image": decoding.read(image)}
        return {"image": _png(*self._own(image))}

    def _own(self, image: Any) -> tuple[Image.Image, int]:
        """An image that no other thread uses, in memory, and its EXIF orientation."""
        if not isinstance(image, Image.Image):
            return Image.fromarray(np.asarray(image)), 1
        try:
            with self._lock:
                image.load()  # this turns TIFF, whose tag is then gone
                return image.copy(), decoding.orientation(image)
        except Exception as error:  # Pillow's decoders raise many kinds
            raise OSError(f"an image that Pillow cannot decode ({error})") from error


class Forgiving:
    """Examples whose unreadable images are black, for `pipeline.pixels`.

    Attributes:
        indices: those of the examples.
        file_names: theirs.
        failures: what is wrong with each unreadable image that was asked for, by position.
    """

    def __init__(self, examples: Examples):
        self._examples = examples
        self.indices, self.split = examples.indices, examples.split
        self.features, self.file_names = examples.features, examples.file_names
        self.failures: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._examples)

    def image(self, index: int) -> Image.Image:
        """The image, or a black one."""
        try:
            return self._examples.image(index)
        except InputError as error:
            self.failures[index] = str(error)
            return Image.new("RGB", (1, 1))


def examples(images: Images, *, split: str) -> Examples:
    """Given images as a split; files are read, and found to be broken, when they are asked for.

    Every image is turned as its EXIF orientation says.

    Args:
        images: paths, PIL images (of an animation the current frame counts) and uint8 arrays
            [height, width, 3], in any mixture; or an array [images, height, width, 3].
        split: what messages call the split; "" where there is none.

    Returns:
        The examples, with label 0.

    Raises:
        InputError: no image or a single one that is in no list, or one of another type or shape.
    """
    alone = isinstance(images, str | os.PathLike | Image.Image)
    if alone or not isinstance(images, Iterable):
        raise InputError(
            f"expected a list of images, got {_shown(images)} alone; put it into a list, as in"
            " [image]"
        )
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise InputError(
            f"expected a list of images or an array [images, height, width, 3], got one of shape"
            f" {list(images.shape)}; put a single image into a list, as in [image]"
        )
    if isinstance(images, np.ndarray) and images.ndim == 2:
        raise InputError(
            f"expected a list of images, got an array of {images.dtype} {list(images.shape)}; if it"
            " has features of images, learn from these, with text_features"
        )
    given = list(images)
    if not given:
        raise InputError("expected at least one image, got none; give a list of images")
    names = [_checked_name(image, number) for number, image in enumerate(given)]
    count = len(given)
    labels, numbers = np.zeros(count, np.int32), np.arange(count)
    return Examples(GivenSource(given), split, labels, np.asarray(names), numbers, upright=True)


def labelled(given: Examples, labels: Labels, class_names: Sequence[str]) -> Examples:
    """Given images with the place of each one's class in `class_names`.

    Raises:
        InputError: as `label_numbers`; or the numbers of images and labels differ.
    """
    numbers = label_numbers(labels, class_names)
    if len(given) != len(numbers):
        raise InputError(
            f"expected a label for each of the {len(given)} images, got {len(numbers)} labels; give"
            " as many"
        )
    return dataclasses.replace(given, labels=numbers)


def dataset(
    images: Images | Examples, labels: Labels, class_names: Sequence[str] | None = None
) -> Dataset:
    """Given images as the training split of a dataset that has no other.

    Args:
        images: as in `examples`, or what it returns.
        labels: a class name per image; or the place of its class in `class_names`.
        class_names: the classes, in the order of their labels; by default the names in `labels`,
            sorted.

    Raises:
        InputError: as `labelled`, or a class has no image.
    """
    names = class_names_of(labels) if class_names is None else checked_names(class_names)
    train = images if isinstance(images, Examples) else examples(images, split="train")
    train = labelled(train, labels, names)
    absent = [name for label, name in enumerate(names) if label not in set(train.labels.tolist())]
    if absent:
        raise InputError(
            f"expected images of every class in class_names, got none of {some(absent)}; add some"
            " or leave these classes out"
        )
    nothing = train.subset([])
    return Dataset("given images", Classes(names), ("a photo of a {}.",), train, nothing, nothing)


def class_names_of(labels: Labels) -> tuple[str, ...]:
    """The class names among labels, sorted.

    Raises:
        InputError: the labels are no names.
    """
    given = _array(labels)
    if given.dtype.kind in "iu":
        raise InputError(
            "expected class names as labels, since prompts are made of them, got whole numbers"
            " alone; give class_names too, or the names as labels"
        )
    return tuple(sorted(set(_texts(given))))


def label_numbers(labels: Labels, class_names: Sequence[str]) -> Int32[np.ndarray, " labels"]:
    """The place of every label's class in `class_names`.

    Args:
        labels: class names, where underscores and spaces are the same; or such places already.
        class_names: of all classes. Of two that read the same the first counts.

    Raises:
        InputError: labels that are neither, or of no class.
    """
    given = _array(labels)
    if given.dtype.kind in "iu" and given.ndim == 1:
        outside = sorted({str(label) for label in given if not 0 <= label < len(class_names)})
        if outside:
            raise InputError(
                f"expected labels from 0 to {len(class_names) - 1}, one number per class, got"
                f" {some(outside)}; correct the labels or name more classes"
            )
        return given.astype(np.int32)
    place: dict[str, int] = {}
    for number, name in enumerate(spelled(class_names)):
        place.setdefault(name, number)
    texts = _texts(given)
    unknown = sorted({text for text in texts if spelled([text])[0] not in place})
    if unknown:
        raise InputError(
            f"expected labels among the {len(class_names)} classes {some(list(class_names))}, got"
            f" {some(unknown)}; correct the labels or the class names"
        )
    return np.asarray([place[spelled([text])[0]] for text in texts], np.int32)


def _array(labels: Labels) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError as error:
        raise InputError(
            "expected a list of class names or of whole numbers as labels, got lists of different"
            " lengths; give one label per image"
        ) from error


def _texts(labels: np.ndarray) -> list[str]:
    texts: list[Any] = labels.tolist() if labels.ndim == 1 else [None]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            "expected a list of class names or of whole numbers as labels, got"
            f" {labels.dtype} {list(labels.shape)}; give one label per image"
        )
    return texts


def checked_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Class names as they are given, if they are a list of texts.

    Raises:
        InputError: they are not.
    """
    if isinstance(class_names, str) or not all(isinstance(name, str) for name in class_names):
        raise InputError(
            f"expected class_names as a list of texts, got {class_names!r:.80}; list the classes in"
            " the order of their labels"
        )
    return tuple(map(str, class_names))


def checked_weights(weights: Any, count: int) -> Float[np.ndarray, " images"] | None:
    """Return how much each of `count` images counts; None for equally.

    Raises:
        InputError: not one number per image, one is negative or infinite, or all are zero.
    """
    if weights is None:
        return None
    try:
        found = np.asarray(weights, float)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (count,) or not ((found >= 0) & (found < np.inf)).all() or not found.any():
        raise InputError(
            f"expected sample_weight as {count} numbers, one per image, none negative and not all"
            f" zero, got {weights!r:.80}; correct it or leave it out"
        )
    return found


def required(labels: Labels | None) -> Labels:
    """Return labels that have to be there.

    Raises:
        InputError: they are not.
    """
    if labels is None:
        raise InputError(
            "expected a label for every image, got none; give labels, or the path or name of a"
            " dataset alone"
        )
    return labels


def refuse_labels(labels: Labels | None) -> None:
    """Refuse labels where a dataset has its own.

    Raises:
        InputError: there are some.
    """
    if labels is not None:
        raise InputError(
            "expected a dataset's path or name without labels, got labels too; leave them out, or"
            " put the path of a single image into a list"
        )


def _checked_name(image: Any, number: int) -> str:
    """Return what messages call an image, if it is of a type and shape that can be read."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    if isinstance(image, Image.Image):
        usable = image.mode not in ("I", "F")
    else:
        array = np.asarray(image)
        usable = array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size
    if not usable:
        raise InputError(
            "expected paths, PIL images of 8 or 16 bits per channel, or uint8 arrays"
            f" [height, width, 3], got {_shown(image)} as image {number}; convert it (pixels are"
            " whole numbers from 0 to 255)"
        )
    return f"image {number}"


def _shown(image: Any) -> str:
    """A few words for an image."""
    if isinstance(image, str | os.PathLike):
        return f"the path {os.fspath(image)}"
    if isinstance(image, Image.Image):
        return f"a PIL image of mode {image.mode}"
    array = np.asarray(image)
    if array.dtype == object or not array.ndim:
        return f"{type(image).__name__} {image!r:.40}"
    return f"an array of {array.dtype} {list(array.shape)}"


def _png(image: Image.Image, orientation: int) -> bytes:
    file = io.BytesIO()
    whole = image if image.mode in PNG_MODES else image.convert("RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    whole.save(file, "PNG", compress_level=0, exif=exif)
    return file.getvalue()
