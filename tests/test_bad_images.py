"""What becomes of images that are broken or of an unusual kind."""

import dataclasses
import io
import os
import re
import shutil
import struct
import sys
import warnings

import numpy as np
import pytest
from makers import refusal
from PIL import Image

from coop_jax.clip import preprocess
from coop_jax.data import catalog, decoding, memory, prepare
from coop_jax.data.examples import Examples, FileSource, ImageCache
from coop_jax.data.pipeline import pixels
from coop_jax.errors import InputError

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (9, 12, 3)).astype(np.uint8))
SIZE = 6


def examples_of(root, *names):
    """Files in a folder as a test split."""
    count = len(names)
    paths = np.array(names)
    return Examples(
        FileSource(root, paths), "test", np.zeros(count, np.int32), paths, np.arange(count)
    )


def saved(image, format, **options):
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(tmp_path, name, encoded):
    """The image of a file of these bytes."""
    (tmp_path / name).write_bytes(encoded)
    return examples_of(tmp_path, name).image(0)


def square(image):
    return preprocess.resize_and_center_crop(image, SIZE)


def official(encoded):
    """The official code's pixels: Pillow's, converted to RGB, then the test transform."""
    with Image.open(io.BytesIO(encoded)) as image:
        return square(image.convert("RGB"))


