"""The Tip-Adapters and GDA: what must hold whatever the official code does."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from recorded import split

from coop_jax import clip as clip_package
from coop_jax import config, evaluate, methods, train
from coop_jax.classes import Classes
from coop_jax.data.examples import Dataset, Examples
from coop_jax.errors import InputError
from coop_jax.methods import Data, Images, cache
from coop_jax.run import Frozen, TrainingRun, batches, learn

NAMES, SIZE, VIEWS, EPOCHS = ("circle", "square", "star", "seven"), 16, 3, 3
SPACE = clip_package.FeatureSpace(SIZE, 5.0)
SMALL = {
    "tip_adapter": {"augmented_passes": VIEWS, "beta_steps": 9, "alpha_steps": 7},
    "tip_adapter_f": {"augmented_passes": VIEWS, "beta_steps": 9, "alpha_steps": 7},
    "gda": {"augmented_passes": VIEWS},
}
each = pytest.mark.parametrize("name", SMALL)


class World:
    """Features around a centre of each class, which its text feature is near to.

    All are turned by an orthogonal matrix where one is given.
    """

    def __init__(self, shots=3, seed=0, turn=None):
        self.seed, rng = seed, np.random.default_rng(seed)
        turn = np.eye(SIZE) if turn is None else turn
        centres, errors = np.random.default_rng(5).normal(size=(2, len(NAMES) + 2, SIZE))

        def around(labels, *views):
            noise = 1.5 * rng.normal(size=(*views, len(labels), SIZE))
            return ((centres[labels] + noise) @ turn).astype(np.float32)

        self.texts = ((centres + errors) @ turn).astype(np.float32)
        self.labels = np.repeat(np.arange(len(NAMES), dtype=np.int32), shots)
        self.views = around(self.labels, VIEWS)
        self.val_labels = np.repeat(np.arange(len(NAMES), dtype=np.int32), 5)
        self.val = around(self.val_labels)
        self.test = Images(features=around(np.arange(12) % len(centres)))

    @property
    def data(self):
        """Return what `prepare` sees."""
        augmented = Images(features=self.views)
        train_split = split(self.labels, Images(features=self.views[0]), augmented)
        return Data(train_split, split(self.val_labels, Images(features=self.val)))

    def create(self, name, labels=(0, 1, 2, 3), classes=None, **settings):
        """Return a method for the classes of these labels."""
        labels = list(labels)
        classes = classes or Classes(tuple([*NAMES, "tench", "anemone"][label] for label in labels))
        settings = SMALL[name] | settings
        return methods.create(name, SPACE, None, classes, settings, texts=self.texts[None, labels])

    def fitted(self, name, mesh, **settings):
        """Return a method that has learned."""
        method = self.create(name, **settings)
        learned_by([(self, method)], mesh)
        return method


def stages(method, name):
    """Return the stages of a short training."""
    changes = {"epochs": EPOCHS, "batch_size": 5}
    return method.stages(config.merged(config.default(name), changes))


def learned_by(pairs, mesh):
    """Let methods learn side by side; return the losses of each."""
    losses, module = [[] for _ in pairs], type(pairs[0][1]).__module__
    name = module.rpartition(".")[2]
    for number, stage in enumerate(stages(pairs[0][1], name)):
        runs = []
        for world, method in pairs:
            seen = method.prepare(SPACE, number, world.data).train
            if stage.epochs:
                steps = batches(stage, seen, seed=world.seed, shots=3, dataset="world")
                encode = lambda requests, seen=seen: seen.encode(requests, True)  # noqa: E731
                runs.append(train.Run(method, steps, encode))
        for chunk in train.fit(runs, SPACE, stage, mesh) if stage.epochs else ():
            for progress in chunk:
                losses[progress.run].extend(progress.losses)
    return losses


def compare(method, other):
    """Compare all that is saved of two methods."""
    got, expected = methods.saved(method), methods.saved(other)
    assert got.keys() == expected.keys()
    for path, variable in expected.items():
        np.testing.assert_allclose(
            got[path][...], variable[...], rtol=1e-5, atol=1e-5, err_msg=path
        )


def test_runs_side_by_side_are_each_what_they_are_alone_whatever_their_shots(one_device):
    def runs():
        worlds = [World(seed=1), World(shots=2, seed=2), World(seed=3)]
        return [(world, world.create("tip_adapter_f")) for world in worlds]

    together, alone = runs(), runs()
    losses = learned_by(together, one_device)
    assert [len(one) for one in losses] == [9, 6, 9]
    for pair, (_, method), found in zip(alone, together, losses, strict=True):
        np.testing.assert_allclose(found, learned_by([pair], one_device)[0], rtol=1e-5)
        compare(method, pair[1])


@each
def test_it_is_zero_shot_clip_until_it_has_learned(tiny_clip, tiny_tokenizer, one_device, name):
    images = Images(features=np.random.default_rng(0).normal(size=(5, 24)).astype(np.float32))
    templates = ("a photo of a {}.", "a {}.")
    logits = [
        evaluate.logits(
            methods.create(one, tiny_clip, tiny_tokenizer, NAMES, {"templates": templates}),
            tiny_clip,
            images,
            one_device,
        )
        for one in (name, "zero_shot")
    ]
    # GDA's log-prior is the same for all classes.
    differences = logits[0] - logits[1]
    np.testing.assert_allclose(differences - differences[:, :1], 0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("tip_adapter", {}), ("gda", {}), ("gda", {"estimator": "base_to_new"})],
)
def test_turning_images_and_texts_together_changes_no_logits(one_device, name, settings):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(SIZE, SIZE)))[0]
    logits = []
    for world in (World(), World(turn=turn)):
        method, labels = world.fitted(name, one_device, **settings), range(len(NAMES))
        if settings:
            labels = [1, 4, 5]
            method = moved(world, method, labels, name, **settings)
        logits.append(evaluate.logits(method, SPACE, world.test, one_device))
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=2e-3)


def moved(world, method, labels, name, **settings):
    """Return a method that has learned, for the classes of other labels."""
    trained = Classes(NAMES)
    wanted = Classes(tuple([*NAMES, "tench", "anemone"][label] for label in labels))
    wanted = wanted.moved_from(trained)
    return methods.move(method, world.create(name, labels, wanted, **settings), trained, wanted)


@each
def test_some_of_the_classes_in_another_order_keep_their_logits(one_device, name):
    world = World()
    method = world.fitted(name, one_device)
    few = moved(world, method, [3, 0, 1], name)
    got, expected = (evaluate.logits(one, SPACE, world.test, one_device) for one in (few, method))
    # GDA's prior is that of as many classes as there are.
    prior = float(method.alpha[...]) * np.log(4 / 3) if name == "gda" else 0.0
    np.testing.assert_allclose(got - prior, expected[:, [3, 0, 1]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tip_adapter", r"got 1 others \(tench\)"),
        ("tip_adapter_f", r"got 1 others \(tench\)"),
        ("gda", r"estimator: expected base_to_new .* got few_shot"),
    ],
)
def test_other_classes_are_refused(one_device, name, message):
    world = World()
    method = world.fitted(name, one_device)
    with pytest.raises(InputError, match=message):
        moved(world, method, [0, 4], name)


def test_a_new_class_changes_no_logits_of_the_base_classes(one_device):
    """Each new class's Gaussian has the precision that all new classes share."""
    world, settings = World(), {"estimator": "base_to_new", "nearest": 7, "text_repeats": 2}
    method = world.fitted("gda", one_device, **settings)
    base, new, both = (
        moved(world, method, labels, "gda", **settings).texts(SPACE, None)
        for labels in (range(4), [4, 5], range(6))
    )
    np.testing.assert_allclose(both.weight[:4], base.weight, rtol=1e-6)
    np.testing.assert_allclose(both.weight[4:], new.weight, rtol=1e-5, atol=1e-5)
    assert np.abs(new.weight).min(axis=1).max() > 0
    # All six classes are equally likely beforehand.
    np.testing.assert_allclose(both.bias[:4], base.bias - np.log(6 / 4), rtol=1e-5)
    np.testing.assert_allclose(both.bias[4:], new.bias - np.log(6 / 2), rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1, 1), (3, 5, 6), (4, 2, 3)]))
