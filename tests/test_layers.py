"""Low rank and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from inside import RANK, SCALE, close, draw, factors

from coop_jax import parallel
from coop_jax.clip.transformer import scan
from coop_jax.methods import layers


@pytest.fixture(scope="module")
def images():
    return draw(0, 3, 32, 32, 3)


class Masks(nnx.Module):
    """Given masks in the place of drawn ones."""

    def __init__(self, masks):
        self.masks = nnx.Variable(jnp.asarray(masks))

    def __call__(self, x, part):
        return x * self.masks[...][layers.THIRDS.index(part)]


def test_only_what_the_updates_get_is_dropped(tiny_clip):
    config, linear = tiny_clip.config.vision.transformer, tiny_clip.vision.blocks.query_key_value
    pairs, _ = factors(config, ("query", "value"))
    masks = 2.0 * (draw(3, 2, 3, 4, 5, 32) > 0).astype(np.float32)
    x = draw(4, 4, 5, 32)
    stacked = layers.LowRank(linear, pairs, SCALE, Masks(masks))
    got = scan(stacked, lambda layer, x, _: (x, layer(x)), jnp.asarray(x))[1]
    kernel, bias = (np.asarray(value[...], np.float64) for value in (linear.kernel, linear.bias))
    for layer in range(2):
        expected = np.split(x @ kernel[layer] + bias[layer], 3, axis=-1)
        for index, name in ((0, "query"), (2, "value")):
            down, up = (matrix[layer] for matrix in pairs[name])
            expected[index] = expected[index] + SCALE * (masks[layer, index] * x) @ down @ up
        close(got[layer], np.concatenate(expected, axis=-1))


def test_an_update_that_starts_changes_no_bit(tiny_clip, images):
    clip, key = nnx.clone(tiny_clip), jax.random.key(0)
    blocks = clip.vision.blocks
    pairs = {name: layers.low_rank_init(key, 2, 32, 32, RANK) for name in layers.THIRDS}
    dropped = layers.Dropout(key, 2, 0.25)
    blocks.query_key_value = layers.LowRank(blocks.query_key_value, pairs, SCALE, dropped)
    features = jax.jit(lambda clip, images: clip.encode_image(images))
    np.testing.assert_array_equal(features(clip, images), features(tiny_clip, images))


@settings(max_examples=6)
@given(few=st.integers(1, 6), more=st.integers(0, 5), seed=st.integers(0, 9))
def test_what_is_dropped_of_a_row_depends_on_no_row_behind_it(few, more, seed):
    x, key = draw(0, few + more, 3, 7), jax.random.key(seed)
    whole = layers.dropout(jnp.asarray(x), key, 0.4)
    np.testing.assert_array_equal(layers.dropout(jnp.asarray(x[:few]), key, 0.4), whole[:few])
    with jax.threefry_partitionable(False):
        np.testing.assert_array_equal(layers.dropout(jnp.asarray(x), key, 0.4), whole)


@pytest.mark.parametrize("devices", [2, 8])
def test_what_is_dropped_does_not_depend_on_the_devices(devices):
    x, key = draw(0, 16, 5, 6), jax.random.key(3)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    split = parallel.over_data(mesh, 0)
    run = jax.jit(lambda x: layers.dropout(x, key, 0.25), in_shardings=split, out_shardings=split)
    np.testing.assert_array_equal(run(x), layers.dropout(jnp.asarray(x), key, 0.25))


def test_dropout_keeps_the_mean_and_drops_its_rate():
    x = jnp.full((200, 500), 3.0)
    got = np.asarray(layers.dropout(x, jax.random.key(0), 0.25))
    assert set(np.unique(got)) == {0.0, 4.0}
    assert abs((got == 0).mean() - 0.25) < 0.005
    np.testing.assert_array_equal(layers.dropout(x, None, 0.25), x)
    np.testing.assert_array_equal(layers.dropout(x, jax.random.key(0), 0.0), x)


def test_runs_drop_as_each_alone():
    x, keys = jnp.asarray(draw(0, 4, 5)), jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(lambda key: layers.dropout(x, key, 0.5))(keys)
    for index in range(3):
        np.testing.assert_array_equal(together[index], layers.dropout(x, keys[index], 0.5))


def test_every_layer_and_part_has_a_mask_of_its_own():
    def masks(dropped, carry, _):
        return carry, jnp.stack([dropped(jnp.ones((8, 9)), name) for name in layers.THIRDS])

    drawn = scan(layers.Dropout(jax.random.key(0), 4, 0.5), masks, 0)[1]
    assert len(np.unique(np.asarray(drawn).reshape(12, -1), axis=0)) == 12


def test_drawn_matrices_are_as_large_as_in_torch():
    key = jax.random.key(0)
    down, up = layers.low_rank_init(key, 3, 400, 30, 50)
    assert down.shape == (3, 400, 50) and up.shape == (3, 50, 30) and not np.any(up)
    for drawn in (down, layers.linear_init(key, (400, 100), 400)):
        assert np.abs(drawn).max() <= 400**-0.5
        assert abs(np.std(drawn) / (3 * 400) ** -0.5 - 1) < 0.01
    drawn = layers.kaiming_normal(key, (400, 100), 100)
    assert abs(np.std(drawn) / (2 / 100) ** 0.5 - 1) < 0.01
