"""Pixels from Pillow exactly as the official transforms make them (protocol section 3)."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import PIL
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from PIL import Image

from coop_jax.clip.config import OPENAI_MEAN, OPENAI_STD, PixelConfig
from coop_jax.errors import InputError

OPENAI_PIXELS = PixelConfig()

PILLOW = PIL.__version__.split(".")[0]
"""Pillow's major version: what it resizes to has changed between them, by one level of 255."""


class Box(NamedTuple):
    """A rectangle inside an image, in pixels from its top left corner."""

    top: int
    left: int
    height: int
    width: int


def resize_and_center_crop(
    image: Image.Image, size: int, pixels: PixelConfig = OPENAI_PIXELS
) -> UInt8[np.ndarray, "size size 3"]:
    """The test transform: resize as the CLIP's maker does, then crop the centre.

    OpenAI's, the default, resizes the shorter side to `size`; the longer one is truncated to an
    integer, the resize is bicubic and antialiased, and the crop's offsets are half the surplus,
    Python-rounded (protocol section 3).

    Args:
        image: of any mode but floating point; converted to RGB by Pillow, and not modified. Of
            16-bit greyscale the high byte counts, where the official code clips at 255.
        size: side of the result in pixels.
        pixels: of the CLIP: `clip.config.pixels`.

    Returns:
        uint8 pixels, rows first, channels red, green, blue.

    Raises:
        InputError: if `size` is not positive or the image is floating point.
    """
    _check_size(size)
    image = _to_rgb(image)
    sides = _resized(*image.size, pixels, pixels.resize_to or (size, size))
    image = image.resize(sides, _filter(pixels.interpolation))
    left, top = (_offset(side - size, pixels.offsets) for side in sides)
    if pixels.fill and min(sides) < size:
        square = Image.new("RGB", (size, size), (pixels.fill,) * 3)
        square.paste(image, (-left, -top))
        return np.array(square)
    return np.array(image.crop((left, top, left + size, top + size)))


def crop_and_resize(
    image: Image.Image,
    box: tuple[int, int, int, int],
    size: int,
    interpolation: str = PixelConfig.interpolation,
) -> UInt8[np.ndarray, "size size 3"]:
    """Cut a box out of an image, then resize it to a square, antialiased.

    Args:
        image: of any mode but floating point; converted to RGB by Pillow, and not modified. Of
            16-bit greyscale the high byte counts, where the official code clips at 255.
        box: (top, left, height, width) in pixels.
        size: side of the result in pixels.
        interpolation: as `PixelConfig` has it.

    Returns:
        uint8 pixels, rows first, channels red, green, blue.

    Raises:
        InputError: if `size` is not positive, the image is floating point, or the box is empty or
            reaches outside the image.
    """
    _check_size(size)
    return np.array(_crop_and_resize(_to_rgb(image), Box(*map(int, box)), size, interpolation))


