import re

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coop_jax.clip import preprocess
from coop_jax.errors import InputError


@pytest.fixture(scope="module")
def golden():
    with np.load(reference.path("golden/preprocess.npz")) as file:
        return {key: file[key] for key in file}


def golden_keys(golden, pattern):
    """(case, number in the key, key) of every key CASE/pattern; there must be some."""
    found = [
        (m[1], int(m[2]), key) for key in golden if (m := re.fullmatch(f"(.+)/{pattern}", key))
    ]
    assert found
    return found


def test_test_transform_equals_official_pixels(golden):
    for case, size, key in golden_keys(golden, r"eval(\d+)_uint8"):
        got = preprocess.resize_and_center_crop(Image.fromarray(golden[f"{case}/input"]), size)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, golden[key], err_msg=key)


def test_normalised_equals_official_values(golden):
    for case, size, key in golden_keys(golden, r"eval(\d+)_normalised"):
        pixels = preprocess.resize_and_center_crop(Image.fromarray(golden[f"{case}/input"]), size)
        got = np.asarray(preprocess.normalize(pixels)).transpose(2, 0, 1)
        np.testing.assert_allclose(got, golden[key], rtol=0, atol=1e-6, err_msg=key)


def test_crops_equal_official_pixels(golden):
    boxes = golden_keys(golden, r"crop(\d+)_box_top_left_height_width")
    for case, number, box_key in boxes:
        keys = [key for key in golden if re.fullmatch(rf"{case}/crop{number}_uint8_\d+", key)]
        assert keys
        for key in keys:
            image = Image.fromarray(golden[f"{case}/input"])
            got = preprocess.crop_and_resize(
                image, tuple(golden[box_key]), int(key.rsplit("_", 1)[1])
            )
            np.testing.assert_array_equal(got, golden[key], err_msg=key)


def photograph(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_every_image_becomes_a_square(height, width, size):
    image = photograph(height, width)
    assert preprocess.resize_and_center_crop(image, size).shape == (size, size, 3)


def test_greyscale_becomes_three_equal_channels():
    image = photograph(9, 12).convert("L")
    got = preprocess.resize_and_center_crop(image, 6)
    np.testing.assert_array_equal(got, np.repeat(got[..., :1], 3, axis=-1))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(0, 2**32),
    st.sampled_from([(0.08, 1.0), (0.5, 0.5), (1.0, 1.0)]),
)
def test_a_sampled_box_lies_inside_the_image(width, height, seed, scale):
    box = preprocess.sample_crop_box(width, height, np.random.default_rng(seed), scale)
    assert 0 <= box.top < box.top + box.height <= height
    assert 0 <= box.left < box.left + box.width <= width


def test_sampled_boxes_have_the_protocol_s_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([preprocess.sample_crop_box(1000, 1000, rng) for _ in range(4000)])
    top, left, height, width = boxes.T
    area = height * width / 1e6
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.95
    ratio = np.log(width / height)
    assert abs(ratio).max() < np.log(4 / 3) + 0.01
    assert abs(ratio.mean()) < 0.02
    # In a square image the chance that fraction a fits is min(1, log(1 / a) / log(4 / 3)), so that
    # the accepted fractions have mean 0.478.
    assert abs(area.mean() - 0.478) < 0.015
    assert abs((top / (1000 - height + 1)).mean() - 0.5) < 0.03
    assert abs((left / (1000 - width + 1)).mean() - 0.5) < 0.03


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        # No box of at least 99 % of the area and within the ratio limits fits in these.
        (300, 30, (0, 130, 30, 40)),
        (30, 300, (130, 0, 40, 30)),
    ],
)
def test_fallback_is_the_largest_central_box_within_the_limits(width, height, box):
    got = preprocess.sample_crop_box(width, height, np.random.default_rng(0), (0.99, 1.0))
    assert got == box


def test_augment_is_crop_then_flip():
    image = photograph(40, 60)
    for seed in range(20):
        box = preprocess.sample_crop_box(60, 40, np.random.default_rng(seed))
        crop = preprocess.crop_and_resize(image, box, 16)
        never = preprocess.augment(image, 16, np.random.default_rng(seed), flip=0.0)
        always = preprocess.augment(image, 16, np.random.default_rng(seed), flip=1.0)
        np.testing.assert_array_equal(never, crop)
        np.testing.assert_array_equal(always, crop[:, ::-1])


def test_flip_has_the_given_probability():
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8))
    full = {"scale": (1.0, 1.0), "ratio": (2.0, 2.0)}
    rng = np.random.default_rng(0)
    flips = [
        preprocess.augment(image, 2, rng, **full, flip=0.3)[0, 0, 0] > 128 for _ in range(2000)
    ]
    assert 0.26 < np.mean(flips) < 0.34


def test_normalize_gives_the_wanted_type_and_statistics():
    pixels = np.array([[[0, 51, 255]]], np.uint8)
    got = preprocess.normalize(pixels, (0.0, 0.2, 0.5), (1.0, 1.0, 0.25), jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), [[[0, 0, 2]]], atol=1e-6)


@pytest.mark.parametrize("box", [(0, 0, 5, 4), (-1, 0, 2, 2), (0, 3, 2, 2), (0, 0, 0, 2)])
def test_a_box_outside_the_image_is_refused(box):
    with pytest.raises(InputError, match="height 4 and width 4"):
        preprocess.crop_and_resize(photograph(4, 4), box, 8)


def test_bad_size_and_bad_pixels_are_refused():
    with pytest.raises(InputError, match="got 0"):
        preprocess.resize_and_center_crop(photograph(4, 4), 0)
    with pytest.raises(InputError, match=r"float32 \[2, 2, 3\]"):
        preprocess.normalize(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(InputError, match=r"uint8 \[3, 2, 2\]"):
        preprocess.normalize(np.zeros((3, 2, 2), np.uint8))
