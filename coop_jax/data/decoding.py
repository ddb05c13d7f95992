"""Encoded images: read from files and decoded by Pillow, within limits of our own."""

import contextlib
import errno
import importlib
import io
import os
import stat
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from coop_jax.errors import InputError

LARGEST = 250_000_000
"""Pixels of the largest image that is decoded."""

ALWAYS = 16_000_000
PER_BYTE = 20_000
"""An image of more pixels than `ALWAYS` needs a byte of its file for each `PER_BYTE` beyond them.

A blank page takes about so little: CCITT group 4, lossless WebP and AVIF reach 12,000 to 24,000
pixels per byte, PNG and JPEG 350.
"""

LARGEST_FILE = 2 * 2**30
"""Bytes of the largest file that is read: more than `LARGEST` pixels take in any format."""

# Pillow hands PostScript to Ghostscript, which runs it as a program.
_NOT_DECODED = ("EPS",)

_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


# Pillow warns of damaged EXIF data, whose other values are as good as ever.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def read(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: there is no such file, it cannot be read, it is larger than `LARGEST_FILE`, or it
            is a pipe, a device or a folder, which might never end.
    """
    name = os.path.expanduser(path)
    size = regular(name)
    if size > LARGEST_FILE:
        said = f"a file of {size:,} bytes, more than {LARGEST_FILE:,}"
        raise OSError(errno.EFBIG, said, name)
    return Path(name).read_bytes()


def regular(path: str | os.PathLike[str]) -> int:
    """Return the size of a regular file, in bytes.

    Raises:
        OSError: there is no such file, or it is a pipe, a device or a folder.
    """
    try:
        status = os.stat(path)
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder, a pipe or a device in place of a file"
        raise OSError(errno.EINVAL, what, os.fspath(path))
    return status.st_size


def decode(encoded: bytes, place: str, *, upright: bool) -> Image.Image:
    """Decode an image with Pillow, in the mode of its file; of an animation the first frame.

    Pillow's own limit, `Image.MAX_IMAGE_PIXELS`, is neither asked nor changed.

    Args:
        encoded: the bytes of a file.
        place: what messages call the image.
        upright: turn and mirror the image as its EXIF orientation says. TIFF and HEIC are turned
            in any case, by Pillow and pillow-heif.

    Raises:
        InputError: the image cannot be decoded, has more than 16 bits per channel, or has more
            pixels than `LARGEST` or than such a small file can hold.
    """
    try:
        image = _open(encoded, place)
        _check_size(image.size, len(encoded), place)
        _load(image)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        unknown = isinstance(error, UnidentifiedImageError)
        cause = "no image format that it knows" if unknown else str(error) or type(error).__name__
        raise InputError(
            f"expected a readable image in {place}, got {len(encoded)} bytes that Pillow cannot"
            f" decode ({cause}); replace the file"
        ) from error
    more_than_16_bits = image.mode == "I" and image.format != "PPM"
    if image.mode == "F" or more_than_16_bits:
        raise InputError(
            f"expected an image of 8 or 16 bits per channel in {place}, got Pillow's mode"
            f" {image.mode} ({image.format}); save it as 8-bit RGB"
        )
    return _turned(image) if upright else image


def orientation(image: Image.Image) -> int:
    """Return the orientation in an image's EXIF or XMP data, from 1 (upright) to 8.

    1 where there is none or it cannot be read.
    """
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's readers of damaged data raise many kinds
        return 1
    return found if found in range(1, 9) else 1


def highest(image: Image.Image, encoded: bytes) -> int:
    """Return the highest value of a decoded 16-bit image, of which Pillow may keep the high byte.

    -1 for an image of fewer bits.
    """
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    bits = encoded[24] if image.format == "PNG" else getattr(image, "tag_v2", {}).get(258, (8,))[0]
    if bits != 16:
        return -1
    colours = [highest for _, highest in np.atleast_2d(image.getextrema())]
    has_alpha = image.mode in ("LA", "RGBA")
    return 256 * max(colours[: len(colours) - has_alpha]) + 255


def _open(encoded: bytes, place: str) -> Image.Image:
    """Identify an image as `Image.open` does, which would warn of large ones and refuse larger."""
    if is_heif(encoded):
        return _open_heif(encoded, place)
    for register_formats in (Image.preinit, Image.init):
        register_formats()
        for name in tuple(Image.ID):
            factory, accepts = Image.OPEN[name]
            accepted = accepts is None or accepts(encoded[:16])
            if name in _NOT_DECODED or isinstance(accepted, str) or not accepted:
                continue
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(io.BytesIO(encoded), "")
    raise UnidentifiedImageError


def is_heif(encoded: bytes) -> bool:
    """Tell whether a file that begins so is HEIF, and not AVIF, which Pillow decodes."""
    brands = encoded[8 : int.from_bytes(encoded[:4])]
    is_container = encoded[4:8] == b"ftyp" and encoded[8:12] in _HEIF_BRANDS
    return is_container and b"avif" not in brands


def _open_heif(encoded: bytes, place: str) -> Image.Image:
    try:
        plugin = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise InputError(
            f"expected an image that Pillow decodes in {place}, got HEIC; convert it (or pip"
            " install 'coop_jax[heic]')"
        ) from error
    return plugin.HeifImageFile(io.BytesIO(encoded), "")


def _check_size(size: tuple[int, int], file_bytes: int, place: str) -> None:
    width, height = size
    small_file = ALWAYS + PER_BYTE * file_bytes
    if width * height <= min(LARGEST, small_file):
        return
    limit, of, advice = LARGEST, "", "make it smaller"
    if small_file < LARGEST:
        limit, of, advice = small_file, f" of {file_bytes} bytes", "replace the file"
    raise InputError(
        f"expected an image of at most {limit / 1e6:.0f} megapixels in {place}{of}, got"
        f" {width} x {height} ({width * height / 1e6:.0f} megapixels); {advice}"
    )


def _load(image: Image.Image) -> None:
    is_tiff = hasattr(image, "_tile_size")
    if is_tiff and image.width * image.height > (Image.MAX_IMAGE_PIXELS or LARGEST):
        # Pillow makes the memory itself only after a look at its own limit.
        image.im = Image.core.new(image.mode, image._tile_size)  # pyright: ignore[reportAttributeAccessIssue]
    image.load()


def _turned(image: Image.Image) -> Image.Image:
    """The image as its orientation says, which is then no longer in it."""
    turn = _TURNS[orientation(image)]
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: value for key, value in image.info.items() if key not in _ORIENTED}
    return turned
