"""Images as methods take them: pixels, or outputs of the frozen tower, ahead of the steps.

A training image's features are a function of weights, image, seed, epoch and view alone, so they
are made in large batches, kept by content, and never made twice.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from coop_jax import parallel
from coop_jax.chunks import IMAGES_AT_ONCE
from coop_jax.clip import CLIP, FeatureSpace, preprocess
from coop_jax.data import pipeline
from coop_jax.data.examples import Examples
from coop_jax.errors import InputError
from coop_jax.feature_cache import Cache, Requests, kept
from coop_jax.methods import Images, Split

BATCH_SIZE = 256
"""Images that the frozen tower takes at once, over all devices, where nobody says otherwise."""

AHEAD = 2
"""Batches that the device may work on while the host makes the next."""

BYTES_AT_ONCE = 2**28
"""Memory that images made ahead of the steps may take."""


def of_tower(clip: CLIP, images: Float[Array, "batch size size 3"], field: str) -> Array:
    """Return a field of `Images` that the frozen tower makes, float32."""
    make = clip.encode_image if field == "features" else getattr(clip.vision, field)
    return make(images).astype(jnp.float32)


@functools.lru_cache(maxsize=8)
def compile_encoder(
    graphdef: nnx.GraphDef[CLIP], mesh: Mesh, fields: tuple[str, ...] = ("features",)
) -> Callable[..., list[Array]]:
    """Return a jitted `encode(state, pixels)`: uint8 pixels, split over the mesh, to fields."""

    def encode(state: nnx.State, pixels: Array) -> list[Array]:
        clip = nnx.merge(graphdef, state)
        images = clip.normalized(pixels)
        return [of_tower(clip, images, field) for field in fields]

    return jax.jit(
        encode,
        in_shardings=(parallel.replicated(mesh), parallel.over_data(mesh, 0)),
        out_shardings=parallel.replicated(mesh),
    )


def encode(
    clip: CLIP,
    pixels_of: Callable[
        [Int[np.ndarray, " images"], int], Iterator[UInt8[np.ndarray, "batch size size 3"]]
    ],
    count: int,
    mesh: Mesh,
    *,
    batch_size: int = BATCH_SIZE,
    fields: tuple[str, ...] = ("features",),
) -> list[Float[np.ndarray, "images ..."]]:
    """Return what the frozen tower makes of `count` images, float32 arrays in the fields' order.

    Every batch is padded with black images to the same number, one that the mesh can split evenly,
    and what they give is dropped; so there is one compilation. With several processes, each makes
    the pixels for its own devices, and all get everything.

    Args:
        clip: the frozen CLIP.
        pixels_of: from image numbers to their pixels, in batches of at most the given size.
        count: number of images.
        mesh: the devices.
        batch_size: images at once, over all devices.
        fields: of `Images`.
    """
    graphdef, state = nnx.split(clip)
    encoder = compile_encoder(graphdef, mesh, fields)
    state = parallel.put(state, parallel.replicated(mesh))
    rows = batch_size + parallel.padding(batch_size, mesh)
    own = [
        np.arange(start, min(start + rows, count))[parallel.own_rows(rows)]
        for start in range(0, max(count, 1), rows)
    ]
    size = rows // jax.process_count()
    batches = iter(pixels_of(np.concatenate(own), size))
    nothing = np.zeros((0, *(clip.config.vision.image_size,) * 2, 3), np.uint8)
    made: list[list[np.ndarray]] = []
    pending: collections.deque[list[Array]] = collections.deque()

    def collect(leave: int) -> None:
        while len(pending) > leave:
            made.append([np.asarray(output) for output in pending.popleft()])

    for numbers in own:
        pixels = next(batches) if len(numbers) else nothing
        if len(pixels) < size:
            pixels = np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))
        pending.append(encoder(state, parallel.put_rows(pixels, mesh)))
        collect(leave=AHEAD)
    collect(leave=0)
    return [np.concatenate(outputs)[:count] for outputs in zip(*made, strict=True)]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Makes of images what a method takes.

    Attributes:
        clip: the frozen CLIP; a `FeatureSpace` where features are given.
        mesh: the devices.
        takes: fields of `Images`.
        batch_size: images at once that the tower takes, over all devices.
        augmentation: settings of `preprocess.augment`.
        cache: where features are kept and sought; not all patches of augmented images, whose
            disk nobody has.
        weights: with a cache, what tells the CLIP from others: a hash of its files, its dtype.
        teacher: a second frozen CLIP.
        tell: called with a number of images that have been made.

    Raises:
        InputError: what a method takes is not given, or there is no teacher.
    """

    clip: CLIP | FeatureSpace
    mesh: Mesh
    takes: tuple[str, ...] = ("features",)
    batch_size: int = BATCH_SIZE
    augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: Cache | None = None
    weights: tuple[str, ...] = ()
    teacher: CLIP | None = None
    tell: Callable[[int], None] = lambda images: None

    def __post_init__(self):
        if isinstance(self.clip, FeatureSpace) and set(self.takes) != {"features"}:
            raise InputError(
                f"expected a method that takes features alone, which are given, got one that takes"
                f" {', '.join(self.takes)}; train on images instead"
            )
        if "teacher" in self.takes and self.teacher is None:
            raise InputError(
                "expected a second CLIP, whose features the method takes, got none; choose another"
                " method"
            )

    @property
    def is_small(self) -> bool:
        """True where what is made takes so little memory that a whole split is kept."""
        return not {"pixels", "tokens", "local", "patches"} & set(self.takes)

    @property
    def at_once(self) -> int:
        """The number of images that may be made ahead of the steps, bounded in bytes."""
        if self.is_small or isinstance(self.clip, FeatureSpace):
            return IMAGES_AT_ONCE
        size = self.clip.config.vision.image_size
        outputs = 4 * 257 * 1024  # float32 patch tokens of the largest tower
        each = sum(size**2 * 3 if field == "pixels" else outputs for field in self.takes)
        return int(np.clip(BYTES_AT_ONCE // each, 1, IMAGES_AT_ONCE))

    def images(
        self, examples: Examples, requests: Requests, *, seed: int, augmented: bool, views: int = 1
    ) -> Images:
        """Return what the method takes of the requested (epoch, example) pairs.

        Args:
            examples: the images.
            requests: rows of (epoch, place among the examples).
            seed: of the augmentation.
            augmented: whether images are augmented; else they are under the test transform.
            views: with several, they are a second axis; without augmentation the first is under the
                test transform and the others are augmented all the same.

        Raises:
            InputError: an image cannot be decoded, the cache's folder cannot be written, or as
                `check_given`.
        """
        if examples.features is not None or isinstance(self.clip, FeatureSpace):
            self.check_given(examples, views)
            return self._given(examples, requests, augmented, views)
        plain = [] if augmented else [self._views(examples, requests[None], None, seed)]
        number = np.arange(len(plain), views)[:, None]
        epochs, places = np.broadcast_arrays(requests[:, 0] * views + number, requests[:, 1])
        if len(number):
            wanted = np.stack([epochs, places], axis=2)
            plain.append(self._views(examples, wanted, self.augmentation, seed))
        made = [np.concatenate(parts) for parts in zip(*plain, strict=True)]
        made = [a[0] if views == 1 else np.moveaxis(a, 0, 1) for a in made]
        return Images(**dict(zip(self.takes, made, strict=True)))

    def test_images(
        self, examples: Examples, places: Int[np.ndarray, " images"], views: int = 1
    ) -> Images:
        """Return what the method takes of test images, given their places among the examples.

        Raises:
            InputError: as `images`.
        """
        requests = np.stack([np.zeros_like(places), places], axis=1)
        return self.images(examples, requests, seed=0, augmented=False, views=views)

    def _views(
        self,
        examples: Examples,
        requests: Int[np.ndarray, "views images 2"],
        augmentation: Mapping[str, Any] | None,
        seed: int,
    ) -> list[np.ndarray]:
        """Return `[views, images, ...]` for each field the method takes."""
        shape = requests.shape[:2]
        flat = requests.reshape(-1, 2)
        own = [field for field in self.takes if field != "teacher"]
        made = self._fields(self.clip, own, examples, flat, augmentation, seed, self.tell)
        if "teacher" in self.takes:
            again = self._fields(self.teacher, ["features"], examples, flat, augmentation, seed)
            made["teacher"] = again["features"]
        return [made[field].reshape(*shape, *made[field].shape[1:]) for field in self.takes]

    def check_given(self, examples: Examples, views: int) -> None:
        """Refuse given features of which what the method takes cannot be made.

        Args:
            examples: a split, of features or not.
            views: of every image.

        Raises:
            InputError: images where features are expected or the other way round, rows of another
                length, or too few views.
        """
        given = examples.features
        if given is None or not isinstance(self.clip, FeatureSpace):
            wanted, got = ("features", "images") if given is None else ("images", "features")
            raise InputError(
                f"expected {wanted}, got {got}; use what is learned from features with features,"
                " and what is learned with a CLIP with images"
            )
        if given.shape[-1] != self.clip.config.embedding:
            raise InputError(
                f"expected features of {self.clip.config.embedding} numbers, as the text features"
                f" have, got {given.shape[-1]}; take all of them from one encoder"
            )
        if len(given) < views:
            raise InputError(
                f"expected {views} views of each image, which the method takes, got"
                f" {len(given)}; give more, or lower the method's number of views"
            )

    def _given(self, examples: Examples, requests: Requests, augmented: bool, views: int) -> Images:
        given = examples.features
        assert given is not None
        rows = examples.indices[requests[:, 1]]
        if views > 1:
            return Images(features=np.moveaxis(given[:views, rows], 0, 1))
        return Images(features=given[requests[:, 0] % len(given) if augmented else 0, rows])

    def _fields(
        self,
        clip: Any,
        fields: list[str],
        examples: Examples,
        requests: Requests,
        augmentation: Mapping[str, Any] | None,
        seed: int,
        tell: Callable[[int], None] = lambda images: None,
    ) -> dict[str, np.ndarray]:
        """Return fields of a CLIP by name; every image is decoded once for all of them."""
        transform = _transform(clip, augmentation, tell)

        def decoded(wanted: Requests, batch_size: int) -> Iterator[np.ndarray]:
            return pipeline.pixels(examples, transform, wanted, seed=seed, batch_size=batch_size)

        def make(
            wanted: Requests, fields: Sequence[str], pixels: np.ndarray | None = None
        ) -> dict[str, np.ndarray]:
            def pixels_of(numbers: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
                if pixels is None:
                    yield from decoded(wanted[numbers], batch_size)
                    return
                for start in range(0, len(numbers), batch_size):
                    yield pixels[numbers[start : start + batch_size]]

            settings = {"batch_size": self.batch_size, "fields": tuple(fields)}
            outputs = encode(clip, pixels_of, len(wanted), self.mesh, **settings)
            return dict(zip(fields, outputs, strict=True))

        encoded = [field for field in fields if field != "pixels"]
        made: dict[str, np.ndarray] = {}
        if "pixels" in fields:
            made["pixels"] = np.concatenate([*decoded(requests, self.batch_size)])
        if self.cache is None or not (self.is_small or augmentation is None):
            return made | (make(requests, encoded, made.get("pixels")) if encoded else {})
        images = examples.content, examples.indices.tolist(), *orientation_settings(examples)
        described = "test" if augmentation is None else dict(augmentation)
        known = [*images, *self.weights, *pixel_settings(clip), described, seed]
        whole = len(examples) if len(examples) <= self.at_once else 0
        return made | kept(self.cache, encoded, known, requests, whole, make)


def _transform(
    clip: CLIP, augmentation: Mapping[str, Any] | None, tell: Callable[[int], None]
) -> pipeline.Transform:
    """Return a CLIP's test transform or, with an augmentation, the training transform."""
    size, settings = clip.config.vision.image_size, clip.config.pixels

    def transform(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        if augmentation is None:
            pixels = preprocess.resize_and_center_crop(image, size, settings)
        else:
            pixels = preprocess.augment(
                image, size, rng, interpolation=settings.interpolation, **augmentation
            )
        tell(1)
        return pixels

    return transform


def split(
    encoder: Encoder, examples: Examples, *, seed: int, views: int = 1, labelled: bool = True
) -> Split:
    """Return a split as `Method.prepare` sees it.

    Args:
        encoder: what makes what the method takes.
        examples: the images.
        seed: of the augmentation.
        views: of every image.
        labelled: whether the method may see the labels; else they are -1.
    """

    def of_requests(requests: Requests, augmented: bool) -> Images:
        return encoder.images(examples, requests, seed=seed, augmented=augmented, views=views)

    labels = examples.labels if labelled else np.full_like(examples.labels, -1)
    given = examples.features
    return Split(labels, of_requests, None if given is None else len(given))


def pixel_settings(clip: CLIP | FeatureSpace) -> tuple[Any, ...]:
    """Return what a CLIP's pixels depend on besides the images and the transform."""
    if isinstance(clip, FeatureSpace):
        return ()
    pixels = dataclasses.astuple(clip.config.pixels)
    return clip.config.vision.image_size, *pixels, preprocess.PILLOW


def orientation_settings(*splits: Examples) -> tuple[str, ...]:
    """Return what pixels depend on besides where images of a split are turned upright."""
    return ("upright",) if any(examples.upright for examples in splits) else ()
