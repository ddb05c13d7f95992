"""A stage that ends with an average of what was learned after each epoch."""

import dataclasses

import numpy as np
import pytest
from test_train import problem, run

from coop_jax import states, train
from coop_jax.checkpoint import Checkpoints

WEIGHTS = (0.5, 0.125, 0.25, 0.125)


def averaged(clip, tokenizer):
    """A run of an average with weights that differ."""
    method, stage, batches, images_of = problem(clip, tokenizer, n_ctx=3, learning_rate=0.05)
    stage = dataclasses.replace(stage, average=lambda epochs: WEIGHTS[:epochs])
    return method, stage, batches, images_of


def epochs_of(clip, mesh, method, stage, batches, images_of, saved=None):
    """Train, a chunk for each epoch; yield what is learned after each."""
    runs = [train.Run(method, batches, images_of, saved)]
    for _ in train.fit(runs, clip, stage, mesh, images_per_chunk=10):
        yield np.array(method.context[...])


@pytest.fixture(scope="module")
def expected(tiny_clip, tiny_tokenizer, one_device):
    """The average of the values after each epoch, trained without one."""
    parts = problem(tiny_clip, tiny_tokenizer, n_ctx=3, learning_rate=0.05)
    values = list(epochs_of(tiny_clip, one_device, *parts))
    return sum(w * value for w, value in zip(WEIGHTS, values, strict=True)), values


@pytest.mark.parametrize("images_per_chunk", [5, 10, 1000])
def test_the_method_ends_with_the_average(
    tiny_clip, tiny_tokenizer, one_device, expected, images_per_chunk
):
    parts = averaged(tiny_clip, tiny_tokenizer)
    run(tiny_clip, parts, one_device, images_per_chunk=images_per_chunk)
    average, values = expected
    np.testing.assert_allclose(parts[0].context[...], average, rtol=1e-4, atol=1e-6)
    assert np.abs(values[-1] - average).max() > 1e-3


def test_a_stopped_run_holds_the_last_values_and_goes_on_to_the_average(
    tiny_clip, tiny_tokenizer, one_device, expected, tmp_path
):
    average, values = expected
    saved = Checkpoints(tmp_path)
    chunks = epochs_of(tiny_clip, one_device, *averaged(tiny_clip, tiny_tokenizer), saved)
    for value in values[:2]:
        np.testing.assert_allclose(next(chunks), value, rtol=1e-4, atol=1e-6)
    chunks.close()
    saved.close()
    for _ in range(2):  # to the end, and from there
        saved = Checkpoints(tmp_path)
        parts = averaged(tiny_clip, tiny_tokenizer)
        run(tiny_clip, parts, one_device, checkpoints=saved, images_per_chunk=10)
        np.testing.assert_allclose(parts[0].context[...], average, rtol=1e-4, atol=1e-6)
        again = averaged(tiny_clip, tiny_tokenizer)
        assert states.ended([again[0]], tiny_clip, again[1], [saved])
        np.testing.assert_allclose(again[0].context[...], average, rtol=1e-4, atol=1e-6)
        saved.close()
