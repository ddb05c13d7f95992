"""TFUP and TFUP-T: what must hold whatever the official code does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_methods_heads as heads
from recorded import split
from test_methods_heads import NAMES, SPACE

from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.errors import InputError
from coop_jax.methods import Batch, Data, Images, unlabeled

SETTINGS = {
    "tfup": {"cache_shots": 2, "alpha": 2.0},
    "tfup_t": {"cache_shots": 2, "training_shots": 2, "warm_up": 2},
}


class World(heads.World):
    """Features around centres, none of which has a label, unless `said` has some."""

    said = None

    @property
    def data(self):
        """Return what `prepare` sees."""
        none = np.full_like(self.labels, -1) if self.said is None else self.said
        plain, augmented = Images(features=self.views[0]), Images(features=self.views)
        return super().data._replace(unlabeled=split(none, plain, augmented))

    def create(self, name, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return a method for the classes of these labels."""
        labels, settings = list(labels), SETTINGS[name] | settings
        classes = classes or Classes(tuple([*NAMES, "tench", "anemone"][label] for label in labels))
        return methods.create(name, SPACE, None, classes, settings, texts=self.texts[None, labels])


def logits(method, world, mesh):
    """Return the logits of the test images."""
    return evaluate.logits(method, SPACE, world.test, mesh)


@pytest.mark.parametrize(("name", "settings"), [("tfup", {}), ("tfup_t", {"image_ratio": 0.0})])
def test_it_is_zero_shot_clip_until_it_has_learned(one_device, name, settings):
    world = World()
    zero_shot = methods.create("zero_shot", SPACE, None, NAMES, texts=world.texts[None, :4])
    got = logits(world.create(name, **settings), world, one_device)
    expected = logits(zero_shot, world, one_device)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_not_looked_at(one_device, name):
    """Neither those of the training images, nor any of the unlabelled ones."""
    worlds = World(), World()
    worlds[1].said = worlds[1].labels = worlds[1].labels[::-1].copy()
    got, expected = (logits(world.fitted(name, one_device), world, one_device) for world in worlds)
    np.testing.assert_array_equal(got, expected)


def test_turning_images_and_texts_together_changes_nothing(one_device):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(heads.SIZE, heads.SIZE)))[0]
    got = [
        logits(world.fitted("tfup", one_device), world, one_device)
        for world in (World(), World(turn=turn))
    ]
    np.testing.assert_allclose(got[1], got[0], rtol=1e-3, atol=2e-3)


