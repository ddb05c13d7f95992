"""Image files that hold none, are too large, or never end."""

import functools
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from bad_inputs import Case
from bad_inputs.valid import FIT, images

FILE = "images/train/cat/0.jpg"


def _encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (20, 20)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, kind)
    return file.getvalue()


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says to be of this size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        whole = name + content
        return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header),
        chunk(b"IDAT", data or zlib.compress(b"\0")),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _gif(width: int, height: int) -> bytes:
    begin = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return begin + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"


def _bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 10, 0, 0, 54) + header + bytes(10)


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a zero byte": b"\0",
    "zeros": bytes(1000),
    "a text": b"a text that somebody named .jpg",
    "HTML": b"<!DOCTYPE html><html></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "JPEG's first bytes": b"\xff\xd8\xff\xe0",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a zip": b"PK\x05\x06" + bytes(18),
    "a PNG of 60,000 x 60,000": _png(60_000, 60_000),
    "a PNG of 2**31 - 1 squared": _png(2**31 - 1, 2**31 - 1),
    "a PNG without width": _png(0, 5),
    "a PNG of 100 MB of nothing": _png(30_000, 3000, zlib.compress(bytes(10**8), 9)),
    "a GIF of 11816 x 12118": _gif(11816, 12118),
    "a GIF of 65535 x 65535": _gif(65535, 65535),
    "a BMP of 40,000 x 40,000": _bmp(40_000, 40_000),
    "a BMP of -1": _bmp(-1, -1),
    "a PPM of 10**9 x 10**9": b"P6 1000000000 1000000000 255\n",
    "a PPM without width": b"P6 0 5 255\n",
    "an image of floating point": _encoded("TIFF", "F"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
}
TORN = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
PLACES: dict[str, Callable[[Path], object]] = {
    "a folder": os.mkdir,
    "a fifo": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("gone.jpg"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, content in CONTENTS.items():
        yield _case(f"an image that is {name}", functools.partial(_write, content))
    for kind in TORN:
        content = _encoded(kind)
        yield _case(f"half of a {kind}", functools.partial(_write, content[: len(content) // 2]))
    for name, make in PLACES.items():
        yield _case(f"an image that is {name}", make)
    for name in ("gone.jpg", "*.nothing", "", "images/test", "\0", "x" * 5000, "images/**/*.gif"):
        make = functools.partial(_predict, name)
        yield Case("images", f"predict of {name:.20}", make, "expected")


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _case(name: str, make: Callable[[Path], object]) -> Case:
    def words(folder: Path) -> Sequence[str]:
        images(folder)
        (folder / FILE).unlink()
        (folder / "images/train/cat/1.jpg").unlink()
        make(folder / FILE)
        return FIT

    return Case("images", name, words, "cat")


def _predict(name: str, folder: Path) -> Sequence[str]:
    from bad_inputs.valid import saved

    saved(folder)
    images(folder)
    if name == "images/test":
        name = "images/empty"
        (folder / name).mkdir()
    return ["predict", "saved", name]
