"""Image features: batches, padding and devices change nothing."""

import jax
import numpy as np
import pytest
from conftest import make_clip

from coop_jax import features, parallel
from coop_jax.clip.preprocess import normalize


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_features_do_not_depend_on_batches_or_devices(tiny_tokenizer, vision):
    clip = make_clip(tiny_tokenizer, vision)
    size = clip.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (11, size, size, 3)).astype(np.uint8)
    expected = jax.jit(lambda images: clip.encode_image(images))(normalize(pixels))
    for devices, batch_size in ((1, 4), (2, 5)):
        batches = [pixels[i : i + batch_size] for i in range(0, 11, batch_size)]
        mesh = parallel.create_mesh(jax.devices()[:devices])
        got = features.encode(clip, batches, mesh, batch_size=batch_size)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_no_images_give_no_features(tiny_clip, one_device):
    assert features.encode(tiny_clip, [], one_device).shape == (0, tiny_clip.config.embedding)
