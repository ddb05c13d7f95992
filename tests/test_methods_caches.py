"""APE, APE-T and other heads beside a cache: what must hold whatever the official code does."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_methods_heads as heads
from recorded import split
from test_methods_heads import NAMES, SIZE, SPACE

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods
from coop_jax.errors import InputError
from coop_jax.methods import Images, alignment, ape, channels, mixed, proker

TIP = {"augmented_passes": heads.VIEWS, "beta_steps": 3, "alpha_steps": 4}
TRIAL = {
    "steps": 20,
    "every": 5,
    "rates": (1e-2,),
    "decays": (0.01,),
    "batch_sizes": (4,),
}
SETTINGS = {
    "tip_adapter": TIP,
    "ape": TIP | {"gamma_steps": 2, "channels": 9},
    "ape_t": TIP | {"channels": 9},
    "proker": {"augmented_passes": heads.VIEWS, "beta_steps": 3, "ridge_steps": 4},
    "cross_modal": TRIAL,
    "cross_modal_adapter": TRIAL,
    "lfa": {"augmented_passes": 2, "tries": 3, "splits": 2, "steps": 30},
    "zero_shot": {},
}
"""Settings with which a few features are enough."""


class World(heads.World):
    """Features around centres, of which these methods learn."""

    def create(self, name, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return a method for the classes of these labels."""
        labels = list(labels)
        classes = classes or tuple([*NAMES, "tench", "anemone"][label] for label in labels)
        settings = SETTINGS[name] | settings
        return methods.create(name, SPACE, None, classes, settings, texts=self.texts[None, labels])

    def logits(self, method, mesh):
        """Return the logits of the test images."""
        return evaluate.logits(method, SPACE, self.test, mesh)


def close(got, expected, tolerance=1e-4):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["ape", "ape_t", "cross_modal", "lfa"])
def test_it_is_zero_shot_clip_until_it_has_learned(one_device, name):
    world = World()
    got, expected = (world.logits(world.create(one), one_device) for one in (name, "zero_shot"))
    close(got, expected)


