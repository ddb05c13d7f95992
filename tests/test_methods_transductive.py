"""TransCLIP: what must hold whatever the official code does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_methods_heads as heads
import test_methods_unlabeled as of_unlabeled
from test_methods_heads import NAMES, SPACE

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.errors import InputError
from coop_jax.methods import Data, transclip


class World(of_unlabeled.World):
    """Features around centres, of which TransCLIP learns."""

    def create(self, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return TransCLIP for the classes of these labels."""
        labels = list(labels)
        classes = classes or Classes(tuple([*NAMES, "tench", "anemone"][label] for label in labels))
        texts = self.texts[None, labels]
        return methods.create("transclip", SPACE, None, classes, settings, texts=texts)

    def fitted(self, **settings):
        """Return TransCLIP as it is fitted to the images."""
        method = self.create(**settings)
        method.prepare(SPACE, 0, self.data)
        return method

    @property
    def problem(self):
        """Return unit features and zero-shot log-probabilities."""
        features = clip_package.unit(jnp.asarray(self.views[0]))
        logits = SPACE.logits(features, jnp.asarray(self.texts[: len(NAMES)]))
        return features, jax.nn.log_softmax(logits, axis=-1)

    @property
    def shots(self):
        """Return the second view as labelled images."""
        classes = np.eye(len(NAMES), dtype=np.float32)[self.labels]
        return transclip.Shots(clip_package.unit(jnp.asarray(self.views[1])), jnp.asarray(classes))


def close(got, expected):
    """Compare two solutions."""
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def dense(near, count):
    """Return who is whose neighbour as a matrix `[rows, images]`."""
    matrix = np.zeros((len(near.places), count))
    np.put_along_axis(matrix, np.asarray(near.places), np.asarray(near.cosines), axis=1)
    return matrix


@pytest.mark.parametrize("has_shots", [False, True])
def test_what_neighbours_say_is_a_product_with_their_matrix(has_shots):
    world = World()
    features, log = world.problem
    shots = world.shots if has_shots else None
    near = transclip.nearest(features, shots.features if shots else None, 3, False)
    matrix, rows = dense(near, len(features)), np.exp(log)
    cosines = np.asarray(features @ features.T) - 2 * np.eye(len(features))
    everything = np.concatenate([cosines, shots.features @ features.T]) if shots else cosines
    kept = np.sort(everything, axis=1)[:, -3:]
    np.testing.assert_allclose(np.sort(near.cosines, axis=1), kept, atol=1e-6)
    fixed = shots.classes if shots else jnp.zeros((0, len(NAMES)))
    expected = matrix[: len(rows)] @ rows + matrix.T @ np.concatenate([rows, fixed])
    got = transclip.drawn_to(near, jnp.asarray(rows), fixed)
    np.testing.assert_allclose(got, 50 / 6 * expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [None, 0.02])
def test_the_gaussians_are_weighted_means(gamma):
    world = World()
    features, log = world.problem
    shots = None if gamma is None else world.shots
    first = transclip.initial(features, log, shots)
    got = transclip.gaussians(features, first.assignments, shots, jnp.float32(gamma or 0), first)
    weights, rows = np.float64(first.assignments) / len(features), np.float64(features)
    if shots is not None:
        added = 50 * gamma / len(shots.classes) * np.float64(shots.classes)
        weights, rows = np.append(weights, added, 0), np.append(rows, shots.features, 0)
    means = weights.T @ rows
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    squares = (rows[:, None] - means) ** 2
    variance = np.einsum("nc,nce->e", weights, squares) / weights.sum()
    close(got, (first.assignments, means, variance))


def test_the_likelihood_is_the_distance_over_the_variance():
    features, means = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    variance = np.float32([0.5, 1, 2])
    expected = -np.sum((features[:, None] - means) ** 2 / variance, axis=-1) / 2
    got = transclip.log_likelihood(features, means, variance)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_shots", [False, True])
def test_the_order_of_the_images_does_not_matter(has_shots):
    world, order = World(), np.random.default_rng(0).permutation(12)
    features, log = world.problem
    given = {"gammas": (0.02,), "text_weight": 0.5} if has_shots else {}
    shots = world.shots if has_shots else None
    (expected,) = transclip.solve(features, log, shots, **given)
    (got,) = transclip.solve(features[order], log[order], shots, **given)
    close(got, expected._replace(assignments=expected.assignments[order]))
    np.testing.assert_allclose(expected.assignments.sum(axis=1), 1, rtol=1e-5)


