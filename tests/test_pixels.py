"""Pixels as a checkpoint's own config says, against its maker's transforms."""

import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import record_pixels
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from record_pixels import CROPPED, HUGGING_FACE, OPEN_CLIP, SHAPES, SIZE, SQUARE

from coop_jax import clip, images
from coop_jax.clip import pixels, preprocess, source
from coop_jax.clip.config import PixelConfig
from coop_jax.data import memory
from coop_jax.errors import InputError

RECORDED = Path(__file__).parent / "data" / "pixels.npz"
SHORTEST = {"size": {"shortest_edge": SIZE}}


def made(photograph, size, settings):
    """The pixels of the test transform, uint8 and normalised."""
    levels = preprocess.resize_and_center_crop(photograph, size, settings)
    return levels, np.asarray(preprocess.normalize(levels, settings.mean, settings.std))


def levels_of(normalised, settings):
    return np.rint((normalised * np.array(settings.std) + settings.mean) * 255).astype(int)


def check(photograph, size, settings, expected):
    """At most the last digit apart as uint8, and hence as numbers."""
    levels, normalised = made(photograph, size, settings)
    np.testing.assert_allclose(levels, levels_of(expected, settings), rtol=0, atol=1)
    same = levels == levels_of(expected, settings)
    np.testing.assert_allclose(normalised[same], expected[same], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["open_clip", "hugging_face"])
def test_pixels_are_those_recorded_from_the_makers(kind):
    with np.load(RECORDED) as recorded:
        cases = {"open_clip": OPEN_CLIP, "hugging_face": HUGGING_FACE}[kind]
        assert {name.split("/")[1] for name in recorded if name.startswith(kind)} == set(cases)
        for name, stated in cases.items():
            settings = read(kind, stated, SIZE)
            for shape, expected in zip(SHAPES, recorded[f"{kind}/{name}"], strict=True):
                check(record_pixels.image(*shape), SIZE, settings, expected)


def read(kind, stated, size):
    if kind == "open_clip":
        return pixels.from_open_clip(stated, "a file")
    return pixels.from_hugging_face(stated, size, "a file")


@pytest.mark.makers
def test_pixels_are_those_of_open_clip():
    modes = itertools.product(
        ("shortest", "longest", "squash"), ("bicubic", "bilinear", "random"), (0, 9)
    )
    for (mode, interpolation, fill), size in itertools.product(modes, (32, 33)):
        stated = {"resize_mode": mode, "interpolation": interpolation, "fill_color": fill}
        settings = pixels.from_open_clip(stated, "a file")
        transform = record_pixels.open_clip_transform(stated, size)
        for shape in ((1, 1), (7, 30), (33, 32), (32, 35), (101, 200), (31, 90), (37, 33)):
            photograph = record_pixels.image(*shape)
            check(photograph, size, settings, transform(photograph))


@pytest.mark.makers
def test_pixels_are_those_of_transformers():
    types = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")
    square = {"height": 33, "width": 33}
    sizes = ({"shortest_edge": 40}, {"shortest_edge": 20}, 33, square, [40, 37])
    crops = ({"do_center_crop": False}, {"do_center_crop": True, "crop_size": 33})
    refused = 0
    for name, size, crop, resample in itertools.product(types, sizes, crops, range(6)):
        stated = {"image_processor_type": name, "size": size, **crop, "resample": resample}
        try:
            settings = pixels.from_hugging_face(stated, 33, "a file")
        except InputError:
            refused += 1
            assert not crop["do_center_crop"]
            continue
        transform = record_pixels.hugging_face_transform(stated)
        for shape in ((1, 1), (7, 30), (33, 32), (32, 35), (101, 200), (31, 90), (37, 33)):
            photograph = record_pixels.image(*shape)
            check(photograph, 33, settings, transform(photograph))
    # Three sizes of three processors and an int, which ViT alone takes for a square.
    assert refused == (3 * 3 + 2) * 6


@pytest.mark.makers
def test_processors_have_transformers_defaults():
    import transformers

    for name, ours in pixels.PROCESSORS.items():
        processor = getattr(transformers, f"{name}Pil")()
        for key in ours.keys() - {"auto_map", "use_square_size"}:
            theirs = getattr(processor, key)
            if key in ("do_center_crop", "do_pad"):
                assert bool(theirs) == ours[key], (name, key)
            elif key == "crop_size":
                assert (theirs and theirs["height"]) == ours[key], (name, key)
            elif key == "size":
                assert dict(theirs) == ours[key], (name, key)
            else:
                assert theirs == ours[key], (name, key)


