"""TaskRes, CLIP-Adapter, LP++, CLAP and ProLIP: what must hold whatever the official code does."""

import jax.numpy as jnp
import numpy as np
import pytest
import test_methods_heads as heads
from recorded import split
from recorded.linear_heads import with_projection
from test_methods_heads import NAMES, SPACE, stages

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, lp_plus_plus
from coop_jax.run import batches

SETTINGS = {
    "taskres": {},
    "clip_adapter": {},
    "lp_plus_plus": {"steps": 25},
    "clap": {"augmented_passes": heads.VIEWS},
}
"""Settings with which a few features are enough."""

PER_CLASS = ("taskres", "lp_plus_plus", "clap")


class World(heads.World):
    """Features around centres, of which these methods learn."""

    def create(self, name, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return a method for the classes of these labels."""
        labels = list(labels)
        classes = classes or tuple([*NAMES, "tench", "anemone"][label] for label in labels)
        settings = SETTINGS[name] | settings
        return methods.create(name, SPACE, None, classes, settings, texts=self.texts[None, labels])


def logits(method, images, mesh, clip=SPACE):
    """Return the logits of images."""
    return evaluate.logits(method, clip, images, mesh)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("taskres", {}), ("clip_adapter", {"ratio": 0.0}), ("clap", {}), ("lp_plus_plus", {})],
)
def test_it_is_zero_shot_clip_until_it_has_learned(one_device, name, settings):
    world = World()
    method = world.create(name, **settings)
    got = logits(method, world.test, one_device)
    if name == "lp_plus_plus":
        got = got - method.bias[...]
    given = {"texts": world.texts[None, : len(NAMES)]}
    zero_shot = methods.create("zero_shot", SPACE, None, NAMES, **given)
    expected = logits(zero_shot, world.test, one_device)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_templates_are_averaged_before_they_are_normalised():
    texts = np.float32([[[3, 0], [0, 1]], [[0, 4], [0, 2]]])
    space = clip_package.FeatureSpace(2, 5.0)
    for name in ("taskres", "clap"):
        method = methods.create(name, space, None, ("a", "b"), texts=texts)
        np.testing.assert_allclose(method.bank[...], [[1.5, 2], [0, 1.5]])


@pytest.mark.parametrize("name", PER_CLASS)
def test_what_belongs_to_a_class_moves_with_it(one_device, name):
    world = World()
    method = world.fitted(name, one_device)
    few = heads.moved(world, method, [3, 0, 1], name)
    expected = logits(method, world.test, one_device)[:, [3, 0, 1]]
    np.testing.assert_allclose(logits(few, world.test, one_device), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        heads.moved(world, method, [0, 4], name)


def test_an_adapter_serves_new_classes(one_device):
    """Those that it was trained on keep their logits beside them."""
    world = World()
    method = world.fitted("clip_adapter", one_device)
    both = heads.moved(world, method, range(6), "clip_adapter")
    got, expected = (logits(one, world.test, one_device) for one in (both, method))
    np.testing.assert_allclose(got[:, :4], expected, rtol=1e-4, atol=1e-4)
    assert got.shape[1] == 6 and np.isfinite(got).all()


def test_only_what_is_negative_is_lost_in_the_adapters_bottleneck(one_device):
    """With identities for kernels, nothing of a positive feature is."""
    space, texts = clip_package.FeatureSpace(3, 5.0), np.eye(3, dtype=np.float32)
    method = methods.create(
        "clip_adapter", space, None, NAMES[:3], {"reduction": 1, "ratio": 0.75}, texts=texts[None]
    )
    method.down[...] = method.up[...] = jnp.eye(3)
    features = np.float32([[1, 2, 2], [-4, 0, 3]])
    got = logits(method, Images(features=features), one_device, space)
    expected = np.float64([[1, 2, 2], [-1, 0, 3]])
    expected *= 5 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_constraint_of_clap_holds_the_prototypes(one_device):
    world, moved = World(), {}
    for constraint in ("l2", "none"):
        method = world.fitted("clap", one_device, constraint=constraint)
        moved[constraint] = np.linalg.norm(method.prototypes[...] - method.bank[...])
    assert 0 < moved["l2"] < moved["none"]


def test_multipliers_of_clap_are_the_confidence_in_the_right_class():
    world = World()
    method = world.create("clap")
    method.prepare(SPACE, 0, world.data)
    flat = world.views.reshape(-1, heads.SIZE)
    cosines = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (flat, world.texts)]
    exponent = np.exp(5.0 * cosines[0] @ cosines[1][: len(NAMES)].T)
    probabilities = exponent / exponent.sum(axis=1, keepdims=True)
    labels = np.tile(world.labels, heads.VIEWS)
    expected = [probabilities[labels == label, label].mean() for label in range(len(NAMES))]
    np.testing.assert_allclose(method.multipliers[...], expected, rtol=1e-5)


def test_multipliers_of_clap_grow_by_the_last_distance_times_the_new_one():
    world = World()
    method = world.create("clap", outer_every=2)
    method.multipliers[...] = jnp.float32([1, 2, 3, 4])
    for number in range(6):
        method.grow(jnp.full(4, 1.0 + number))
        # At step 2 the penalty is still zero, and becomes 3; at step 4 the distance is 5.
        grown = 3.0 * 5.0 if number >= 4 else 0.0
        np.testing.assert_allclose(method.multipliers[...], np.float32([1, 2, 3, 4]) + grown)


def test_multipliers_of_clap_grow_in_compiled_steps(one_device):
    """`losses` sets what is kept while a gradient is taken of them."""
    world = World()
    method = world.fitted("clap", one_device, outer_every=2)
    assert int(method.steps[...]) == heads.EPOCHS * (len(world.labels) // 5)
    assert np.all(method.penalties[...] > 0)


def test_an_epoch_of_clap_draws_as_many_batches_from_all_views_as_the_images_make():
    world = World()
    method = world.create("clap")
    pool = method.prepare(SPACE, 0, world.data).train
    (stage,) = stages(method, "clap")
    assert len(pool) == heads.VIEWS * len(world.labels) and stage.batch_size == 5
    made = batches(stage, pool, seed=1, shots=3, dataset="world")
    assert made.order.shape == (heads.EPOCHS * (len(world.labels) // 5), 5)
    epochs = made.order.reshape(heads.EPOCHS, -1)
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert made.order.max() >= len(world.labels)
    seen = pool.encode(made.requests(0, made.steps), True).features
    np.testing.assert_array_equal(seen, world.views.reshape(-1, heads.SIZE)[made.order.ravel()])
    np.testing.assert_array_equal(pool.labels, np.tile(world.labels, heads.VIEWS))


def descent(world, method, steps, *, accumulate=False):
    """Return gradient descent on the first view, beside the validation features."""
    val = world.data.val
    pairs = [
        (clip_package.unit(jnp.asarray(features)), labels)
        for features, labels in ((world.views[0], world.labels), (world.val, val.labels))
    ]
    texts = method.bank[...]
    start = lp_plus_plus.first(*pairs[0], texts, method.bias[...])
    rates = lp_plus_plus.step_sizes(pairs[0][0], texts)
    fit = lp_plus_plus.descend(start, rates, *pairs, texts, steps=steps, accumulate=accumulate)
    cosines = pairs[1][0] @ texts.T
    predicted = np.argmax(lp_plus_plus.logits_of(fit.last, pairs[1][0], cosines), axis=1)
    return fit, int(np.sum(predicted == val.labels))


def test_lp_plus_plus_keeps_the_last_of_the_steps_that_are_best_on_validation_images():
    world = World(shots=2, seed=2)
    method, last = (
        world.create("lp_plus_plus", steps=10, select=select) for select in (True, False)
    )
    for made in (method, last):
        made.bias[...] = jnp.zeros(4)
    (_, second), (best, ninth), (end, tenth) = (descent(world, method, n) for n in (2, 9, 10))
    assert second == ninth > tenth
    method.prepare(SPACE, 0, world.data)
    np.testing.assert_allclose(method.weight[...], best.last.weight, rtol=1e-4, atol=1e-5)
    assert not last.uses
    last.prepare(SPACE, 0, Data(world.data.train))
    np.testing.assert_allclose(last.weight[...], end.last.weight, rtol=1e-4, atol=1e-5)


def test_alpha_of_lp_plus_plus_moves_every_tenth_step():
    """By the gradient of that step; as in the official code, by the sum of all before."""
    world = World()
    method = world.create("lp_plus_plus")
    plain, _ = descent(world, method, 11)
    summed, _ = descent(world, method, 11, accumulate=True)
    for fit in (plain, summed):
        np.testing.assert_array_equal(fit.alphas[:10], np.tile(fit.alphas[0], (10, 1)))
        assert np.any(fit.alphas[10] != fit.alphas[0])
    np.testing.assert_allclose(summed.losses[:10], plain.losses[:10], rtol=1e-6)
    assert np.abs(summed.alphas[10] - plain.alphas[10]).max() > 1e-3


def test_turning_images_and_texts_together_changes_no_logits_of_lp_plus_plus(one_device):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(heads.SIZE, heads.SIZE)))[0]
    got = [
        logits(world.fitted("lp_plus_plus", one_device), world.test, one_device)
        for world in (World(), World(turn=turn))
    ]
    np.testing.assert_allclose(got[1], got[0], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["lp_plus_plus", "clap"])
def test_a_class_without_images_is_refused(name):
    world = World()
    some = world.data.train.subset(np.flatnonzero(world.labels != 1), world.labels[3:])
    with pytest.raises(InputError, match=r"images of every class, got none of class 0"):
        world.create(name).prepare(SPACE, 0, world.data._replace(train=some))


# ProLIP, which takes what a tower's last projection is given.

WIDTH, SHOTS = 8, 3


@pytest.fixture(params=["vit", "resnet"])
def projected(request):
    """A CLIP with a random projection, texts, and images before it."""
    rng = np.random.default_rng(2)
    kernel, texts, views, bias = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((WIDTH, 6), (4, 6), (2, 4 * SHOTS, WIDTH), (6,))
    )
    clip = with_projection(kernel, None if request.param == "vit" else bias, 5.0)
    labels = np.repeat(np.arange(4, dtype=np.int32), SHOTS)
    train_split = split(labels, Images(unprojected=views[0]), Images(unprojected=views))
    return clip, texts, Data(train_split, split(labels, Images(unprojected=views[1])))


def prolip(projected, **settings):
    """Return ProLIP for four classes."""
    clip, texts, _ = projected
    return methods.create("prolip", clip, None, NAMES, settings, texts=texts[None])


def test_prolip_starts_with_the_projection_of_the_tower(projected, one_device):
    clip, texts, data = projected
    method, images = prolip(projected), data.val.images()
    vision = clip.vision
    tower = vision.to_embedding if hasattr(vision, "projection") else vision.pool.output
    expected = clip.logits(tower(jnp.asarray(images.unprojected)), texts)
    np.testing.assert_allclose(
        logits(method, images, one_device, clip), expected, rtol=1e-4, atol=1e-5
    )