def test_each_weight_of_the_shots_is_solved_for_on_its_own():
    """As released, it is not."""
    world = World()
    given = (*world.problem, world.shots)
    (alone,) = transclip.solve(*given, gammas=(0.2,), text_weight=0.5, rounds=1)
    close(transclip.solve(*given, gammas=(0.002, 0.2), text_weight=0.5, rounds=1)[1], alone)
    released = {"as_released": True, "text_weight": 0.5, "rounds": 1}
    (alone,) = transclip.solve(*given, gammas=(0.2,), **released)
    after = transclip.solve(*given, gammas=(0.002, 0.2), **released)[1]
    assert np.abs(after.variance - alone.variance).max() > 1e-6


def test_texts_that_are_sure_are_followed():
    features, _ = World().problem
    labels = np.random.default_rng(1).integers(0, len(NAMES), len(features))
    log = jnp.log(jnp.asarray(np.eye(len(NAMES))[labels] * (1 - 4e-30) + 1e-30, jnp.float32))
    (solution,) = transclip.solve(features, log)
    np.testing.assert_array_equal(np.argmax(solution.assignments, axis=1), labels)


def test_an_unsure_image_is_drawn_to_its_neighbours():
    features = clip_package.unit(jnp.asarray([[1, 0], [1, 0.01], [1, 0.02], [0, 1], [0.01, 1.0]]))
    probabilities = jnp.asarray([[0.999, 0.001]] * 2 + [[0.5, 0.5]] + [[0.001, 0.999]] * 2)
    (solution,) = transclip.solve(features, jnp.log(probabilities), neighbours=2)
    assert solution.assignments[2, 0] > 0.55


@pytest.mark.parametrize("few_shot", [False, True])
def test_new_images_have_the_logits_of_texts_and_gaussians(one_device, few_shot):
    world = World()
    method = world.fitted(few_shot=few_shot)
    got = evaluate.logits(method, SPACE, world.test, one_device)
    test = clip_package.unit(jnp.asarray(world.test.features))
    log = jax.nn.log_softmax(SPACE.logits(test, method.bank[...]), axis=-1)
    squares = (np.asarray(test)[:, None] - method.means[...]) ** 2 / method.variance[...]
    expected = (0.5 if few_shot else 1.0) * log - squares.sum(axis=-1) / 100
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert method.uses == {"unlabeled", *["validation"] * few_shot}


def test_turning_images_and_texts_together_changes_the_variance_alone():
    """Means turn with them; where all dimensions have one variance nothing else changes."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(heads.SIZE, heads.SIZE)))[0]
    plain, turned = World(), World(turn=turn)
    (one,), (other,) = (transclip.solve(*world.problem, rounds=0) for world in (plain, turned))
    np.testing.assert_allclose(other.assignments, one.assignments, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(other.means, one.means @ turn, rtol=1e-3, atol=1e-5)


def test_means_move_with_their_classes_and_new_ones_are_refused():
    world = World()
    method, trained = world.fitted(), Classes(NAMES)

    def moved(labels):
        names = tuple([*NAMES, "tench"][label] for label in labels)
        wanted = Classes(names).moved_from(trained)
        return methods.move(method, world.create(labels, wanted), trained, wanted)

    np.testing.assert_array_equal(moved([2, 0]).means[...], method.means[...][jnp.array([2, 0])])
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        moved([0, 4])


def test_what_it_cannot_learn_from_is_refused():
    world = World()
    data = world.data
    some = data.train.subset(np.flatnonzero(world.labels != 1))
    with pytest.raises(InputError, match="images of every class, got none of class 1"):
        world.create(few_shot=True).prepare(SPACE, 0, data._replace(train=some))
    world.create().prepare(SPACE, 0, data._replace(train=some))
    with pytest.raises(InputError, match="expected unlabelled images, got none"):
        world.create().prepare(SPACE, 0, Data(data.train))
    one = data.unlabeled.subset(np.array([0]))
    with pytest.raises(InputError, match="at least 2 unlabelled images, got 1"):
        world.create().prepare(SPACE, 0, data._replace(unlabeled=one))
    with pytest.raises(InputError, match="gammas: expected at least one, got none"):
        world.create(few_shot=True, gammas=())
    assert world.create(few_shot=True, gammas=(0.1,)).uses == {"unlabeled"}