def test_openai_s_pixels_are_the_default():
    assert pixels.from_open_clip(None, "a file") == PixelConfig()
    assert pixels.from_open_clip({"mean": None, "size": [224, 224]}, "a file") == PixelConfig()
    absent = pixels.from_hugging_face({}, 17, "a file")
    assert absent == PixelConfig(offsets="floor")
    absent = pixels.from_hugging_face({}, 17, "a file", "siglip")
    assert absent.resize == "squash" and absent.mean == absent.std == (0.5, 0.5, 0.5)


def test_the_image_processor_of_a_processor_is_first():
    whole = {"processor_class": "CLIPProcessor", "image_processor": {"size": 8}}
    assert pixels.image_processor(whole, {"size": 9}) == {"size": 8}
    assert pixels.image_processor({"processor_class": "CLIPProcessor"}, {"size": 9}) == {"size": 9}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"resize_mode": "crop"}, "resize_mode: expected one of shortest, longest, squash"),
        ({"interpolation": "nearest"}, "interpolation: expected one of bicubic, bilinear, random"),
        ({"mode": "L"}, "mode: expected one of RGB, got 'L'"),
        ({"fill_color": -1}, "fill_color: expected a whole number from 0 to 255, got -1"),
        ({"fill_color": [0, 0, 0]}, "fill_color"),
        ({"mean": [0.5, 0.5]}, "mean: expected three finite numbers"),
        ({"mean": 0}, "mean: expected three finite numbers, got 0"),
        ({"mean": "0.5"}, "mean: expected three finite numbers"),
        ({"std": [0.5, 0.5, 0]}, "std: expected three finite numbers above 0"),
        ({"std": [0.5, 0.5, float("nan")]}, "std: expected three finite numbers above 0"),
        ({"std": {"r": 1}}, "std: expected three finite numbers above 0"),
        ({"crop_pct": 0.9}, "crop_pct: expected a key whose meaning is known, got 0.9"),
        (["squash"], "the settings of the pixels: expected an object"),
    ],
)
def test_other_settings_of_open_clip_are_refused_by_name(stated, message):
    with pytest.raises(InputError, match=f"^a file: .*{re.escape(message)}") as refused:
        pixels.from_open_clip(stated, "a file")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({**SHORTEST, "do_center_crop": False}, "do_center_crop: expected true where size is"),
        ({"size": SQUARE, "crop_size": 6}, "crop_size: expected the image tower's 5 x 5, got [6"),
        ({"size": 6, "do_center_crop": False, "default_to_square": True}, "size: expected the"),
        ({}, "got [224, 224]"),
        ({"do_resize": False, "do_center_crop": False}, "do_resize: expected true where"),
        ({"size": {"longest_edge": 5}, **CROPPED}, "size: expected shortest_edge, or height and"),
        ({"size": {"shortest_edge": 5, "longest_edge": 9}, **CROPPED}, "got 'shortest_edge, long"),
        ({"size": {}, **CROPPED}, "size: expected shortest_edge, or height and width"),
        ({"size": [5], **CROPPED}, "size: expected a height and a width"),
        ({"size": -5, **CROPPED}, "size: expected whole numbers from 1 to 16384, got -5"),
        ({"size": 10**9, **CROPPED}, "size: expected whole numbers from 1 to 16384"),
        ({"size": {"shortest_edge": None}, **CROPPED}, "size: expected whole numbers"),
        ({"size": "5", **CROPPED}, "size: expected whole numbers"),
        ({**SHORTEST, "crop_size": {"shortest_edge": 5}}, "crop_size: expected the image tower's"),
        ({**SHORTEST, **CROPPED, "resample": 6}, "resample: expected one of 0, 1, 2, 3, 4, 5"),
        ({**SHORTEST, **CROPPED, "resample": "bicubic"}, "resample: expected one of 0"),
        ({**SHORTEST, **CROPPED, "do_resize": 1}, "do_resize: expected true or false, got 1"),
        ({**SHORTEST, **CROPPED, "do_pad": True}, "do_pad: expected false, got True"),
        ({**SHORTEST, **CROPPED, "image_mean": [0.5]}, "image_mean: expected three finite"),
        ({**SHORTEST, **CROPPED, "image_std": [1, 1, 0]}, "image_std: expected three finite"),
        ({**SHORTEST, **CROPPED, "rescale_factor": 0}, "rescale_factor: expected a finite"),
        ({**SHORTEST, **CROPPED, "crop_pct": 0.9}, "crop_pct: expected a key whose meaning is"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type: expected one"),
        ({"image_processor_type": ["CLIPImageProcessor"]}, "image_processor_type: expected one"),
        ({"feature_extractor_type": "BeitFeatureExtractor"}, "feature_extractor_type: expected"),
        ({**SHORTEST, **CROPPED, "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map: expected"),
        (None, "the settings of the pixels: expected an object, got None"),
    ],
)
def test_other_settings_of_transformers_are_refused_by_name(stated, message):
    stated = {"image_processor_type": "CLIPImageProcessor"} if stated == {} else stated
    with pytest.raises(InputError, match=f"^a file: .*{re.escape(message)}") as refused:
        pixels.from_hugging_face(stated, SIZE, "a file")
    assert "\n" not in str(refused.value)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.data(), ODD)
