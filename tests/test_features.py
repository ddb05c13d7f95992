"""Image features: batches, padding and devices change nothing."""

import dataclasses
import os

import jax
import numpy as np
import pytest
from conftest import make_clip
from PIL import Image

from coop_jax import images, parallel
from coop_jax.clip.preprocess import normalize
from coop_jax.data import memory
from coop_jax.data.examples import ImageCache
from coop_jax.errors import InputError, MachineError
from coop_jax.feature_cache import Cache


def batches_of(pixels):
    """What gives an array's images by number, in batches."""

    def pixels_of(numbers, size):
        return (pixels[numbers[i : i + size]] for i in range(0, len(numbers), size))

    return pixels_of


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_features_do_not_depend_on_batches_or_devices(tiny_tokenizer, vision):
    clip = make_clip(tiny_tokenizer, vision)
    size = clip.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (11, size, size, 3)).astype(np.uint8)
    expected = jax.jit(lambda images: clip.encode_image(images))(normalize(pixels))
    for devices, batch_size in ((1, 4), (2, 5)):
        mesh = parallel.create_mesh(jax.devices()[:devices])
        [got] = images.encode(clip, batches_of(pixels), 11, mesh, batch_size=batch_size)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_no_images_give_no_features(tiny_clip, one_device):
    nothing = batches_of(np.zeros((0, 32, 32, 3), np.uint8))
    [got] = images.encode(tiny_clip, nothing, 0, one_device)
    assert got.shape == (0, tiny_clip.config.embedding)


def test_the_cache_makes_once_and_survives_torn_files(tmp_path, caplog):
    made = []

    def make(names):
        assert names == ["x"]
        made.append(len(made))
        return {"x": np.full((2, 3), len(made), np.float32)}

    def get(cache, key):
        return cache.get({"x": key}, make)["x"]

    cache = Cache(tmp_path / "cache")
    first = get(cache, "ab12")
    np.testing.assert_array_equal(get(Cache(tmp_path / "cache"), "ab12"), first)
    assert made == [0]
    assert get(cache, "ab13").max() == 2
    (file,) = tmp_path.glob("cache/*/ab12.features")
    whole = file.read_bytes()
    flipped = bytes(byte ^ 0x40 * (place % 100 == 0) for place, byte in enumerate(whole))
    for number, damaged in enumerate((whole[:-5], b"", flipped), start=3):
        file.write_bytes(damaged)
        caplog.clear()
        assert get(cache, "ab12").max() == number
        assert caplog.messages == [f"{file} is damaged: its features are made again"]
        assert get(cache, "ab12").max() == number and len(caplog.messages) == 1
    file.unlink()
    assert get(cache, "ab12").max() == 6 and len(caplog.messages) == 1
    file.unlink()
    file.mkdir()
    assert get(cache, "ab12").max() == 7 and file.is_dir()
    assert "cannot be read (Is a directory): its features are made again" in caplog.messages[1]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder for features"):
        get(Cache(tmp_path / "file"), "ab12")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_features_that_may_not_be_read_are_made_again(tmp_path, caplog):
    cache = Cache(tmp_path)
    for _ in range(2):
        cache.get({"x": "ab12"}, lambda names: {"x": np.zeros(3)})
        (tmp_path / "ab" / "ab12.features").chmod(0)
    assert "cannot be read (Permission denied): its features are made again" in caplog.text


def test_features_for_which_there_is_no_room_are_one_line(tmp_path, no_room):
    with pytest.raises(MachineError, match=r"expected to keep features, got File too large \("):
        Cache(tmp_path).get({"x": "ab12"}, lambda names: {"x": np.zeros(300)})
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_features_of_turned_images_are_kept_apart(tmp_path, tiny_clip, one_device):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    own = memory.examples([tmp_path / "phone.png"], split="test")
    encoder = images.Encoder(
        tiny_clip, one_device, batch_size=4, cache=Cache(tmp_path / "cache"), weights=("tiny",)
    )
    found = [
        encoder.images(
            dataclasses.replace(own, upright=upright, cache=ImageCache()),
            np.zeros((1, 2), int),
            seed=0,
            augmented=False,
        ).features
        for upright in (True, False, True)
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_array_equal(found[0], found[2])
    assert len(list(tmp_path.glob("cache/*/*.features"))) == 2
