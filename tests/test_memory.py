"""Images and labels that are given as they are: paths, PIL images and arrays."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from makers import refusal, write_image
from PIL import Image, ImageOps

from coop_jax.clip import preprocess
from coop_jax.data import memory, pipeline

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 12, 3)).astype(np.uint8)
RGB = Image.fromarray(PIXELS)
SIZE = 6


def square(image, _=None):
    return preprocess.resize_and_center_crop(image, SIZE)


def served(examples, count=1, threads=4):
    """The pixels of every example, so many times."""
    numbers = np.tile(np.arange(len(examples)), count)
    requests = np.stack([np.zeros_like(numbers), numbers], axis=1)
    batches = pipeline.pixels(examples, square, requests, seed=0, batch_size=4, threads=threads)
    return np.concatenate(list(batches))


def test_paths_images_and_arrays_are_the_same_pixels(tmp_path, monkeypatch):
    RGB.save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    for kind in ("image.png", Path("image.png"), tmp_path / "image.png", RGB, PIXELS):
        examples = memory.examples([kind], split="test")
        np.testing.assert_array_equal(np.asarray(examples.image(0)), PIXELS)
    mixed = memory.examples(["image.png", RGB, PIXELS], split="test")
    assert mixed.file_names.tolist() == ["image.png", "image 1", "image 2"]
    assert mixed.labels.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(served(mixed), np.stack([square(RGB)] * 3))


@given(arrays.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3, st.just(3))))
def test_an_array_comes_back_unchanged(pixels):
    examples = memory.examples(pixels, split="test")
    assert len(examples) == len(pixels)
    for index, expected in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(examples.image(index)), expected)


ORIENTATION = 0x0112


def test_a_pil_image_is_turned_as_its_orientation_says_and_once_alone():
    lying, file = RGB.transpose(Image.Transpose.ROTATE_90), io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lying.save(file, "PNG", exif=exif)
    tagged = lying.copy()
    tagged.getexif()[ORIENTATION] = 6
    opened = Image.open(file)
    given = [opened, opened.convert("RGBA"), ImageOps.exif_transpose(opened), tagged, RGB, PIXELS]
    examples = memory.examples(given, split="test")
    again = memory.examples([examples.image(index) for index in range(len(given))], split="test")
    for split in (examples, again):
        for index in range(len(given)):
            shown = np.asarray(split.image(index).convert("RGB"))
            np.testing.assert_array_equal(shown, PIXELS)
    assert (opened.size, tagged.getexif()[ORIENTATION]) == (lying.size, 6)


@pytest.mark.parametrize("odd", [0, 9, "6", (6, 6)])
def test_an_orientation_that_means_nothing_turns_nothing(odd):
    image = RGB.copy()
    image.getexif()[ORIENTATION] = odd
    np.testing.assert_array_equal(
        np.asarray(memory.examples([image], split="test").image(0)), PIXELS
    )


def palette_with_transparency():
    image = RGB.quantize(8)
    image.info["transparency"] = 3
    return image


IMAGES = {
    **{mode: RGB.convert(mode) for mode in ("1", "L", "P", "RGBA", "CMYK", "YCbCr", "HSV")},
    "LA": RGB.convert("RGBA").convert("LA"),
    "I;16": Image.fromarray(RNG.integers(0, 2**16, (9, 12)).astype(np.uint16)),
    "palette with transparency": palette_with_transparency(),
}


@pytest.mark.parametrize("mode", IMAGES)
def test_an_image_of_any_mode_is_what_the_transforms_make_of_it(mode):
    image = IMAGES[mode]
    before = image.mode, image.tobytes()
    np.testing.assert_array_equal(
        served(memory.examples([image], split="test")), square(image)[None]
    )
    assert (image.mode, image.tobytes()) == before


def test_threads_may_share_an_image_that_is_not_loaded_yet():
    file = io.BytesIO()
    big = Image.fromarray(RNG.integers(0, 256, (200, 200, 3)).astype(np.uint8))
    big.save(file, "PNG")
    examples = memory.examples([Image.open(file)] * 3, split="test")
    np.testing.assert_array_equal(
        served(examples, count=20, threads=8), np.stack([square(big)] * 60)
    )


def test_broken_images_are_named_or_black(tmp_path):
    write_image(tmp_path / "whole.png", RNG)
    (tmp_path / "text.jpg").write_text("no image")
    file = io.BytesIO()
    RGB.resize((99, 99)).save(file, "JPEG")
    torn = Image.open(io.BytesIO(file.getvalue()[:-500]))
    given = [tmp_path / "whole.png", tmp_path / "text.jpg", torn, tmp_path / "absent.jpg", PIXELS]
    examples = memory.examples(given, split="test")
    for index, name in ((1, "text.jpg"), (2, "image 2"), (3, "absent.jpg")):
        assert name in refusal(examples.image, index)
    forgiving = memory.Forgiving(examples)
    found = served(forgiving)
    assert sorted(forgiving.failures) == [1, 2, 3]
    assert "text.jpg of the test split" in forgiving.failures[1]
    assert [bool(pixels.any()) for pixels in found] == [True, False, False, False, True]
    np.testing.assert_array_equal(found[4], square(RGB))


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("cat.jpg", "the path cat.jpg alone"),
        (Path("cat.jpg"), "the path cat.jpg alone"),
        (RGB, "PIL image of mode RGB alone"),
        (7, "int 7 alone"),
        (PIXELS, r"shape [9, 12, 3]"),
        ([], "at least one image"),
        (np.zeros((0, 3, 3, 3), np.uint8), "at least one image"),
        ([RGB, None], "NoneType None as image 1"),
        ([PIXELS / 255], "float64 [9, 12, 3] as image 0"),
        ([PIXELS[..., 0]], "uint8 [9, 12] as image 0"),
        ([PIXELS[:0]], "uint8 [0, 12, 3] as image 0"),
        ([RGB.convert("F")], "PIL image of mode F as image 0"),
        ([RGB.convert("I")], "PIL image of mode I as image 0"),
    ],
)
def test_what_is_no_list_of_images_is_refused(images, expected):
    assert expected in refusal(memory.examples, images, split="test")


def test_labels_are_names_or_places():
    names = ("polka dotted", "banded")
    assert memory.label_numbers(["banded", "polka_dotted"], names).tolist() == [1, 0]
    assert memory.label_numbers(np.array(["polka dotted"]), names).tolist() == [0]
    assert memory.label_numbers([1, 0, 1], names).dtype == np.int32
    assert memory.label_numbers([1, 0, 1], names).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["banded", "stripes"], "got stripes"),
        ([0, 2], "got 2"),
        ([-1, 0], "got -1"),
        ([0.0, 1.0], "float64 [2]"),
        ([True, False], "bool [2]"),
        ([["banded"], ["banded"]], "[2, 1]"),
        ([None, "banded"], "object [2]"),
    ],
)
def test_labels_of_no_class_are_refused(labels, expected):
    assert expected in refusal(memory.label_numbers, labels, ("polka dotted", "banded"))


def test_given_images_are_a_training_split():
    dataset = memory.dataset([RGB, PIXELS, RGB], ["b", "a_1", "b"])
    assert dataset.classes.names == ("a_1", "b")
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert (len(dataset.val), len(dataset.test)) == (0, 0)
    ordered = memory.dataset([RGB, PIXELS], [1, 0], ["z", "a"])
    assert ordered.classes.names == ("z", "a")
    assert ordered.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "class_names", "expected"),
    [
        ([0, 1], None, "give class_names"),
        (["a"], None, "got 1 labels"),
        (["a", "b"], ["a"], "got b"),
        (["a", "a"], ["a", "c"], "got none of c"),
        (["a", "b"], "names.txt", "class_names as a list of texts, got 'names.txt'"),
        (["a", "b"], [1, 2], "class_names as a list of texts"),
    ],
)
def test_labels_and_class_names_that_do_not_fit_are_refused(labels, class_names, expected):
    assert expected in refusal(memory.dataset, [RGB, PIXELS], labels, class_names)
