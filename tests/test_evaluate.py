"""Evaluation against scikit-learn, and the law that padding changes nothing."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from coop_jax import evaluate, parallel
from coop_jax.methods import Images, Method

CLASSES = 5


class Nearest(Method):
    """A method whose logits are the features themselves."""

    def logits(self, clip, texts, images):
        return images.features


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    devices=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 1000),
)
def test_metrics_for_any_batch_size(tiny_clip, count, batch_size, devices, seed):
    rng = np.random.default_rng(seed)
    features = rng.integers(0, 3, (count, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    mesh = parallel.create_mesh(jax.devices()[:devices])
    images_of = evaluate.in_memory(Images(features=features))
    metrics = evaluate.evaluate(
        Nearest(), tiny_clip, images_of, labels, mesh, batch_size=batch_size
    )
    predicted = features.argmax(axis=1)
    f1 = f1_score(labels, predicted, average="macro", labels=np.unique(labels))
    assert metrics.accuracy == pytest.approx(100 * accuracy_score(labels, predicted))
    assert metrics.macro_f1 == pytest.approx(100 * f1)
    assert (metrics.n_examples, metrics.n_classes) == (count, CLASSES)


def test_logits_are_those_of_the_method(tiny_clip):
    features = np.random.default_rng(0).normal(size=(7, CLASSES)).astype(np.float32)
    mesh = parallel.create_mesh(jax.devices()[:2])
    np.testing.assert_array_equal(
        evaluate.logits(Nearest(), tiny_clip, Images(features=features), mesh), features
    )
