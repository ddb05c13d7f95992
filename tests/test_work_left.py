"""What is left of a workdir's work, and what its results are said to depend on."""

import collections
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
from makers import coop_data, feature_arrays
from record_presets import small

from coop_jax import config as config_module
from coop_jax import protocols, results, run
from coop_jax.data import catalog
from coop_jax.errors import InputError
from coop_jax.frozen import Frozen
from coop_jax.methods import Split, Stage
from coop_jax.printing import percent

SHIFT = """
import jax.numpy as jnp
from coop_jax.clip import unit
from coop_jax.methods import Learned, base, text

NAME, PAPER = "shift", "nobody, nowhere"


def default_config():
    return {}


class Method(base.Method):
    def __init__(self, given, config):
        self.prompts = text.HandCrafted(given, (given.template,))
        self.shift = Learned(jnp.zeros(given.clip.config.embedding))

    def texts(self, clip, key):
        return unit(self.prompts.encode(clip)).mean(axis=0)

    def logits(self, clip, texts, images):
        return clip.logits(images.features + self.shift[...], texts)
"""
"""A method that moves to other classes, of given features."""

ALONE = {"shots": (1,), "seeds": (1,)}
QUICK = {"batch_size": 3, "epochs": 1, "loggers": ()}


@pytest.fixture
def shift(tmp_path):
    (tmp_path / "shift.py").write_text(SHIFT)
    return str(tmp_path / "shift.py")


def config_of(method, dataset, **changes):
    return config_module.merged(
        config_module.default(method), {"dataset": str(dataset), **QUICK, **changes}
    )


def works(rows):
    """How often each piece of work was done."""
    keys = ("method", "dataset", "split", "shots", "seed", "prompt", "trained_on")
    return collections.Counter(tuple(getattr(row, key) for key in keys) for row in rows)


def test_more_shots_and_seeds_are_each_trained_once(write_features, shift, tmp_path):
    """None is taken for another that differs in the seed or the shots alone."""
    path = write_features(feature_arrays())
    for shots, seeds in (((1,), (2,)), ((1, 3), (2,)), ((1, 3), (1, 2))):
        config = config_of(shift, path, shots=shots, seeds=seeds)
        rows = protocols.run(config, tmp_path / "run")[2]
        learned = results.find(rows, prompt=None)
        assert sorted((row.shots, row.seed) for row in learned) == [
            (number, seed) for number in shots for seed in seeds
        ]
        assert len(rows) == len(learned) + 1
    assert len({row.hashes.split for row in learned}) == len(learned)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "base_to_new", "parts": ("base", "new", "all")},
        {"protocol": "cross_dataset", "targets": ("other.npz",)},
    ],
)
def test_every_result_that_is_missing_is_made_again(
    write_features, shift, tmp_path, changes, caplog
):
    path = write_features(feature_arrays())
    write_features(feature_arrays(seed=1), "other.npz")
    if "targets" in changes:
        changes = changes | {"targets": (str(tmp_path / "other.npz"),)}
    config = config_of(shift, path, shots=(1,), seeds=(1, 2), **changes)
    rows = protocols.run(config, tmp_path / "run")[2]
    whole, file = works(rows), tmp_path / "run" / results.FILE_NAME
    targets = len(changes.get("parts", ("itself", "other")))
    assert set(whole.values()) == {1} and len(whole) == 3 * targets
    lines = file.read_text().splitlines(keepends=True)
    for number in range(len(lines)):
        file.write_text("".join(lines[:number] + lines[number + 1 :]))
        caplog.clear()
        again = protocols.run(config, tmp_path / "run")[2]
        assert works(again) == whole
        missing = dataclasses.replace(rows[number], seconds=None)
        what = f"{file}: has not all results of what has been learned"
        assert [what in line for line in caplog.messages] == [True] * (missing.prompt is None)
        assert dataclasses.replace(again[-1], seconds=None) == missing
        assert (again[-1].seconds is None) == (missing.prompt is None)  # an earlier process began
        lines = file.read_text().splitlines(keepends=True)
        rows = again


def swapped(examples):
    """The same images, two of which have each other's labels."""
    labels = examples.labels.copy()
    labels[[0, -1]] = labels[[-1, 0]]
    assert labels[0] != labels[-1]
    return dataclasses.replace(examples, labels=labels)


def renamed(examples):
    names = examples.file_names.copy()
    names[0] = "other.jpg"
    return dataclasses.replace(examples, file_names=names)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"), ["dtd"])