TRUNCATED = {
    "JPEG": saved(RGB.resize((60, 60)), "JPEG"),
    "PNG": saved(RGB, "PNG"),
    "GIF": saved(RGB, "GIF"),
    "BMP": saved(RGB, "BMP"),
}
BROKEN = {
    **{kind: encoded[: len(encoded) // 2] for kind, encoded in TRUNCATED.items()},
    "empty": b"",
    "text": b"a text file that somebody named .jpg\n",
    "zeros": bytes(500),
    "no width": b"P6 0 5 255\n",
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_image_is_named_with_its_split(tmp_path, kind, threads):
    (tmp_path / "a.png").write_bytes(saved(RGB, "PNG"))
    (tmp_path / "broken.jpg").write_bytes(BROKEN[kind])
    examples = examples_of(tmp_path, "a.png", "broken.jpg")
    message = r"image in broken.jpg of the test split, got \d+ bytes .* replace the file"
    with pytest.raises(InputError, match=message) as caught:
        examples.image(1)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)
    served = pixels(
        examples,
        lambda image, _: square(image),
        np.array([[0, 0], [0, 1]]),
        seed=0,
        batch_size=1,
        threads=threads,
    )
    np.testing.assert_array_equal(next(served)[0], square(RGB))
    with pytest.raises(InputError, match=message) as caught:
        next(served)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_vanished_file_is_named_with_its_split(tmp_path, threads):
    (tmp_path / "folder.png").mkdir()
    examples = examples_of(tmp_path, "gone/a.png", "folder.png")
    with pytest.raises(InputError, match=r"folder.png of the test split, got .*; restore it"):
        examples.image(1)
    served = pixels(
        examples,
        lambda image, _: square(image),
        np.array([[0, 0]]),
        seed=0,
        batch_size=1,
        threads=threads,
    )
    with pytest.raises(InputError, match=r"gone/a.png of the test split, got .*; restore it"):
        next(served)


def test_what_might_never_end_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    (tmp_path / "long.jpg").write_bytes(bytes(101))
    monkeypatch.setattr(decoding, "LARGEST_FILE", 100)
    wanted = {
        "pipe.jpg": "a pipe or a device in place of a file",
        "loop.jpg": "symbolic links",
        "zeros.jpg": "a pipe or a device in place of a file",
        "long.jpg": "a file of 101 bytes, more than 100",
    }
    examples = examples_of(tmp_path, *wanted)
    for index, (name, reason) in enumerate(wanted.items()):
        given = memory.examples([tmp_path / name], split="test")
        for call in ((examples.image, index), (given.image, 0), (getattr, given, "content")):
            line = refusal(*call)
            assert f"{name} of the test split" in line and reason in line


def with_palette(**options):
    return saved(RGB.quantize(16), "PNG", **options)


ALPHA = Image.fromarray(RNG.integers(0, 256, (9, 12, 4)).astype(np.uint8), "RGBA")
AS_PILLOW = {
    "L": saved(RGB.convert("L"), "PNG"),
    "L with a transparent grey": saved(RGB.convert("L"), "PNG", transparency=7),
    "LA": saved(ALPHA.convert("LA"), "PNG"),
    "1": saved(RGB.convert("1"), "PNG"),
    "P": with_palette(),
    "P with a transparent colour": with_palette(transparency=3),
    "RGB with a transparent colour": saved(RGB, "PNG", transparency=(1, 2, 3)),
    "RGBA": saved(ALPHA, "PNG"),
    "CMYK JPEG": saved(RGB.convert("CMYK"), "JPEG"),
    "CMYK TIFF": saved(RGB.convert("CMYK"), "TIFF"),
    "YCbCr": saved(RGB.convert("YCbCr"), "JPEG"),
    "LAB": saved(Image.fromarray(np.asarray(RGB), "LAB"), "TIFF"),
    "grey JPEG": saved(RGB.convert("L"), "JPEG"),
}


@pytest.mark.parametrize("kind", AS_PILLOW)
def test_other_modes_become_rgb_as_in_the_official_code(tmp_path, kind):
    image = read(tmp_path, "image.png", AS_PILLOW[kind])
    mode = image.mode
    np.testing.assert_array_equal(square(image), official(AS_PILLOW[kind]))
    assert image.mode == mode


def test_a_palette_with_many_transparencies_is_converted_without_a_warning(tmp_path):
    encoded = with_palette(transparency=bytes(range(0, 256, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = official(encoded)
    np.testing.assert_array_equal(square(read(tmp_path, "a.png", encoded)), wanted)


def test_the_modes_of_the_parametrized_files_are_those_of_their_names():
    for kind, encoded in AS_PILLOW.items():
        with Image.open(io.BytesIO(encoded)) as image:
            wanted = {"YCbCr": "RGB", "grey": "L"}.get(kind.split()[0], kind.split()[0])
            assert image.mode == wanted, kind


def test_values_outside_16_bits_are_those_nearest():
    values = np.array([[-5, 70_000], [256, 65_535]], np.int32)
    got = preprocess.crop_and_resize(Image.fromarray(values), (0, 0, 2, 2), 2)
    np.testing.assert_array_equal(got[..., 0], [[0, 255], [1, 255]])


DEEP = np.array([[0, 255, 256, 1000], [32767, 32768, 65279, 65535]], np.uint16)


@pytest.mark.parametrize(
    "encoded",
    [
        saved(Image.fromarray(DEEP), "PNG"),
        saved(Image.fromarray(DEEP), "TIFF"),
        saved(Image.fromarray(DEEP.astype(">u2")), "TIFF"),
        saved(Image.fromarray(DEEP), "PPM"),
    ],
    ids=["PNG", "TIFF", "big-endian TIFF", "PGM"],
)
def test_of_16_bit_greyscale_the_high_byte_counts(tmp_path, encoded):
    image = read(tmp_path, "deep.png", encoded)
    assert image.mode.startswith("I")
    got = preprocess.crop_and_resize(image, (0, 0, 2, 2), 2)
    np.testing.assert_array_equal(got, np.repeat((DEEP // 256)[:, :2, None], 3, axis=2))
    shown = np.repeat((DEEP // 256).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(square(image), square(Image.fromarray(shown)))
    with Image.open(io.BytesIO(encoded)) as clipped:
        assert np.asarray(clipped.convert("RGB")).max(axis=(0, 2)).tolist() == [255] * 4


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
def test_deeper_images_are_refused(tmp_path, dtype):
    encoded = saved(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    with pytest.raises(
        InputError, match=r"8 or 16 bits per channel in a.tif of the test split, got .*; save it as"
    ):
        read(tmp_path, "a.tif", encoded)


def test_the_transforms_refuse_floating_point():
    image = Image.fromarray(np.ones((4, 4), np.float32))
    transforms = (
        lambda: square(image),
        lambda: preprocess.crop_and_resize(image, (0, 0, 2, 2), SIZE),
        lambda: preprocess.augment(image, SIZE, np.random.default_rng(0)),
    )
    for transform in transforms:
        with pytest.raises(InputError, match="got floating-point values; make an 8-bit image"):
            transform()


FRAMES = [Image.new("RGB", (9, 12), colour) for colour in ("red", "lime", "blue")]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_an_animation_the_first_frame_counts(tmp_path, kind):
    encoded = saved(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:])
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.n_frames == 3
    image = read(tmp_path, "film.gif", encoded)
    for _ in range(2):
        np.testing.assert_array_equal(square(image), official(encoded))
    assert np.abs(square(image).astype(int) - (255, 0, 0)).max() <= 2


ORIENTATION = 0x0112
FROM_UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
UPRIGHT = Image.fromarray(RNG.integers(0, 2, (2, 3, 3)).astype(np.uint8) * 255)
UPRIGHT = UPRIGHT.resize((48, 32), Image.Resampling.NEAREST)


def as_a_camera_saves(orientation, format, **options):
    """A file of `UPRIGHT` whose pixels lie otherwise, as its tag says."""
    turn, exif = FROM_UPRIGHT[orientation], Image.Exif()
    exif[ORIENTATION] = orientation
    lying = UPRIGHT if turn is None else UPRIGHT.transpose(turn)
    return lying, saved(lying, format, exif=exif, **options)


def assert_same_picture(image, expected):
    assert image.size == expected.size
    difference = np.asarray(image.convert("RGB")).astype(int) - np.asarray(expected)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_exif_orientation_counts_in_own_images_alone(tmp_path, orientation, format):
    options = {"quality": 95} if format in ("JPEG", "AVIF", "WEBP") else {}
    lying, encoded = as_a_camera_saves(orientation, format, **options)
    (tmp_path / "phone.jpg").write_bytes(encoded)
    official = examples_of(tmp_path, "phone.jpg")
    own = dataclasses.replace(official, upright=True, cache=ImageCache())
    for _ in range(2):
        assert_same_picture(own.image(0), UPRIGHT)
        assert_same_picture(official.image(0), UPRIGHT if format == "TIFF" else lying)


def test_own_images_are_upright_in_their_files_and_in_a_copy(tmp_path):
    (tmp_path / "phone.jpg").write_bytes(as_a_camera_saves(6, "JPEG", quality=95)[1])
    shutil.copy(tmp_path / "phone.jpg", tmp_path / "again.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split\nphone.jpg,cat,train\nagain.jpg,cat,test\n")
    for place in ("folder", "prepared copy"):
        dataset = catalog.load(str(table), tmp_path)
        assert dataset.place.startswith(place)
        for split in (dataset.train, dataset.test, dataset.test.subset([0])):
            assert_same_picture(split.image(0), UPRIGHT)
        prepare.prepare(str(table), tmp_path)


@pytest.mark.parametrize("orientation", FROM_UPRIGHT)
def test_heic_is_upright_where_pillow_heif_is_installed(orientation):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs coop_jax[heic]")
    lying, _ = as_a_camera_saves(orientation, "PNG")
    exif, file = Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = orientation
    pillow_heif.from_pillow(lying).save(file, exif=exif.tobytes(), quality=95)
    assert_same_picture(decoding.decode(file.getvalue(), "a.heic", upright=True), UPRIGHT)


def test_heic_without_pillow_heif_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    line = refusal(decoding.decode, b"\0\0\0\x18ftypheic" + bytes(99), "a.heic", upright=True)
    assert "got HEIC; convert it (or pip install 'coop_jax[heic]')" in line


def test_an_orientation_in_xmp_counts_too():
    lying, _ = as_a_camera_saves(6, "PNG")
    for xmp in (b'<x tiff:Orientation="6"/>', b"<tiff:Orientation>6</tiff:Orientation>"):
        encoded = saved(lying, "WEBP", xmp=xmp, quality=95)
        assert_same_picture(decoding.decode(encoded, "a.webp", upright=True), UPRIGHT)


@pytest.mark.parametrize("damaged", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x63", b"Exif\0\0none"])
def test_damaged_exif_data_turns_nothing(damaged):
    encoded = saved(UPRIGHT, "PNG", exif=damaged)
    assert_same_picture(decoding.decode(encoded, "a.png", upright=True), UPRIGHT)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_a_side_of_one_pixel_is_enough(tmp_path, shape):
    row = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    image = read(tmp_path, "thin.png", saved(Image.fromarray(row), "PNG"))
    np.testing.assert_array_equal(np.asarray(image), row)
    assert square(image).shape == (SIZE, SIZE, 3)
    augmented = preprocess.augment(image, SIZE, np.random.default_rng(0))
    assert augmented.shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "AVIF"])
def test_pillow_s_own_limit_is_not_asked(format, monkeypatch):
    encoded = saved(RGB, format)
    with Image.open(io.BytesIO(encoded)) as image:
        wanted = square(image.convert("RGB"))
    most = RGB.width * RGB.height - 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    image = decoding.decode(encoded, "large", upright=True)
    np.testing.assert_array_equal(square(image), wanted)
    preprocess.augment(image, SIZE, np.random.default_rng(0), scale=(1, 1), ratio=(4 / 3, 4 / 3))
    assert most == Image.MAX_IMAGE_PIXELS


def test_a_gigantic_image_is_refused_with_its_size_and_the_limit(tmp_path, monkeypatch):
    encoded = saved(Image.new("1", (2_000, 1_000)), "PNG")
    monkeypatch.setattr(decoding, "LARGEST", 2_000_000)
    assert read(tmp_path, "large.png", encoded).size == (2_000, 1_000)
    monkeypatch.setattr(decoding, "LARGEST", 1_000_000)
    line = r"at most 1 megapixels in giant.png of the test split, got 2000 x 1000 \(2 megapixels\);"
    with pytest.raises(InputError, match=line):
        read(tmp_path, "giant.png", encoded)


SCREEN = struct.pack("<HH", 11816, 12118)
ONE_PIXEL = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0;"
CLAIMS = {
    "GIF": b"GIF89a" + SCREEN + b"\x80\0\0" + bytes(6) + ONE_PIXEL,
    "PPM": b"P4 11816 12118\n",
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 11816, 12118, 1, 8, 1, *[0] * 5),
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 11816, 12118, 1, 0, 0, 0, 0),
}


@pytest.mark.parametrize("format", CLAIMS)
def test_a_small_file_that_claims_to_be_large_is_not_decoded(format):
    line = refusal(decoding.decode, CLAIMS[format], "bomb.gif", upright=True)
    small = (
        f"at most 1[67] megapixels in bomb.gif of {len(CLAIMS[format])} bytes, got 11816 x 12118"
    )
    assert re.search(small, line) or format == "PNG"
