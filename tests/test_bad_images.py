"""What becomes of images that are broken or of an unusual kind."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from coop_jax.clip import preprocess
from coop_jax.data.examples import Examples, FileSource
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
    message = r"image in broken.jpg of the test split, got \d+ bytes .* replace or remove the file"
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


def test_an_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    orientation, turned = 0x0112, 6
    exif[orientation] = turned
    encoded = saved(RGB, "JPEG", exif=exif)
    image = read(tmp_path, "turned.jpg", encoded)
    assert image.getexif()[orientation] == turned
    assert image.size == RGB.size
    np.testing.assert_array_equal(square(image), official(encoded))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1)])
def test_a_side_of_one_pixel_is_enough(tmp_path, shape):
    row = RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)
    image = read(tmp_path, "thin.png", saved(Image.fromarray(row), "PNG"))
    np.testing.assert_array_equal(np.asarray(image), row)
    assert square(image).shape == (SIZE, SIZE, 3)
    augmented = preprocess.augment(image, SIZE, np.random.default_rng(0))
    assert augmented.shape == (SIZE, SIZE, 3)


def test_a_gigantic_image_is_refused_and_a_large_one_is_read(tmp_path, monkeypatch):
    encoded = saved(RGB, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", RGB.width * RGB.height - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert read(tmp_path, "large.png", encoded).tobytes() == RGB.tobytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"giant.png of the test .* exceeds limit .*; replace or"):
        read(tmp_path, "giant.png", encoded)