@pytest.fixture
def experiment(data, tmp_path):
    return functools.partial(protocols.Experiment, small("coop_few_shot:dtd", data), tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("change", [swapped, renamed])
def test_other_labels_or_files_are_other_data(experiment, split, change):
    before, after = experiment(), experiment()
    changed = {split: change(getattr(after.dataset, split))}
    after.dataset = dataclasses.replace(after.dataset, **changed)
    hashes = [
        dataclasses.asdict(each.hashes(protocols.few_shot(each).targets[0], ["1.jpg"]))
        for each in (before, after)
    ]
    others = {key for key in hashes[0] if hashes[0][key] != hashes[1][key]}
    assert others == ({"data", "split"} if split == "test" else {"data"})


CHANGES = [
    ({"augmentation": {"flip": 0.25}}, {"transform", "config"}),
    *(
        (change, {"config"})
        for change in (
            {"method": {"n_ctx": 5}},
            {"clip": {"dtype": "bfloat16"}},
            {"optimizer": {"momentum": 0.5}},
            {"batch_size": 7},
            {"epochs": 3},
            {"sampling": "linear_probe"},
        )
    ),
    *(
        (change, set())  # another point of a curve, or what changes no number
        for change in (
            {"shots": (5,), "seeds": (6,), "parts": ("base",), "targets": ("dtd",)},
            {"runs_at_once": 3, "encode_batch_size": 7, "loggers": (), "feature_cache": "here"},
            {"data_dir": "elsewhere", "templates": ("{}",), "protocol": "cross_dataset"},
        )
    ),
]


@pytest.mark.parametrize(("change", "changed"), CHANGES)
def test_a_setting_changes_the_hashes_that_it_belongs_to(experiment, change, changed):
    before, after = experiment(), experiment()
    after.config = config_module.merged(after.config, change)
    (target,) = protocols.few_shot(before).targets
    hashes = [dataclasses.asdict(each.hashes(target, ["1.jpg"])) for each in (before, after)]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == changed


def test_what_was_learned_from_belongs_to_the_split(experiment):
    (target,) = protocols.few_shot(made := experiment()).targets
    hashes = [made.hashes(target, names) for names in ([], ["1.jpg"], ["2.jpg"])]
    assert len({each.split for each in hashes}) == 3
    assert len({dataclasses.replace(each, split="") for each in hashes}) == 1


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_results_of_other_labels_are_refused(write_features, shift, tmp_path, split):
    arrays = feature_arrays()
    config = config_of(shift, write_features(arrays), **ALONE)
    protocols.run(config, tmp_path / "run")
    arrays[f"{split}_labels"][[0, -1]] = arrays[f"{split}_labels"][[-1, 0]]
    write_features(arrays)
    with pytest.raises(InputError, match=r"expected results of the same data as now"):
        protocols.run(config, tmp_path / "run")


def test_results_of_other_data_elsewhere_are_refused(write_features, shift, tmp_path):
    """Where it is evaluated on, but not trained on."""
    arrays, path = feature_arrays(seed=1), write_features(feature_arrays())
    target = write_features(arrays, "other.npz")
    config = config_of(shift, path, protocol="cross_dataset", targets=(str(target),), **ALONE)
    protocols.run(config, tmp_path / "run")
    arrays["test_labels"][[0, -1]] = arrays["test_labels"][[-1, 0]]
    write_features(arrays, "other.npz")
    with pytest.raises(InputError, match=r"expected results of the same data as now"):
        protocols.run(config, tmp_path / "run")


def test_another_code_of_a_method_is_another_config(write_features, shift, tmp_path):
    config, hashes = config_of(shift, write_features(feature_arrays()), **ALONE), []
    for code in (SHIFT, SHIFT + "# changed\n"):
        Path(shift).write_text(code)
        experiment = protocols.Experiment(config, tmp_path / "run")
        (target,) = protocols.few_shot(experiment).targets
        hashes.append(experiment.hashes(target))
    assert hashes[0].config != hashes[1].config
    assert dataclasses.replace(hashes[0], config=hashes[1].config) == hashes[1]


FIVE = [f"class {number}" for number in "abcde"]


@pytest.fixture
def five(write_features):
    """Five classes, two of them without images to train on, the others with 1, 2 and 4."""
    rng = np.random.default_rng(0)
    test = np.array([4, 3, 2, 1, 0, 0, 3])
    train = np.array([4, 0, 2, 2, 4, 4, 4, 1, 3])
    arrays = {
        "class_names": np.array(FIVE),
        "text_features": rng.normal(size=(5, 12)),
        "train_features": rng.normal(size=(len(train), 12)),
        "train_labels": train,
        "test_features": rng.normal(size=(len(test), 12)),
        "test_labels": test,
    }
    arrays |= {k: a.astype(np.float32) for k, a in arrays.items() if k.endswith("features")}
    dataset = catalog.load(str(write_features(arrays, "five.npz")))
    return dataclasses.replace(dataset, train=dataset.train.subset(range(7)))


@pytest.mark.parametrize(
    ("part", "labels", "train", "test"),
    [
        ("base", [0, 2], [0, 1, 1], [1, 0, 0]),
        ("new", [4], [0, 0, 0, 0], [0]),
        ("all", [0, 2, 4], [2, 0, 1, 1, 2, 2, 2], [2, 1, 0, 0]),
    ],
)
def test_classes_without_training_images_belong_to_no_half(five, part, labels, train, test):
    half = five.half(part)
    assert half.classes.names == tuple(FIVE[label] for label in labels)
    assert half.train.labels.tolist() == train and half.test.labels.tolist() == test
    np.testing.assert_array_equal(half.texts, five.texts[:, labels])
    chosen = [number for number, label in enumerate(five.test.labels) if label in labels]
    assert half.test.file_names.tolist() == five.test.file_names[chosen].tolist()


@pytest.mark.parametrize(
    ("kept", "shots", "epochs"),
    [
        ([0, 1, 2], None, 50),
        ([0, 1, 2, 3], None, 100),
        ([0, 1, 2, 3, 4], None, 100),
        (range(7), None, 100),
        ([0, 1, 4, 5, 6, 6], None, 200),
        (range(7), 1, 50),
        (range(7), 16, 200),
    ],
)
def test_all_images_take_the_epochs_of_the_largest_class_s_shots(five, shift, kept, shots, epochs):
    dataset = dataclasses.replace(five, train=five.train.subset(kept))
    frozen = Frozen(config_of(shift, "five", epochs=0), dataset)
    training = run.TrainingRun(frozen, dataset, shots, seed=1)
    assert training.epochs == epochs
    assert training.steps == epochs * max(len(kept) // 3, 1)


def test_fewer_steps_than_an_epoch_has_are_one_epoch_cut_short():
    split = Split(np.array([0, 0, 0, 0, 1, 1, 2]), lambda requests, augmented: None)
    stage, options = Stage(epochs=5, batch_size=2, max_steps=2), {"shots": 4, "dataset": "five"}
    assert run.extent(stage, len(split), **options) == (1, 2)
    batches = run.batches(stage, split, seed=1, **options)
    assert batches.order.shape == (2, 2) and batches.rate.shape == (2,)
    assert batches.rate.max() == pytest.approx(stage.optimizer.learning_rate)


@pytest.mark.parametrize(
    ("stage", "epochs", "per_epoch", "steps"),
    [
        (Stage(epochs=5, batch_size=2), 5, 3, 15),
        (Stage(epochs=5, batch_size=2, drop_last=False), 5, 4, 20),
        (Stage(steps_per_shot=5, batch_size=2), 7, 3, 20),
        (Stage(steps_per_shot=3, batch_size=2), 4, 3, 12),
        (Stage(steps_per_shot=1, batch_size=32), 4, 1, 4),
        (Stage(epochs=5, batch_size=2, max_steps=11), 3, 3, 9),
        (Stage(epochs=5, batch_size=2, max_steps=15), 5, 3, 15),
        (Stage(steps_per_shot=5, batch_size=2, max_steps=7), 3, 3, 7),
    ],
)
def test_how_many_epochs_and_steps_a_stage_has(stage, epochs, per_epoch, steps):
    """Of 7 images, 4 of the largest class."""
    split = Split(np.array([0, 0, 0, 0, 1, 1, 2]), lambda requests, augmented: None)
    options = {"shots": 4, "dataset": "five"}
    assert run.extent(stage, len(split), **options) == (epochs, steps)
    batches = run.batches(stage, split, seed=1, **options)
    assert (batches.steps, batches.steps_per_epoch) == (steps, per_epoch)
    assert batches.epoch.tolist() == [step // per_epoch for step in range(steps)]
    assert batches.rate.shape == (steps,) and len(batches.order) == steps
    between = np.diff(np.flatnonzero(np.diff(batches.rate)))
    assert set(between.tolist()) == {per_epoch if stage.steps_per_shot is None else 1}


def test_what_is_said_of_each_result(write_features, shift, tmp_path, caplog):
    """The targets, where there are several."""
    caplog.set_level("INFO", "coop_jax")
    path = write_features(feature_arrays())
    for number, changes in enumerate(({}, {"protocol": "base_to_new", "parts": ("base", "new")})):
        config = config_of(shift, path, **ALONE, **changes)
        rows = protocols.run(config, tmp_path / str(number))[2]
        for row in rows:
            place = f"{row.dataset}, {row.split}: " if changes else ""
            what = f"{shift}, 1 shot, seed 1: {place}"
            if row.prompt is not None:
                what = f"zero-shot CLIP, {place}{row.prompt!r}: "
            wanted = f"{what}{percent(row.accuracy)}"
            assert [line for line in caplog.messages if line.startswith(wanted)], wanted
        caplog.clear()


def test_test_images_are_kept_for_what_takes_the_same_of_the_same(data, tmp_path):
    config = small("coop_few_shot:dtd", data, protocol="base_to_new")
    made = protocols.Experiment(config, tmp_path)
    targets = protocols.base_to_new(made).targets
    methods = [*made.hand_crafted(made.dataset).values(), *made.hand_crafted(made.dataset).values()]
    methods[1].takes = ("unprojected",)
    rows = {}
    for method in methods:
        for target in targets:
            taken = made.test_images(method, target)(np.arange(len(target.dataset.test)))
            (field,) = method.takes
            rows[field, target.part] = made_of = np.asarray(getattr(taken, field))
            assert made_of.shape[:1] == (len(target.dataset.test),)
            assert made.test_images(method, target) is made.test_images(method, target)
    assert len(rows) == 4
    assert not np.array_equal(rows["features", "base"], rows["features", "new"])