def sample_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw a crop by the rule of torchvision's RandomResizedCrop (protocol section 3).

    Up to ten attempts draw an area fraction uniformly from `scale` and an aspect ratio (width /
    height) log-uniformly from `ratio`; the first whose rounded sides fit is placed uniformly, row
    offset before column offset. If none fits: the largest central box within the ratio limits.

    Args:
        width: image width in pixels.
        height: image height in pixels.
        rng: source of the draws.
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio.

    Returns:
        The box (top, left, height, width) in pixels, inside the image.
    """
    smallest_log, largest_log = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(smallest_log + (largest_log - smallest_log) * rng.random())
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def augment(
    image: Image.Image,
    size: int,
    rng: np.random.Generator,
    *,
    interpolation: str = PixelConfig.interpolation,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> UInt8[np.ndarray, "size size 3"]:
    """The training transform: a random crop resized to a square, then a random horizontal flip.

    Args:
        image: of any mode but floating point; converted to RGB by Pillow, and not modified. Of
            16-bit greyscale the high byte counts, where the official code clips at 255.
        size: side of the result in pixels.
        rng: source of the draws: those of `sample_crop_box`, then one for the flip.
        interpolation: as `PixelConfig` has it.
        scale: smallest and largest fraction of the image's area.
        ratio: smallest and largest aspect ratio (width / height).
        flip: probability of the flip, between 0 and 1.

    Returns:
        uint8 pixels, rows first, channels red, green, blue (protocol section 3).

    Raises:
        InputError: if `size` is not positive or the image is floating point.
    """
    _check_size(size)
    image = _to_rgb(image)
    box = sample_crop_box(*image.size, rng, scale, ratio)
    image = _crop_and_resize(image, box, size, interpolation)
    if rng.random() < flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(image)


def normalize(
    pixels: UInt8[Array | np.ndarray, "*batch height width 3"],
    mean: tuple[float, float, float] = OPENAI_MEAN,
    std: tuple[float, float, float] = OPENAI_STD,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "*batch height width 3"]:
    """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

    Computed in float32, then cast (protocol section 3).

    Args:
        pixels: uint8, channels last.
        mean: per channel, of values in [0, 1]; OpenAI's by default.
        std: per channel, of values in [0, 1]; OpenAI's by default.
        dtype: floating type of the result.

    Returns:
        An array of the shape of `pixels`.

    Raises:
        InputError: if `pixels` is not uint8 with three channels last.
    """
    if pixels.dtype != np.uint8 or pixels.ndim < 3 or pixels.shape[-1] != 3:
        raise InputError(
            "expected uint8 pixels [..., height, width, 3], got "
            f"{pixels.dtype} {list(pixels.shape)}; pass the pixels as the transforms return them"
        )
    unit = jnp.asarray(pixels).astype(jnp.float32) / 255
    shift, scale = (
        jnp.asarray(values, jnp.float32).reshape((1,) * (unit.ndim - 1) + (3,))
        for values in (mean, std)
    )
    return ((unit - shift) / scale).astype(dtype)


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB as Pillow converts to it, but for 16-bit greyscale, which it would clip at 255."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise InputError(
            "expected an image of 8 or 16 bits per channel, got floating-point values; make an"
            " 8-bit image of it first"
        )
    if image.mode.startswith("I"):
        highest_byte = np.asarray(image).clip(0, 2**16 - 1) >> 8
        return Image.fromarray(highest_byte.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; the direct way warns of some palettes
    return image.convert("RGB")


def _crop_and_resize(image: Image.Image, box: Box, size: int, interpolation: str) -> Image.Image:
    top, left, height, width = box
    right, bottom = left + width, top + height
    inside = 0 <= top < bottom <= image.height and 0 <= left < right <= image.width
    if not inside:
        raise InputError(
            "expected a box (top, left, height, width) inside an image of "
            f"height {image.height} and width {image.width}, got {tuple(box)}; "
            "choose a box that the image contains"
        )
    # Cropping first keeps the filter from reading past the box, as `resize(box=...)` would. Pasted,
    # since `crop` warns of large photographs.
    crop = Image.new(image.mode, (width, height))
    crop.paste(image, (-left, -top))
    return crop.resize((size, size), _filter(interpolation))


def _filter(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]


def _resized(
    width: int, height: int, pixels: PixelConfig, wanted: tuple[int, int]
) -> tuple[int, int]:
    """The width and height of an image after the resize of the test transform."""
    if pixels.resize == "none":
        return width, height
    if pixels.resize == "squash":
        return wanted[1], wanted[0]
    (size, _), longer = wanted, max(width, height)
    if pixels.resize == "shortest":
        longer = int(size * longer / min(width, height))
        return (size, longer) if width <= height else (longer, size)
    ratio = longer / size
    return max(round(width / ratio), 1), max(round(height / ratio), 1)


def _offset(surplus: int, offsets: str) -> int:
    if offsets == "floor":
        return surplus // 2
    return round(surplus / 2) if surplus >= 0 else -(-surplus // 2)


def _check_size(size: int) -> None:
    if size < 1:
        raise InputError(f"expected an image size of at least 1 pixel, got {size}; raise it")
