"""The towers against transformers' CLIP: recorded, and live where torch is installed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_clip
from record_transformers import CASES, record

from coop_jax import clip as clip_package
from coop_jax.clip import source, unit, weights

DATA = Path(__file__).parent / "data"


def check_against_transformers(folder):
    clip, _ = clip_package.load(str(folder), tokenizer=DATA / "tokenizer_of_99")
    expected = np.load(folder / "expected.npz")
    images = jnp.asarray(expected["images"].transpose(0, 2, 3, 1))
    image_features = jax.jit(lambda images: clip.encode_image(images))(images)
    text_features = jax.jit(lambda tokens: clip.encode_text(tokens))(expected["tokens"])
    np.testing.assert_allclose(unit(image_features), expected["image_features"], atol=2e-6)
    np.testing.assert_allclose(unit(text_features), expected["text_features"], atol=2e-6)
    logits = clip.logits(image_features, text_features)
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_recorded_transformers_clip(name):
    check_against_transformers(DATA / f"transformers_{name}")


@pytest.mark.torch
def test_live_transformers_clip(tmp_path):
    record(tmp_path, seed=7, activation="quick_gelu", end_token=98, shard="1GB")
    check_against_transformers(tmp_path)


def test_exported_weights_are_the_loaded_ones():
    folder = DATA / "transformers_quick_gelu"
    clip, _ = clip_package.load(str(folder), tokenizer=DATA / "tokenizer_of_99")
    original = source.SafetensorsFiles((folder / "model.safetensors",))
    exported = weights.transformers_tensors(clip)
    assert exported.keys() == original.names()
    for name, tensor in exported.items():
        np.testing.assert_array_equal(tensor, original.read(name))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_half_precision_follows_float32(tiny_tokenizer, vision, dtype):
    exact, half = make_clip(tiny_tokenizer, vision), make_clip(tiny_tokenizer, vision, dtype)
    size = exact.config.vision.image_size
    images = jax.random.normal(jax.random.key(0), (3, size, size, 3))
    tokens = tiny_tokenizer(["a photo of a seven.", "a circle"])

    @jax.jit
    def features(clip, images, tokens):
        return clip.encode_image(images), clip.encode_text(tokens)

    for got, expected in zip(
        features(half, images, tokens), features(exact, images, tokens), strict=True
    ):
        assert got.dtype == dtype and expected.dtype == jnp.float32
        cosine = (unit(got) * unit(expected)).sum(-1)
        assert cosine.min() > 1 - 100 * float(jnp.finfo(dtype).eps) ** 2
    logits = half.logits(*features(half, images, tokens))
    assert logits.dtype == jnp.float32


def test_pixels_that_fill_no_patch_are_left_out(tiny_clip):
    images = np.random.default_rng(0).normal(size=(2, 37, 37, 3)).astype(np.float32)
    features = tiny_clip.encode_image(jnp.asarray(images))
    np.testing.assert_array_equal(features, tiny_clip.encode_image(images[:, :32, :32]))