def test_a_search_counts_as_the_first_largest_logit_says(seed, sizes):
    """Of similarities of 1 or hardly any, so that all logits are whole and many are equal.

    So are the weights of the keys.
    """
    (classes, keys, images), rng = sizes, np.random.default_rng(seed)
    zero_shot = rng.integers(4, size=(images, classes)).astype(np.float32)
    is_near = rng.random((images, keys)) < 0.5
    key_labels, labels = (rng.integers(classes, size=count) for count in (keys, images))
    weights = rng.integers(3, size=keys).astype(np.float32)
    betas, alphas = np.float32([0.5, 2.0]), np.float32([0.0, 1.0, 3.0])
    slots, similarity = cache.by_class(key_labels, classes), np.where(is_near, 1.0, -1e9)
    right = cache.count_right(
        zero_shot, similarity.astype(np.float32), slots, weights, labels, betas, alphas
    )
    cached = (is_near * weights) @ np.eye(classes)[key_labels]
    predicted = [np.argmax(zero_shot + alpha * cached, axis=1) for alpha in alphas]
    expected = [np.sum(one == labels) for one in predicted]
    np.testing.assert_array_equal(right, [expected, expected])


def test_a_search_in_pieces_is_the_search_in_one(one_device, monkeypatch):
    world = World()
    method = world.fitted("tip_adapter", one_device)
    whole = method.grid(SPACE, world.data.val)
    monkeypatch.setattr(cache, "AT_ONCE", 50)
    pieces = method.grid(SPACE, world.data.val)
    np.testing.assert_array_equal(pieces.accuracy, whole.accuracy)
    assert whole.accuracy.max() > whole.accuracy.min()
    for beta, alpha in ((0, 0), (5, 2), (8, 6)):
        method.beta[...], method.alpha[...] = (
            np.float32(values[place])
            for values, place in ((whole.betas, beta), (whole.alphas, alpha))
        )
        images = world.data.val.images()
        predicted = evaluate.logits(method, SPACE, images, one_device).argmax(axis=1)
        expected = 100 * np.mean(predicted == world.val_labels)
        assert whole.accuracy[beta, alpha] == pytest.approx(expected)