def test_odd_values_are_refused_or_read(data, value):
    table = data.draw(st.sampled_from([*OPEN_CLIP.values(), *HUGGING_FACE.values()]))
    kind = "open_clip" if table in OPEN_CLIP.values() else "hugging_face"
    keys = {"open_clip": ["mode", "mean", "std", "interpolation", "resize_mode", "fill_color"]}
    keys["hugging_face"] = sorted({*pixels.PROCESSORS["CLIPImageProcessor"], "image_mean"})
    key = data.draw(st.sampled_from(keys[kind]))
    try:
        settings = read(kind, {**table, key: value}, SIZE)
    except InputError as refused:
        assert key in str(refused) or "do_center_crop" in str(refused) or "size" in str(refused)
        return
    levels, normalised = made(record_pixels.image(4, 6), SIZE, settings)
    assert levels.shape == (SIZE, SIZE, 3) and np.isfinite(normalised).all()


def folder_with(tmp_path, **stated):
    """The embedded CLIP with other settings of its pixels."""
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **stated}))
    return folder


def test_a_clip_s_images_are_made_as_its_config_says(tmp_path, one_device):
    folder = folder_with(tmp_path, size={"height": 32, "width": 32}, resample=2)
    squashed, _ = clip.load(str(folder))
    photograph = record_pixels.image(20, 50)
    examples = memory.examples([photograph], split="")
    encoder = images.Encoder(squashed, one_device, takes=("pixels",))
    tested = encoder.test_images(examples, np.arange(1)).pixels
    np.testing.assert_array_equal(tested, [np.array(photograph.resize((32, 32), 2))])
    requests = np.zeros((1, 2), np.int64)
    trained = encoder.images(examples, requests, seed=0, augmented=True).pixels
    default = images.Encoder(clip.load("tiny")[0], one_device, takes=("pixels",))
    assert (default.images(examples, requests, seed=0, augmented=True).pixels != trained).any()


def test_each_setting_changes_what_the_transform_s_hash_is_made_of():
    loaded, _ = clip.load("tiny")
    recorded = {images.pixel_settings(loaded)}
    changes = {
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "resize": "squash",
        "resize_to": (40, 40),
        "interpolation": "bilinear",
        "offsets": "rounded",
        "fill": 9,
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(PixelConfig)}
    for name, value in changes.items():
        pixels_of_other = dataclasses.replace(loaded.config.pixels, **{name: value})
        other = nnx.clone(loaded)
        other.config = dataclasses.replace(loaded.config, pixels=pixels_of_other)
        recorded.add(images.pixel_settings(other))
    assert len(recorded) == 1 + len(changes)


def test_pixels_of_another_size_than_the_tower_s_are_refused(tmp_path, refused):
    folder = folder_with(tmp_path, crop_size=48)
    line = refused("fit", "digits", tmp_path / "out", "--method", "zero_shot", "--clip", folder)
    assert "crop_size: expected the image tower's 32 x 32, got [48, 48]" in line
