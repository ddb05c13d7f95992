"""Random access to the encoded images of a split, wherever they lie."""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, Int32
from PIL import Image

from coop_jax.classes import Classes
from coop_jax.data import decoding
from coop_jax.errors import InputError


class Source(Protocol):
    """Records by position; each has `image`: encoded bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


class FileSource:
    """Image files as they lie in a folder: nothing is kept open, nothing is copied."""

    def __init__(self, root: Path, paths: np.ndarray):
        """`paths` are relative to `root`."""
        self._root, self._paths = root, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": decoding.read(self._root / str(self._paths[index]))}


class ImageCache:
    """Decoded images kept in memory, first come, first kept, up to a number of bytes.

    Safe to use from threads; pickled and copied without its contents.
    """

    def __init__(self, limit: int = 256 * 2**20):
        """Start empty; `limit` is in bytes of decoded pixels."""
        self._limit = limit
        self._used = 0
        self._images: dict[int, Image.Image] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["ImageCache"], tuple[int]]:
        return ImageCache, (self._limit,)

    def get(self, key: int) -> Image.Image | None:
        """The image kept under `key`, if any."""
        return self._images.get(key)

    def offer(self, key: int, image: Image.Image) -> None:
        """Keep the image if it is new and fits."""
        size = image.width * image.height * len(image.getbands())
        with self._lock:
            if key not in self._images and self._used + size <= self._limit:
                self._images[key] = image
                self._used += size


@dataclass(frozen=True)
class Examples:
    """Random access to encoded images and their labels: one split, or a part of it.

    Attributes:
        source: records with `image` (encoded bytes).
        split: the split's name, for messages.
        labels: label of every example.
        file_names: file of every example, relative to the dataset's root, or an id.
        indices: where every example is in `source`.
        cache: decoded images, shared with every subset.
        upright: images are turned as their EXIF orientation says; else it is ignored, as in the
            official code.
        features: of every record `[views, records, embedding]`, unnormalised, where they are given
            instead of images.
    """

    source: Source = field(repr=False)
    split: str
    labels: Int32[np.ndarray, " examples"] = field(repr=False)
    file_names: np.ndarray = field(repr=False)
    indices: Int[np.ndarray, " examples"] = field(repr=False)
    cache: ImageCache = field(default_factory=ImageCache, repr=False, compare=False)
    upright: bool = False
    features: Float[np.ndarray, "views records embedding"] | None = field(
        default=None, repr=False, compare=False
    )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Int[np.ndarray, " chosen"] | Sequence[int]) -> "Examples":
        """The examples at `indices` (positions in this object), in that order; may repeat.

        Raises:
            InputError: if an index is outside [0, len(self)).
        """
        chosen = np.asarray(indices, np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise InputError(
                f"expected indices from 0 to {len(self) - 1} into the {self.split} split, "
                f"got {chosen.min()} to {chosen.max()}; choose from the examples there are"
            )
        return dataclasses.replace(
            self,
            labels=self.labels[chosen],
            file_names=self.file_names[chosen],
            indices=self.indices[chosen],
        )

    def of_labels(self, labels: Int[np.ndarray, " classes"]) -> "Examples":
        """The examples of these labels (ascending), which are renumbered from 0."""
        kept = self.subset(np.flatnonzero(np.isin(self.labels, labels)))
        return dataclasses.replace(
            kept, labels=np.searchsorted(labels, kept.labels).astype(np.int32)
        )

    @functools.cached_property
    def content(self) -> str:
        """SHA-256 over the SHA-256 of every image's encoded bytes, in order.

        Raises:
            InputError: a file cannot be read; names it and the split.
        """
        whole = hashlib.sha256()
        for index in range(len(self)):
            whole.update(hashlib.sha256(self.encoded(index)).digest())
        return whole.hexdigest()

    def encoded(self, index: int) -> bytes:
        """The bytes of an example's file.

        Raises:
            InputError: the file cannot be read; names it and the split.
        """
        try:
            return self.source[int(self.indices[index])]["image"]
        except OSError as error:
            raise InputError(
                f"expected a readable file {self.place(index)}, got {error}; restore it or make it"
                " readable"
            ) from error

    def place(self, index: int) -> str:
        """Return what messages call an example."""
        name = str(self.file_names[index])
        return f"{name} of the {self.split} split" if self.split else name

    def image(self, index: int) -> Image.Image:
        """Decode an example with Pillow, in the mode of its file; of an animation the first frame.

        The image may be shared with other threads and later calls: do not modify it in place.

        Raises:
            InputError: the file cannot be read, or as `decoding.decode`; names the file and the
                split.
        """
        key = int(self.indices[index])
        image = self.cache.get(key)
        if image is None:
            encoded = self.encoded(index)
            image = decoding.decode(encoded, self.place(index), upright=self.upright)
            self.cache.offer(key, image)
        return image


@dataclass(frozen=True)
class Dataset:
    """A dataset with the three splits of the protocol.

    Attributes:
        name: the catalogue's name, or that of the folder or file.
        classes: those that labels number.
        templates: hand-crafted prompts with `{}` for the class name; the first is the dataset's
            own.
        train: training examples.
        val: validation examples; may be empty.
        test: test examples.
        origin: whose split it is where it is not the one that the papers used: "TFDS".
        place: where it was found.
        pixels_from: "TFDS" where the images are those that it stores, some of them re-encoded or
            resized; "" for the original files.
        texts: unnormalised text features `[templates, classes, embedding]`, where features are
            given instead of images.
        logit_scale: of the space of given features: what logits are, over cosine similarities.
        encoder: what made the given features, where that is known.
    """

    name: str
    classes: Classes
    templates: tuple[str, ...]
    train: Examples
    val: Examples
    test: Examples
    origin: str = ""
    place: str = ""
    pixels_from: str = ""
    texts: Float[np.ndarray, "templates classes embedding"] | None = field(
        default=None, repr=False, compare=False
    )
    logit_scale: float = 100.0
    encoder: str = ""

    @property
    def space(self) -> str:
        """Return what records call the features that are given; "" for images."""
        if self.texts is None:
            return ""
        of_encoder = f" of {self.encoder}" * bool(self.encoder)
        return f"{self.texts.shape[-1]}-dimensional features{of_encoder}"

    def check_space(self, backbone: str) -> None:
        """Refuse given features of another space than something was learned in.

        Args:
            backbone: what records call that space, or the CLIP.

        Raises:
            InputError: they are of another.
        """
        if self.space and self.space != backbone:
            raise InputError(
                f"expected in {self.name} what this was learned with, {backbone}, got {self.space};"
                " take all features from one encoder, or images for a CLIP"
            )

    @property
    def full_name(self) -> str:
        """Return what records call a dataset learned from: its name, and whose split it is."""
        return self.split_name(self.name)

    def split_name(self, part: str = "test") -> str:
        """Return what records call a part of the test split: its name, and whose split it is."""
        return f"{part} of {self.origin}" if self.origin else part

    def half(self, part: str) -> "Dataset":
        """The dataset with the base or the new classes alone (protocol 2.3).

        Base are the first ceil(C / 2) labels of those that have training images, new the rest;
        examples of other classes are left out and labels renumbered from 0 in ascending order.

        Raises:
            InputError: no such part, or it has no classes.
        """
        labels = np.unique(self.train.labels)
        middle = -(-len(labels) // 2)
        halves = {"base": labels[:middle], "new": labels[middle:], "all": labels}
        if part not in halves or not len(halves[part]):
            raise InputError(
                f"expected a part ({', '.join(halves)}) of the {len(labels)} classes of"
                f" {self.name} with at least one class, got {part!r:.80}; choose another"
            )
        chosen = halves[part]
        return dataclasses.replace(
            self,
            classes=self.classes.at(chosen.tolist()),
            texts=None if self.texts is None else self.texts[:, chosen],
            train=self.train.of_labels(chosen),
            val=self.val.of_labels(chosen),
            test=self.test.of_labels(chosen),
        )