def test_the_order_of_the_images_does_not_matter(one_device):
    world, order = World(), np.random.default_rng(0).permutation(12)
    shuffled = World()
    shuffled.views = shuffled.views[:, order]
    got = [logits(each.fitted("tfup", one_device), each, one_device) for each in (world, shuffled)]
    np.testing.assert_allclose(got[1], got[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_classes_may_be_in_another_order_and_new_ones_are_refused(one_device, name):
    world = World()
    method = world.fitted(name, one_device)
    trained = Classes(NAMES)

    def moved(labels):
        names = tuple([*NAMES, "tench"][label] for label in labels)
        wanted = Classes(names).moved_from(trained)
        return methods.move(method, world.create(name, labels, wanted), trained, wanted)

    expected = logits(method, world, one_device)[:, [2, 0, 3, 1]]
    got = logits(moved([2, 0, 3, 1]), world, one_device)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        moved([0, 4])


def test_the_chosen_of_a_class_are_the_most_central_of_the_likeliest():
    world, shots = World(shots=5), 3
    features, texts = world.views[0], jnp.asarray(world.texts[:4])
    chosen = unlabeled.representative(features, texts, shots)
    np.testing.assert_array_equal(chosen.labels, np.repeat(np.arange(4), shots))
    cosines = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (features, texts)]
    exponent = np.exp(10 * np.float64(cosines[0]) @ np.float64(cosines[1]).T)
    p = exponent / exponent.sum(axis=1, keepdims=True)
    for label, places in enumerate(chosen.places.reshape(4, shots)):
        likely = sorted(range(len(p)), key=lambda image, c=label: -p[image, c])[: 2 * shots]
        divergence = [sum((p[i] * np.log(p[i] / p[j])).sum() for j in likely) for i in likely]
        assert [likely[place] for place in np.argsort(divergence)[:shots]] == places.tolist()


def test_how_alike_two_images_are_goes_from_nothing_to_two():
    world = World()
    texts, keys = jnp.asarray(world.texts[:4]), jnp.asarray(world.views[0])
    alike = np.asarray(unlabeled.alike(keys, keys, texts))
    np.testing.assert_allclose(np.diag(alike), 2, atol=1e-5)
    np.testing.assert_allclose(
        [alike.min(axis=1), alike.max(axis=1)], [[0] * 12, [2] * 12], atol=1e-5
    )
    np.testing.assert_array_equal(unlabeled.alike(keys, keys[:1], texts), 2)


@pytest.mark.parametrize(
    ("images", "expected"), [(12 * 4, 9), (40 * 4, 12), (100 * 4, 16), (3 * 4, 3)]
)
def test_the_size_of_the_cache_follows_the_number_of_images(images, expected):
    world = World()
    method = world.create("tfup", cache_shots=0)
    features = np.random.default_rng(0).normal(size=(images, heads.SIZE)).astype(np.float32)
    many = split(np.full(images, -1), Images(features=features))
    method.prepare(SPACE, 0, Data(many, unlabeled=many))
    counts = np.bincount(method.labels[...], minlength=4)
    assert counts.max() == (expected if images > 12 else 9)


@pytest.mark.parametrize("name", SETTINGS)
def test_without_unlabelled_images_it_is_refused(name):
    world = World()
    with pytest.raises(InputError, match="expected unlabelled images, got none"):
        world.create(name).prepare(SPACE, 0, Data(world.data.train))


def batch_of(pool, labels=None):
    """Return all images of a split in one step."""
    requests = np.stack([np.ones(len(pool), int), np.arange(len(pool))], axis=1)
    labels = pool.labels if labels is None else labels
    weights = jnp.ones(len(pool), jnp.float32)
    return Batch(pool.encode(requests, True), jnp.asarray(labels), weights, jax.random.key(0))


def test_the_stages_of_tfup_t_see_labels_of_tfup_and_then_none():
    """Those at the official weights, whatever the method's own are after the warm-up."""
    world = World()
    method = world.create("tfup_t", training_shots=4, alpha=300.0, beta=5.0)
    tfup = world.create("tfup", alpha=0.3, beta=1.0)
    tfup.prepare(SPACE, 0, world.data)
    warm = method.prepare(SPACE, 0, world.data).train
    features = np.asarray(batch_of(warm).images.features)
    predicted = np.argmax(tfup.logits(SPACE, tfup.texts(SPACE, None), Images(features[:, 0])), 1)
    np.testing.assert_array_equal(warm.labels, predicted)
    rest = method.prepare(SPACE, 1, world.data).train
    np.testing.assert_array_equal(rest.labels, np.full(12, -1))
    features = batch_of(rest).images.features
    np.testing.assert_array_equal(features, np.moveaxis(world.views[:2], 0, 1))


def test_unsure_images_count_in_the_mean_alone():
    world = World()
    unsure, sure = (world.create("tfup_t", confidence=confidence) for confidence in (1.0, 0.0))
    terms = []
    for method in (unsure, sure):
        method.prepare(SPACE, 0, world.data)
        batch = batch_of(method.prepare(SPACE, 1, world.data).train)
        terms.append(method.losses(SPACE, method.texts(SPACE, None), batch))
    assert terms[0]["cross_entropy"] == 0 < terms[1]["cross_entropy"]
    np.testing.assert_allclose(terms[0]["marginal"], terms[1]["marginal"], rtol=1e-6)
    assert -0.3 * np.log(4) - 1e-4 <= terms[0]["marginal"] < 0
    labelled = sure.losses(
        SPACE, sure.texts(SPACE, None), batch_of(sure.prepare(SPACE, 0, world.data).train)
    )
    assert labelled["marginal"] == 0
