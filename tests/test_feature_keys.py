"""What features are kept under in the cache: all that they depend on."""

import dataclasses
import fcntl
import os
import shutil

import numpy as np
import pytest
from flax import nnx
from makers import coop_data
from record_presets import small
from safetensors.numpy import load_file, save_file

from coop_jax import images, parallel, protocols
from coop_jax.clip import FeatureSpace, source
from coop_jax.clip.config import PixelConfig
from coop_jax.data import memory
from coop_jax.feature_cache import Cache

AUGMENTATION = {"scale": (0.3, 0.9), "ratio": (0.75, 1.5), "flip": 0.5}
REQUESTS = np.array([[0, 0], [0, 2], [1, 1]])
CALL = {"requests": REQUESTS, "seed": 1, "augmented": True}


@pytest.fixture(scope="module")
def photos():
    """Four images, higher than they are wide."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 50, 40, 3)).astype(np.uint8)
    return memory.examples(pixels, split="train")


@pytest.fixture
def encoder(tiny_clip, one_device, tmp_path):
    return images.Encoder(
        tiny_clip,
        one_device,
        batch_size=4,
        augmentation=AUGMENTATION,
        cache=Cache(tmp_path / "cache"),
        weights=("sha256 of the files", "float32"),
    )


def kept(encoder):
    return {path.name for path in encoder.cache._folder.glob("*/*.features")}


def features(encoder, examples, **changes):
    made = encoder.images(examples, **CALL | changes)
    return np.asarray(getattr(made, encoder.takes[0]))


def with_pixels(encoder, **pixels):
    """The encoder of a CLIP with the same weights that was trained on other pixels."""
    clip = nnx.clone(encoder.clip)
    clip.config = dataclasses.replace(clip.config, pixels=PixelConfig(**pixels))
    return dataclasses.replace(encoder, clip=clip)


def with_augmentation(encoder, **changes):
    return dataclasses.replace(encoder, augmentation=AUGMENTATION | changes)


OTHERS = {
    "another CLIP": lambda e: dataclasses.replace(e, weights=("of others", "float32")),
    "another dtype": lambda e: dataclasses.replace(e, weights=(e.weights[0], "bfloat16")),
    "before the projection": lambda e: dataclasses.replace(e, takes=("unprojected",)),
    "its own mean": lambda e: with_pixels(e, mean=(0.1, 0.2, 0.3)),
    "its own std": lambda e: with_pixels(e, std=(0.5, 0.6, 0.7)),
    "its own filter": lambda e: with_pixels(e, interpolation="nearest"),
    "another area": lambda e: with_augmentation(e, scale=(0.1, 0.9)),
    "another aspect ratio": lambda e: with_augmentation(e, ratio=(0.75, 4.0)),
    "no flips": lambda e: with_augmentation(e, flip=0.0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_encoder_finds_nothing_of_the_first(encoder, photos, other):
    first = features(encoder, photos)
    before, changed = kept(encoder), OTHERS[other](encoder)
    second = features(changed, photos)
    assert len(kept(encoder) - before) == 1
    if changed.weights == encoder.weights:  # else the files are said to be others, and are not
        assert second.shape != first.shape or np.abs(second - first).max() > 1e-3


@pytest.mark.parametrize("pixels", [{"resize": "squash"}, {"mean": (0.1, 0.2, 0.3)}])
def test_test_images_of_another_transform_are_others(encoder, photos, pixels):
    first = features(encoder, photos, augmented=False)
    second = features(with_pixels(encoder, **pixels), photos, augmented=False)
    assert len(kept(encoder)) == 2 and np.abs(second - first).max() > 1e-3


CHANGES = {
    "another seed": {"seed": 2},
    "other epochs": {"requests": REQUESTS + np.array([1, 0])},
    "other images": {"requests": REQUESTS + np.array([0, 1])},
    "another order": {"requests": REQUESTS[::-1]},
    "not augmented": {"augmented": False},
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_requests_find_nothing_of_the_first(encoder, photos, change):
    first = features(encoder, photos)
    second = features(encoder, photos, **CHANGES[change])
    assert len(kept(encoder)) == 2 and np.abs(second - first).max() > 1e-3
    np.testing.assert_array_equal(
        second,
        features(dataclasses.replace(encoder, cache=None), photos, **CHANGES[change]),
    )


@pytest.mark.parametrize("chosen", [[3, 1, 2, 0], [1, 0, 2, 3]])
def test_other_examples_find_nothing_of_the_first(encoder, photos, chosen):
    """Where the images of a subset are the same ones, their augmentation may be another."""
    features(encoder, photos)
    second = features(encoder, photos.subset(chosen))
    assert len(kept(encoder)) == 2
    alone = dataclasses.replace(encoder, cache=None)
    np.testing.assert_array_equal(second, features(alone, photos.subset(chosen)))


def test_other_bytes_under_the_same_names_are_other_images(encoder, photos):
    features(encoder, photos)
    darker = [(np.asarray(photos.image(number)) // 2) for number in range(len(photos))]
    others = memory.examples(np.stack(darker), split="train")
    assert others.file_names.tolist() == photos.file_names.tolist()
    features(encoder, others)
    assert len(kept(encoder)) == 2


def test_the_same_is_found_whatever_made_it(encoder, photos):
    """Batches change nothing that is kept."""
    first = features(encoder, photos)
    calls = []
    again = dataclasses.replace(encoder, batch_size=2, tell=calls.append)
    np.testing.assert_array_equal(features(again, photos), first)
    assert len(kept(encoder)) == 1 and not calls


def test_other_batches_of_the_same_epochs_are_found(encoder, photos):
    """Methods whose batches differ, or leave out the end of an epoch, share what is kept."""
    first = features(encoder, photos, requests=np.array([[0, 3], [0, 0], [0, 2], [1, 1]]))
    calls, before = [], kept(encoder)
    telling = dataclasses.replace(encoder, tell=calls.append)
    wanted = np.array([[1, 1], [0, 1], [0, 0], [0, 2], [0, 3], [2, 0], [2, 1], [2, 3]])
    second = features(telling, photos, requests=wanted)
    np.testing.assert_array_equal(second[[4, 2, 3, 0]], first)
    alone = dataclasses.replace(encoder, cache=None)
    np.testing.assert_array_equal(second, features(alone, photos, requests=wanted))
    assert len(before) == 2 and len(kept(encoder) - before) == 1 and len(calls) == 4


def test_a_clip_s_files_and_dtype_tell_its_features_from_others(tmp_path):
    data = coop_data(tmp_path / "data", ["eurosat"], classes=2)
    shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    tensors = load_file(tmp_path / "clip" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("bias"))
    save_file(tensors | {name: tensors[name] + 1}, tmp_path / "clip" / "model.safetensors")
    weights = set()
    for number, clip in enumerate(({}, {"dtype": "bfloat16"}, {"name": str(tmp_path / "clip")})):
        config = small("coop_few_shot:eurosat", data, feature_cache=str(tmp_path / "cache"))
        config["clip"] |= clip
        experiment = protocols.Experiment(config, tmp_path / f"run{number}")
        (method,) = experiment.hand_crafted(experiment.dataset).values()
        encoder = experiment.frozen.encoder(method)
        encoder.test_images(experiment.dataset.test, np.arange(3))
        weights.add(encoder.weights)
    assert len(weights) == 3
    assert len(list((tmp_path / "cache").glob("*/*.features"))) == 3


def test_one_picture_in_two_places_is_augmented_in_two_ways(encoder, photos):
    twice = memory.examples(np.stack([np.asarray(photos.image(0))] * 2), split="train")
    requests = {"requests": np.array([[0, 0]])}
    first, second = (features(encoder, twice.subset([place]), **requests) for place in (0, 1))
    assert len(kept(encoder)) == 2 and np.abs(second - first).max() > 1e-3


def test_pixels_of_another_size_are_others(encoder):
    larger = nnx.clone(encoder.clip)
    vision = dataclasses.replace(larger.config.vision, image_size=40)
    larger.config = dataclasses.replace(larger.config, vision=vision)
    settings = images.pixel_settings(encoder.clip), images.pixel_settings(larger)
    assert settings[0] != settings[1]
    assert images.pixel_settings(FeatureSpace(12)) == ()


def test_what_another_process_does_not_find_all_make_again(encoder, photos, monkeypatch):
    """Else some of them would wait for the others for ever."""
    features(encoder, photos)
    calls = []
    telling = dataclasses.replace(encoder, tell=calls.append)
    features(telling, photos)
    assert not calls
    answers = iter([[False]])
    monkeypatch.setattr(parallel, "all_agree_each", lambda mine: next(answers, mine))
    features(telling, photos)
    assert len(calls) == len(REQUESTS)


def test_leftovers_of_dead_processes_go_from_the_cache(tmp_path):
    folder = tmp_path / "ab"
    folder.mkdir()
    left, written = (folder / f"x.features.{digit * 32}.unfinished" for digit in "01")
    left.touch()
    with written.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        Cache(tmp_path).get({"x": "ab12"}, lambda names: {"x": np.zeros(3)})
    assert sorted(os.listdir(folder)) == ["ab12.features", written.name]