@pytest.mark.parametrize("name", ["ape", "ape_t", "proker", "cross_modal", "cross_modal_adapter"])
def test_what_belongs_to_a_class_moves_with_it(one_device, name):
    world = World()
    method = world.fitted(name, one_device)
    few = heads.moved(world, method, [3, 0, 1], name)
    close(world.logits(few, one_device), world.logits(method, one_device)[:, [3, 0, 1]])
    with pytest.raises(InputError, match=r"got 1 others \(tench\)"):
        heads.moved(world, method, [0, 4], name)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ape", {"channels": 0}, "channels: expected at least 1, got 0"),
        ("ape", {"gamma_steps": 0}, "gamma_steps: expected at least 1, got 0"),
        ("ape_t", {"channels": 0}, "channels: expected at least 1, got 0"),
        ("ape_t", {"augmented_passes": 0}, "augmented_passes: expected at least 1, got 0"),
        ("proker", {"betas": (1.0,)}, r"betas: expected the first and the last, got \(1\.0,\)"),
        ("cross_modal", {"start": "best"}, "start: expected one of texts, random, got 'best'"),
        ("cross_modal_adapter", {"rates": ()}, "rates: expected at least one, got none"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        World().create(name, **settings)


def test_views_that_are_given_come_once_and_others_behind_the_image_itself():
    views = np.arange(3.0)[:, None, None] + np.zeros((3, 2, 1))
    made = split(np.zeros(2), Images(features=views[0] - 1), Images(features=views))
    given = dataclasses.replace(made, views=3)
    for passes, seen, of_given in ((0, [-1], [0]), (2, [-1, 0, 1], [0, 1, 2])):
        for each, expected in ((made, seen), (given, of_given)):
            got = each.with_augmented(passes).features
            assert got.shape == (passes + 1, 2, 1) and got[:, 1, 0].tolist() == expected
    assert given.with_augmented(9).features[:, 0, 0].tolist() == [0, 1, 2]


# APE.


def test_ape_on_all_channels_with_equal_keys_is_tip_adapter(one_device):
    world, settings = World(), {"search": False, "alpha": 2.5, "beta": 3.0}
    tip = world.fitted("tip_adapter", one_device, **settings)
    whole = world.fitted("ape", one_device, channels=500, gamma=0.0, **settings)
    assert sorted(whole.channels[...].tolist()) == list(range(SIZE))
    close(world.logits(whole, one_device), world.logits(tip, one_device))
    some = world.fitted("ape", one_device, gamma=0.0, **settings)
    assert np.abs(world.logits(some, one_device) - world.logits(tip, one_device)).max() > 1e-2


def test_channels_are_scored_over_all_pairs_of_samples_of_different_classes():
    """Of classes of several sizes, one of which has no image."""
    rng, labels = np.random.default_rng(0), np.asarray([0, 2, 2, 2, 0])
    texts, features = rng.normal(size=(4, 6)), rng.normal(size=(5, 6))
    samples = [*zip(range(4), texts, strict=True), *zip(labels, features, strict=True)]
    pairs = [a * b for (i, a), (j, b) in itertools.product(samples, samples) if i != j]
    found = channels.scores(texts, features, labels, (0.7, 0.3))
    close(found.similarity, np.mean(pairs, axis=0), 1e-12)
    expected = 0.3 * np.var(texts, axis=0, ddof=1) - 0.7 * np.mean(pairs, axis=0)
    close(found.criterion, expected, 1e-12)
    order = channels.best(found.criterion, 4)
    assert order.tolist() == sorted(range(6), key=lambda c: -expected[c])[:4]
    assert channels.best(np.float64([1, 2, 2]), 9).tolist() == [1, 2, 0]


def test_a_single_class_has_finite_scores():
    for features in (np.ones((3, 4)), np.ones((0, 4))):
        found = channels.scores(np.ones((1, 4)), features, np.zeros(len(features), int), (0.7, 0.3))
        np.testing.assert_array_equal(found, np.zeros((2, 4)))


def test_the_logits_of_an_image_without_any_chosen_channel_are_finite(one_device):
    world = World()
    method = world.fitted("ape", one_device, search=False)
    features = np.eye(SIZE, dtype=np.float32)
    got = evaluate.logits(method, SPACE, Images(features=features), one_device)
    assert np.isfinite(got).all()
    others = np.setdiff1d(np.arange(SIZE), method.channels[...])
    assert len(others) == SIZE - 9
    np.testing.assert_array_equal(method.similarity(features[others]), 0)


def test_keys_that_zero_shot_clip_mistakes_count_more(one_device):
    probabilities = jnp.float32([[1, 0], [0.5, 0.5], [0, 1]])
    sure = ape.divergence(probabilities, jnp.float32([[1, 0]] * 3))
    assert abs(float(sure[0])) < 1e-4 and float(sure[1]) == pytest.approx(1, abs=1e-4)
    assert float(sure[2]) == pytest.approx(np.log2(1e6), rel=1e-4)
    world = World()
    method = world.fitted("ape", one_device, search=False, gamma=2.0)
    close(method.weights(), np.exp(2.0 * np.asarray(method.divergence[...])))


def test_a_search_of_ape_chooses_what_the_logits_are_best_at(one_device):
    world = World()
    method = world.fitted("ape", one_device)
    found = method.whole_grid(SPACE, world.data.val)
    assert found.accuracy.shape == (3, 4, 2) and found.gammas.tolist() == [0.0, 0.25]
    images = world.data.val.images()

    def accuracy():
        predicted = evaluate.logits(method, SPACE, images, one_device).argmax(axis=1)
        return 100 * np.mean(predicted == world.val_labels)

    assert accuracy() == pytest.approx(found.accuracy.max())
    for place in ((0, 0, 0), (2, 3, 1), (1, 2, 1)):
        values = (each[at] for each, at in zip(found[:3], place, strict=True))
        method.beta[...], method.alpha[...], method.gamma[...] = map(np.float32, values)
        assert accuracy() == pytest.approx(found.accuracy[place])


# APE-T.


def test_ape_t_starts_as_tip_adapter(one_device):
    world, settings = World(), {"search": False, "alpha": 2.5, "beta": 3.0}
    method = world.create("ape_t", **settings)
    method.prepare(SPACE, 0, world.data)
    tip = world.fitted("tip_adapter", one_device, **settings)
    close(world.logits(method, one_device), world.logits(tip, one_device))


def test_a_residual_of_ape_t_moves_the_logits_of_its_class_alone(one_device):
    world = World()
    method = world.create("ape_t")
    method.prepare(SPACE, 0, world.data)
    before = world.logits(method, one_device)
    residual = np.random.default_rng(0).normal(size=method.residual.shape)
    method.residual[...] = method.residual[...].at[2].set(residual[2].astype(np.float32))
    after = world.logits(method, one_device)
    close(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
    assert np.abs(after[:, 2] - before[:, 2]).min() > 1e-3

    features = np.asarray(world.test.features)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    added = np.zeros(SIZE)
    added[np.asarray(method.channels[...])] = residual[2]
    keys = np.asarray(method.keys[...])[world.labels == 2] + added
    text = world.texts[2] / np.linalg.norm(world.texts[2]) + added
    expected = 5.0 * unit @ text + 2.0 * np.exp(unit @ keys.T - 1).sum(axis=1)
    close(after[:, 2], expected)


def test_runs_of_ape_t_side_by_side_are_each_what_they_are_alone(one_device):
    def runs():
        worlds = [World(seed=1), World(shots=2, seed=2), World(seed=3)]
        return [(world, world.create("ape_t")) for world in worlds]

    together, alone = runs(), runs()
    heads.learned_by(together, one_device)
    for pair, (_, method) in zip(alone, together, strict=True):
        heads.learned_by([pair], one_device)
        heads.compare(method, pair[1])


def test_a_space_of_fewer_channels_than_are_asked_for(one_device):
    space, texts = clip_package.FeatureSpace(3, 5.0), np.eye(3, dtype=np.float32)
    for name in ("ape", "ape_t"):
        method = methods.create(name, space, None, NAMES[:3], texts=texts[None])
        assert method.channels.shape == (3,)


# ProKeR.


def fixed(world, mesh, **settings):
    """Return ProKeR that was fitted without a search, and its parts in float64."""
    method = world.fitted("proker", mesh, search=False, beta=2.0, **settings)
    keys = np.asarray(method.keys[...], np.float64)
    features = np.asarray(world.test.features, np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    texts = world.texts[:4] / np.linalg.norm(world.texts[:4], axis=1, keepdims=True)
    labels = np.tile(world.labels, len(keys) // len(world.labels))
    near, among = (np.exp(-2.0 * (1 - rows @ keys.T)) for rows in (features, keys))
    return method, features @ texts.T, near, among, np.eye(4)[labels] - keys @ texts.T


def test_proker_gives_cosines_until_it_has_learned(one_device):
    world = World()
    got, expected = (world.logits(world.create(one), one_device) for one in ("proker", "zero_shot"))
    close(5.0 * got, expected)


def test_proker_adds_a_kernel_ridge_regression_of_what_the_cosines_miss(one_device):
    """Times the ridge, as in the official code."""
    method, cosines, near, among, missed = fixed(World(), one_device, ridge=0.3)
    regression = near @ np.linalg.inv(among + 0.3 * np.eye(len(among))) @ missed
    got = World().logits(method, one_device)
    close(got, cosines + 0.3 * regression)
    assert len(method.keys) == heads.VIEWS * len(World().labels)


def test_the_limits_of_prokers_ridge(one_device):
    method, cosines, near, _, missed = fixed(World(), one_device, ridge=1e6)
    close(World().logits(method, one_device), cosines + near @ missed, 1e-3)
    method = fixed(World(), one_device, ridge=1e-6)[0]
    close(World().logits(method, one_device), cosines, 1e-3)


def test_turning_images_and_texts_together_changes_no_logits_of_proker(one_device):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]
    got = [
        world.logits(world.fitted("proker", one_device), one_device)
        for world in (World(), World(turn=turn))
    ]
    close(got[1], got[0], 1e-3)


def test_a_search_of_proker_chooses_the_first_of_what_the_logits_are_best_at(one_device):
    world = World()
    method = world.fitted("proker", one_device)
    labels = np.tile(world.labels, heads.VIEWS)
    problem = proker.Problem.of(np.asarray(method.keys[...]), labels, method.classifier[...])
    found = method.grid(problem, world.data.val)
    assert found.betas.tolist() == [0.1, 5.05, 10.0] and len(found.ridges) == 4
    beta, ridge = np.unravel_index(np.argmax(found.accuracy), found.accuracy.shape)
    close([method.beta[...], method.ridge[...]], [found.betas[beta], found.ridges[ridge]])
    for place in ((0, 0), (2, 1), (beta, ridge)):
        settings = {"beta": float(found.betas[place[0]]), "ridge": float(found.ridges[place[1]])}
        again = world.fitted("proker", one_device, search=False, **settings)
        images = world.data.val.images()
        predicted = evaluate.logits(again, SPACE, images, one_device).argmax(axis=1)
        expected = 100 * np.mean(predicted == world.val_labels)
        assert found.accuracy[place] == pytest.approx(expected)


def test_proker_takes_the_images_themselves_without_augmented_passes(one_device):
    world = World()
    method = world.fitted("proker", one_device, augmented_passes=0)
    first = world.views[0] / np.linalg.norm(world.views[0], axis=1, keepdims=True)
    close(method.keys[...], first)


def test_more_views_than_a_kernel_holds_are_refused(one_device, monkeypatch):
    monkeypatch.setattr(proker, "MOST", 30)
    with pytest.raises(InputError, match=r"expected at most 30 views .*, got 36; lower"):
        World().fitted("proker", one_device)


# Cross-modal adaptation.


def test_a_mean_with_the_texts_has_the_mean_of_the_logits(one_device):
    world = World()
    learned, halved, texts = (
        world.logits(world.fitted("cross_modal", one_device, wise=wise, select=False), one_device)
        for wise in (0.0, 0.5, 1.0)
    )
    close(halved, (learned + texts) / 2)
    close(texts, world.logits(world.create("zero_shot"), one_device))
    assert np.abs(learned - texts).max() > 1e-2


def test_an_adapter_that_adds_nothing_is_the_linear_probe(one_device):
    world = World()
    linear, adapter = (
        world.fitted(name, one_device, **settings)
        for name, settings in (("cross_modal", {}), ("cross_modal_adapter", {"ratio": 0.0}))
    )
    close(adapter.weight[...], linear.weight[...], 1e-6)
    close(world.logits(adapter, one_device), world.logits(linear, one_device))


def test_passes_take_each_sample_once_and_leave_the_rest_out():
    order = mixed.passes(np.random.default_rng(0), 11, 4, 7)
    assert order.shape == (7, 4) and order.max() == 10
    for start in (0, 2, 4):
        assert len(np.unique(order[start : start + 2])) == 8
    assert len({tuple(batch) for batch in order}) == 7


def test_samples_have_the_labels_of_their_features():
    """Of two texts for each class, and of views of images."""
    world, rng = World(), np.random.default_rng(0)
    texts = rng.normal(size=(2, 4, SIZE)).astype(np.float32)
    method = methods.create("cross_modal", SPACE, None, NAMES, {"augmented_passes": 2}, texts=texts)
    images, sentences = method.samples(world.data)
    assert len(sentences.labels) == 8 and len(images.labels) == 3 * len(world.labels)
    for label in range(4):
        unit = texts[:, label] / np.linalg.norm(texts[:, label], axis=1, keepdims=True)
        close(sentences.features[np.asarray(sentences.labels) == label], unit)
        seen = np.concatenate([world.views[0], *world.views[:2]])[
            np.asarray(images.labels) == label
        ]
        unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
        close(images.features[np.asarray(images.labels) == label], unit)
    mean = texts.mean(axis=0)
    close(method.weight[...], mean / np.linalg.norm(mean, axis=1, keepdims=True))


def test_batches_whose_halves_do_not_fit_are_not_tried():
    method = World().create("cross_modal", batch_sizes=(8, 12, 32), rates=(1.0, 2.0))
    sizes = [size for _, _, size in method.trials(100, 7)]
    assert sizes == [8, 12, 8, 12]
    assert [size for _, _, size in method.trials(100, 4)] == [8, 8]
    images, texts = method.orders(method.samples(World().data), 8)
    assert images.shape == (20, 4) and sorted(texts[0]) == [0, 1, 2, 3]
    alone = World().create("cross_modal", select=False, batch_sizes=(8, 12), rates=(1.0, 2.0))
    assert list(alone.trials(100, 7)) == [(1.0, 0.01, 8)] and not alone.uses


@pytest.mark.parametrize("select", [True, False])
def test_a_validation_accuracy_is_said_only_where_one_was_measured(one_device, caplog, select):
    with caplog.at_level("INFO"):
        World().fitted("cross_modal", one_device, select=select)
    [line] = [line for line in caplog.messages if line.startswith("cross-modal")]
    assert ("accuracy" in line) == select and "batches of" in line


def descent(world, method, steps, rate):
    """Return a head that was trained for so many steps at one rate."""
    samples = method.samples(world.data)
    images = world.data.val.images().features
    val = mixed.Samples(clip_package.unit(jnp.asarray(images)), jnp.asarray(world.val_labels))
    orders = [order[:steps] for order in method.orders(samples, 4)]
    return method.fitted(SPACE, samples, val, orders, np.full(steps, rate), 0.0), val


def test_the_first_of_equally_good_heads_is_kept():
    world = World()
    method = world.create("cross_modal")
    after, _ = descent(world, method, 1, 1e-6)
    fit, val = descent(world, method, 20, 1e-6)
    close(fit.best.weight, after.last.weight, 1e-7)
    assert np.abs(fit.last.weight - after.last.weight).max() > 1e-6
    right = np.argmax(fit.best(val.features, 0.0), axis=1) == val.labels
    assert float(fit.accuracy) == pytest.approx(100 * np.mean(right))


def test_the_best_head_is_one_of_those_that_are_tried():
    world = World()
    method = world.create("cross_modal", start="random")
    tried = [descent(world, method, steps, 0.03)[0].last for steps in (1, 6, 11, 16)]
    fit, val = descent(world, method, 20, 0.03)
    accuracy = [100 * np.mean(np.argmax(h(val.features, 0.0), axis=1) == val.labels) for h in tried]
    assert float(fit.accuracy) == pytest.approx(max(accuracy)) and min(accuracy) < max(accuracy)
    close(fit.best.weight, tried[int(np.argmax(accuracy))].weight)


def test_texts_are_learned_from(one_device):
    """Of images whose labels say nothing, the texts still teach."""
    world = World()
    world.views = np.random.default_rng(3).normal(size=world.views.shape).astype(np.float32)
    settings = {"start": "random", "select": False, "steps": 200, "augmented_passes": 0}
    method = world.fitted("cross_modal", one_device, **settings)
    texts = Images(features=world.texts[:4])
    got = evaluate.logits(method, SPACE, texts, one_device)
    assert got.argmax(axis=1).tolist() == [0, 1, 2, 3]


# LFA.


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_a_rotation_is_found_again_where_classes_are_enough():
    rng = np.random.default_rng(0)
    texts, turn = unit(rng.normal(size=(9, 6))), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    labels = np.arange(18) % 9
    features = texts[labels] @ turn.T
    close(alignment.aligned(features, texts[labels], 0.0), turn, 1e-6)
    close(alignment.aligned(features, texts[labels], 0.25), 0.75 * turn + 0.25 * np.eye(6), 1e-6)


def test_directions_without_a_text_are_turned_as_little_as_can_be():
    rng = np.random.default_rng(0)
    texts = unit(rng.normal(size=(3, 8)))
    close(alignment.aligned(texts, texts, 0.0), np.eye(8), 1e-6)
    features = unit(texts + 0.3 * rng.normal(size=texts.shape))
    got = alignment.aligned(features, texts, 0.0)
    close(got @ got.T, np.eye(8), 1e-6)
    best = np.linalg.svd(features.T @ texts)[1].sum()
    assert np.trace(got.T @ features.T @ texts) == pytest.approx(best)
    left, _, right = np.linalg.svd(features.T @ texts)
    for seed in range(20):
        free = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
        other = left[:, :3] @ right[:3] + left[:, 3:] @ free @ right[3:]
        assert np.linalg.norm(got - np.eye(8)) <= np.linalg.norm(other - np.eye(8)) + 1e-9


def test_a_cross_validation_finds_what_is_turned():
    """Of equally good betas the first counts, as where the features are the texts already."""
    rng = np.random.default_rng(0)
    texts, turn = unit(rng.normal(size=(9, 6))), np.linalg.qr(rng.normal(size=(6, 6)))[0]
    labels = np.arange(36) % 9
    orders = np.stack([[rng.permutation(36) for _ in range(2)] for _ in range(5)])
    betas, scores = alignment.cross_validated(texts[labels] @ turn.T, labels, texts, orders)
    assert betas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert scores[0] == 100 > scores[-1]
    _, scores = alignment.cross_validated(texts[labels], labels, texts, orders)
    assert scores.tolist() == [100] * 5


def test_the_ranking_loss_is_what_the_nearest_texts_are_too_near_by():
    rng = np.random.default_rng(0)
    features, texts = rng.normal(size=(7, 5)), unit(rng.normal(size=(4, 5)))
    labels = np.arange(7) % 4
    for neighbors in (1, 3, 9):
        found = []
        for feature, label in zip(unit(features), labels, strict=True):
            far = np.linalg.norm(feature - texts, axis=1)
            near = np.argsort(far)[:neighbors]
            margins = 0.25 * (1 - texts[near] @ texts[label])
            found.extend(np.maximum(far[label] + margins - far[near], 0))
        given = jnp.float32(features), jnp.float32(texts), jnp.asarray(labels)
        got = alignment.ranking_loss(*given, neighbors, 0.25)
        assert float(got) == pytest.approx(np.mean(found), rel=1e-4)


def test_the_gradient_at_a_text_itself_is_finite():
    texts = jnp.eye(3, dtype=jnp.float32)
    loss = lambda rows: alignment.ranking_loss(rows, texts, jnp.arange(3), 3, 0.25)  # noqa: E731
    assert np.isfinite(jax.grad(loss)(texts)).all()


def test_the_average_starts_as_the_identity_and_forgets_it_slowly():
    momenta = alignment.momenta_of(8)
    assert momenta[0] == pytest.approx(0.9) and np.all(np.diff(momenta) >= 0)
    close(momenta[4:], 0.9 + 0.1 * (1 - np.exp(-5)), 1e-6)
    assert alignment.momenta_of(1).tolist() == [1.0]


def test_a_step_of_lfa_sees_one_view_of_all_images_or_a_part_of_them():
    world = World()
    method, rng = world.create("lfa"), np.random.default_rng(0)
    several = method.steps_of(world.views, rng)
    assert set(several.view.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(np.sort(several.images), np.tile(np.arange(12), (30, 1)))
    alone = method.steps_of(world.views[:1], rng)
    assert alone.images.shape == (30, 9) and not alone.view.any()
    assert all(len(set(step.tolist())) == 9 for step in alone.images)


def test_lfa_takes_its_average_for_classes_that_it_was_not_trained_on(one_device):
    world = World()
    method = world.fitted("lfa", one_device)
    few = heads.moved(world, method, [3, 0, 1], "lfa")
    close(world.logits(few, one_device), world.logits(method, one_device)[:, [3, 0, 1]])
    new = heads.moved(world, method, [0, 4], "lfa")
    features = unit(np.asarray(world.test.features)) @ np.asarray(method.average[...])
    close(world.logits(new, one_device), 5.0 * unit(features) @ unit(world.texts[[0, 4]]).T)
    assert np.abs(method.average[...] - method.matrix[...]).max() > 1e-3


def test_lfa_turns_images_back(one_device):
    """Where they alone are turned, zero-shot CLIP does not know them."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]
    world = World()
    for name in ("views", "val"):
        setattr(world, name, (getattr(world, name) @ turn).astype(np.float32))
    method, zero_shot = world.fitted("lfa", one_device), world.create("zero_shot")
    images = world.data.val.images()
    right = [
        np.mean(evaluate.logits(one, SPACE, images, one_device).argmax(axis=1) == world.val_labels)
        for one in (zero_shot, method)
    ]
    assert right[0] < 0.5 and right[1] > right[0] + 0.2


def test_noise_and_dropout_depend_on_the_seed_alone(one_device):
    got = []
    for seed, settings in ((1, {}), (1, {}), (2, {}), (1, {"noise": 0.0, "dropout": 0.0})):
        world = World()
        method = methods.create(
            "lfa",
            SPACE,
            None,
            NAMES,
            SETTINGS["lfa"] | settings,
            texts=world.texts[None, :4],
            seed=seed,
        )
        method.prepare(SPACE, 0, world.data)
        got.append(np.asarray(method.matrix[...]))
    np.testing.assert_array_equal(got[0], got[1])
    assert all(np.abs(got[0] - other).max() > 1e-5 for other in got[2:])
