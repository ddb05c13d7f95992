"""TIP-X: what must hold whatever the official code does."""

import jax.numpy as jnp
import numpy as np
import pytest
import test_methods_heads as heads
from test_methods_heads import NAMES, SPACE

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.errors import InputError
from coop_jax.methods import Data, tip_x

FEW = {"alpha_steps": 3, "beta_steps": 4, "gamma_steps": 5}


class World(heads.World):
    """Features around centres, the first view of which is the support set."""

    def create(self, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return TIP-X for the classes of these labels."""
        labels, settings = list(labels), FEW | settings
        classes = classes or Classes(tuple([*NAMES, "tench", "anemone"][label] for label in labels))
        texts = self.texts[None, labels]
        return methods.create("tip_x", SPACE, None, classes, settings, texts=texts)

    def fitted(self, **settings):
        """Return TIP-X that has seen the support set."""
        method = self.create(**settings)
        method.prepare(SPACE, 0, self.data)
        return method


def logits(method, world, mesh):
    """Return the logits of the test images."""
    return evaluate.logits(method, SPACE, world.test, mesh)


def test_without_a_support_set_it_is_zero_shot_clip(one_device):
    world = World()
    zero_shot = methods.create("zero_shot", SPACE, None, NAMES, texts=world.texts[None, :4])
    got, expected = (logits(each, world, one_device) for each in (world.create(), zero_shot))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_logits_are_the_formula(one_device):
    world = World()
    method = world.fitted(search=False, alpha=1.5, beta=2.5, gamma=0.7, temperature=0.4)
    assert not method.uses
    features, keys, texts = (
        np.float64(clip_package.unit(jnp.asarray(array)))
        for array in (world.test.features, world.views[0], world.texts[:4])
    )

    def said(rows):
        exponent = np.exp(rows @ texts.T / 0.4)
        return exponent / exponent.sum(axis=1, keepdims=True)

    def apart(p, q):
        return np.sum(p[:, None] * np.log(p[:, None] / q[None]), axis=-1)

    own, cosines = apart(said(keys), said(keys)), keys @ keys.T
    share = (apart(said(features), said(keys)) - own.min()) / (own.max() - own.min())
    stretched = share * (cosines.max() - cosines.min()) + cosines.min()
    values = np.eye(4)[world.labels]
    near = np.exp(-2.5 * (1 - features @ keys.T))
    expected = 5 * features @ texts.T + 1.5 * near @ values - 0.7 * stretched @ values
    np.testing.assert_allclose(logits(method, world, one_device), expected, rtol=1e-4, atol=1e-4)


def test_the_search_counts_what_the_logits_say():
    world = World()
    method, val = world.fitted(), world.data.val
    compared, correct = method.search(SPACE, val)
    spans = tip_x.spans_of(compared)
    assert correct.shape == (3, 4, 5) and len({*correct.ravel()}) > 1
    for place, count in np.ndenumerate(correct):
        weights = [each[at] for each, at in zip(method.values, place, strict=True)]
        made = tip_x.combined(compared, method.one_hot(), spans, jnp.asarray(weights))
        assert abs(int(np.sum(np.argmax(made, axis=1) == val.labels)) - count) <= 1, place
    first = np.unravel_index(np.argmax(correct), correct.shape)
    chosen = [each[at] for each, at in zip(method.values, first, strict=True)]
    np.testing.assert_allclose(method.weights[...], chosen, rtol=1e-6)
    assert method.uses == {"validation"}


def test_an_image_s_logits_do_not_depend_on_others(one_device):
    world = World()
    method = world.fitted()
    whole = logits(method, world, one_device)
    world.test = world.test._replace(features=world.test.features[3:5])
    np.testing.assert_allclose(logits(method, world, one_device), whole[3:5], rtol=1e-4, atol=1e-4)


def test_new_classes_are_refused_and_trained_ones_may_be_in_another_order(one_device):
    world = World()
    method, trained = world.fitted(), Classes(NAMES)

    def moved(labels):
        names = tuple([*NAMES, "tench"][label] for label in labels)
        wanted = Classes(names).moved_from(trained)
        return methods.move(method, world.create(labels, wanted), trained, wanted)

    expected = logits(method, world, one_device)[:, [2, 0, 3, 1]]
    got = logits(moved([2, 0, 3, 1]), world, one_device)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        moved([0, 4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma_steps": 0}, "gamma_steps: expected at least 1, got 0"),
        ({"beta_scale": 1.0}, "beta_scale: expected more than 1.0, got 1.0"),
    ],
)
def test_a_search_that_tries_nothing_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        World().create(**settings)


def test_without_validation_images_it_needs_no_search():
    world = World()
    world.create(search=False).prepare(SPACE, 0, Data(world.data.train))