def test_without_a_search_alpha_and_beta_stay(one_device):
    world, settings = World(), {"search": False, "alpha": 2.5, "beta": 5.0}
    for name in ("tip_adapter", "tip_adapter_f"):
        method = world.fitted(name, one_device, **settings)
        assert not method.uses
        assert (float(method.alpha[...]), float(method.beta[...])) == (2.5, 5.0)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("tip_adapter", {"augmented_passes": 0}, "augmented_passes: expected at least 1, got 0"),
        ("tip_adapter_f", {"beta_scale": 0.1}, r"beta_scale: expected more than 0\.1, got 0\.1"),
        ("gda", {"estimator": "best"}, "estimator: expected one of few_shot, base_to_new"),
        ("gda", {"nearest": 1}, "nearest: expected at least 2, got 1"),
        ("gda", {"alphas": ()}, "alphas: expected at least one, got none"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, message):
    with pytest.raises(InputError, match=message):
        World().create(name, **settings)


def test_gda_needs_two_views_of_every_class(one_device):
    with pytest.raises(InputError, match=r"two augmented views .* got 1 of class 0"):
        World(shots=1).fitted("gda", one_device, augmented_passes=1)


@each
def test_a_run_that_was_stopped_between_its_stages_ends_the_same(tmp_path, name):
    world = World()
    settings = config.default(name)
    settings["method"] |= SMALL[name]
    settings["epochs"] = EPOCHS
    frozen = Frozen(settings, dataset_of(world))

    def run(folder):
        return TrainingRun(frozen, dataset_of(world), 3, 1, folder)

    whole = run(tmp_path / "whole")
    assert learn([whole]) == [False]
    stopped = run(tmp_path / "stopped")
    first = dataclasses.replace(stopped)
    first.stages = first.stages[:1]
    learn([first])
    assert learn([stopped]) == [True]
    compare(stopped.method, whole.method)
    compare(run(tmp_path / "stopped").restore(), whole.method)
    assert len(nnx.to_flat_state(nnx.state(whole.method, methods.Kept))) >= 3


def dataset_of(world):
    """Return a dataset of given features."""

    def examples(name, labels, features):
        numbers = np.arange(len(labels))
        return Examples((), name, labels, numbers.astype(str), numbers, features=features)

    return Dataset(
        "world",
        Classes(NAMES),
        ("a photo of a {}.",),
        examples("train", world.labels, world.views),
        examples("val", world.val_labels, world.val[None]),
        examples("test", world.val_labels, world.val[None]),
        texts=world.texts[None, : len(NAMES)],
    )
