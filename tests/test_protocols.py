"""Every protocol from its config, on a miniature of the official layout, with the embedded CLIP."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from makers import coop_data, image_folder, write_images
from record_presets import small

from coop_jax import images, protocols, results, states
from coop_jax.clip import source
from coop_jax.data import catalog, few_shot, sampling
from coop_jax.errors import InputError
from coop_jax.provenance import digest
from coop_jax.results import find
from coop_jax.saved import Saved


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"))


def run(name, data, workdir, **changes):
    return protocols.run(small(name, data, **changes), workdir)[2]


def places(rows):
    return [(row.dataset, row.split, row.n_classes, row.n_examples) for row in rows]


@pytest.mark.heavy
def test_base_to_new(data, tmp_path):
    rows = run("cocoop_base_to_new:coop,ucf101,class_incremental", data, tmp_path / "run")
    expected = [("ucf101", "base", 2, 10), ("ucf101", "new", 2, 10), ("ucf101", "all", 4, 20)]
    assert places(find(rows, method="zero_shot")) == expected
    learned = find(rows, method="coop")
    assert places(learned) == expected
    assert {row.trained_on for row in learned} == {"ucf101"}
    assert {(row.settings["n_ctx"], row.shots, row.protocol) for row in learned} == {
        (4, 2, "base_to_new")
    }


def test_base_to_new_trains_on_the_base_half_of_the_whole_selection(data, tmp_path):
    config = small("cocoop_base_to_new:coop,oxford_flowers", data)
    experiment = protocols.Experiment(config, tmp_path / "run")
    learning = experiment.run(2, 1, protocols.base_to_new(experiment).part)
    whole = catalog.load("oxford_flowers", data)
    chosen, _ = sampling.few_shot(whole.train.labels, whole.val.labels, 2, 1)
    base = [index for index in chosen if whole.train.labels[index] < 2]
    assert learning.dataset.train.file_names.tolist() == whole.train.file_names[base].tolist()
    assert learning.dataset.classes.names == whole.classes.names[:2]


@pytest.mark.heavy
def test_runs_side_by_side_are_the_runs_one_by_one(data, tmp_path):
    """Seeds and shots; all that a run leaves is the same, whichever ran beside it."""
    runs = {"shots": (1, 2), "seeds": (1, 2)}
    folders = {count: tmp_path / str(count) for count in (1, 3)}
    rows = {
        count: run("coop_few_shot:dtd", data, folder, runs_at_once=count, **runs)
        for count, folder in folders.items()
    }
    for alone, beside in zip(rows[1], rows[3], strict=True):
        assert (alone.method, alone.shots, alone.seed) == (beside.method, beside.shots, beside.seed)
        assert alone.hashes == beside.hashes and alone.accuracy == beside.accuracy
    for shots in runs["shots"]:
        for seed in runs["seeds"]:
            name = f"{shots}_shots_seed_{seed}"
            losses = [
                [json.loads(line)["loss"] for line in path.read_text().splitlines()]
                for path in (folder / "metrics" / f"{name}.jsonl" for folder in folders.values())
            ]
            np.testing.assert_allclose(*losses, rtol=1e-5)
            first, second = (Saved.load(folder / "saved" / name) for folder in folders.values())
            context, other = first.learned["context"], second.learned["context"]
            np.testing.assert_allclose(other, context, rtol=0, atol=1e-5 * np.abs(context).max())
            assert first.training["shots"] == shots and first.classes == second.classes
            digests = first.training["image_digests"]
            assert digests == second.training["image_digests"]
            assert len(digests) == first.training["images"] == shots * len(first.classes)


@pytest.mark.heavy
def test_cross_dataset_and_resuming_a_target(data, tmp_path):
    targets = ("dtd", "fgvc_aircraft")
    rows = run("cocoop_cross_dataset:coop", data, tmp_path / "run", targets=targets)
    learned = find(rows, method="coop")
    assert [row.dataset for row in learned] == ["imagenet", *targets]
    assert {row.trained_on for row in learned} == {"imagenet"}
    assert [row.dataset for row in find(rows, method="zero_shot")] == ["imagenet", *targets]
    path = tmp_path / "run" / results.FILE_NAME
    kept = [line for line in path.read_text().splitlines() if '"dtd"' not in line[:120]]
    assert len(kept) == len(rows) - 2
    path.write_text("\n".join(kept) + "\n")
    again = run("cocoop_cross_dataset:coop", data, tmp_path / "run", targets=targets)
    assert len(again) == len(rows)
    (before,) = find(rows, method="coop", dataset="dtd")
    (after,) = find(again, method="coop", dataset="dtd")
    assert after.accuracy == before.accuracy and after.seconds is None


def test_a_linear_probe_takes_its_rows_to_the_classes_of_a_variant(data, tmp_path):
    rows = run("coop_domain_generalization:linear_probe", data, tmp_path / "run")
    learned = find(rows, method="linear_probe")
    variants = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert [row.dataset for row in learned] == ["imagenet", *variants]
    assert [row.n_classes for row in learned] == [4, 4, 4, 2, 2]
    # The miniature's classes differ in colour alone, which image features show.
    assert min(row.accuracy for row in learned) > 90
    assert {row.epochs for row in learned} == {None}
    again = run("coop_domain_generalization:linear_probe", data, tmp_path / "run")
    assert len(again) == len(rows)


@pytest.mark.heavy
def test_few_shot_with_ensembles_in_float16(data, tmp_path):
    config = small("coop_prompt_ensembling:float16", data, seeds=(1, 2))
    experiment, plan, rows = protocols.run(config, tmp_path / "run")
    prompts = ["a photo of a {}.", "7 ImageNet templates", "80 ImageNet templates"]
    assert [row.prompt for row in find(rows, method="zero_shot")] == prompts
    assert [row.seed for row in find(rows, method="coop")] == [1, 2]
    learning = experiment.run(2, 1, plan.part)
    method, clip = learning.restore(), experiment.frozen.clip
    assert method.context[...].dtype == jnp.float16
    with learning.checkpoints(0) as checkpoints:
        state = checkpoints.ended(states.initial_state(method, clip, learning.stages[0]))
    momentum = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim == 2]
    assert len(momentum) >= 2 and set(momentum) == {jnp.dtype("float16")}
    tower = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip)) if leaf.ndim > 1}
    assert jnp.dtype("float16") in tower


def test_results_say_where_they_come_from(data, tmp_path):
    config = small("linear_probe:eurosat", data)
    _, _, rows = protocols.run(config, tmp_path / "run")
    (learned,) = find(rows, method="linear_probe")
    assert json.loads(json.dumps(config)) == learned.config
    assert {"python", "jax", "flax", "optax", "numpy", "pillow"} <= set(learned.versions)
    (zero_shot,) = find(rows, method="zero_shot")
    assert learned.hashes.split != zero_shot.hashes.split
    assert learned.hashes.data == zero_shot.hashes.data


REFUSALS = [
    ("cocoop_cross_dataset:coop", {"targets": ()}, r"config\.targets: .*got none"),
    ("cocoop_cross_dataset:coop", {"targets": ("imagenet",)}, r"imagenet, .*got imagenet twice"),
    ("cocoop_cross_dataset:coop", {"targets": ("dtd", "dtd")}, r"got dtd twice"),
    ("cocoop_cross_dataset:coop", {"targets": ("dtt",)}, r'got "dtt"'),
    ("cocoop_cross_dataset:coop", {"targets": "dtd"}, r"config\.targets: expected names"),
    ("cocoop_base_to_new:coop,dtd", {"parts": ("old",)}, r"config\.parts: expected some of"),
    ("linear_probe:dtd", {"protocol": "base_to_new"}, r"only classes that were learned"),
    *(
        ("coop_few_shot:dtd", changes, message)
        for changes, message in [
            ({"dataset": "imagenet_a"}, r"has test images alone"),
            ({"dataset": "digit"}, r'got "digit"; choose'),
            ({"protocol": "best"}, r"config\.protocol: expected one of few_shot, base_to_new"),
            ({"sampling": "mine"}, r"config\.sampling: expected one of coop"),
            ({"class_names": "x.txt"}, r"own images alone"),
            ({"clip.name": "RN5"}, r"expected a CLIP, tiny, RN50.* got 'RN5'"),
            ({"clip.name": "foo bar/baz"}, r"expected to fetch foo bar/baz"),
            ({"clip.dtype": "float8"}, r"expected one of float32, bfloat16, float16"),
            ({"shots": (0, 1)}, r"config\.shots: expected different positive whole numbers"),
            ({"shots": (1.5,)}, r"config\.shots: expected different positive whole numbers"),
            ({"augmentation.scale": (2.0, 3.0)}, r"augmentation\.scale: expected the smallest"),
            (
                {"optimizer.learning_rate": -1.0},
                r"a number from 1e-30 to .*, got -1",
            ),
            ({"optimizer.dtype": "float64"}, r"optimizer\.dtype: expected one of float32"),
            ({"templates": (1,)}, r"config\.templates: expected texts, got"),
            ({"templates": ("a photo",)}, r"templates: expected texts with \{\} for the class"),
            ({"method.context_init": "_"}, r"expected at least one context vector, got 0"),
            ({"method.class_token_position": "back"}, r"end, middle, front, got 'back'"),
        ]
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSALS)
def test_what_cannot_run_leaves_nothing_behind(data, tmp_path, name, changes, message):
    config = small(name, data)
    for key, value in changes.items():
        *groups, last = key.split(".")
        functools.reduce(dict.__getitem__, groups, config)[last] = value
    with pytest.raises(InputError, match=message) as error:
        protocols.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_class_specific_contexts_do_not_move_to_new_classes(data, tmp_path):
    config = small("coop_few_shot:dtd,class_specific", data, protocol="base_to_new")
    with pytest.raises(InputError, match=r"learn a shared context"):
        protocols.run(config, tmp_path / "run")


def test_classes_of_equal_name_are_equal_logits_and_the_first_wins(data, tmp_path):
    rows = run("linear_probe:imagenet", data, tmp_path / "run")
    (zero_shot,) = find(rows, method="zero_shot")
    experiment = protocols.Experiment(small("linear_probe:imagenet", data), tmp_path / "other")
    names = experiment.dataset.classes.names
    assert len(set(names)) == len(names) - 1
    (method,) = experiment.hand_crafted(experiment.dataset).values()
    classes = np.asarray(method.texts(experiment.frozen.clip, None))
    first, second = (i for i, name in enumerate(names) if names.count(name) == 2)
    np.testing.assert_allclose(classes[first], classes[second], rtol=1e-6)
    assert zero_shot.n_classes == len(names)


def own_config(folder, data, **changes):
    """Four images per class of an own folder, one epoch."""
    return small("coop_few_shot:dtd", data, dataset=str(folder), **changes)


def test_own_datasets_of_one_name_are_refused(data, tmp_path):
    folders = [image_folder(tmp_path / a / "photos", ("circle", "star"), 2) for a in "ab"]
    config = own_config(folders[0], data, protocol="cross_dataset", targets=(str(folders[1]),))
    with pytest.raises(InputError, match=r"a name of its own, got photos twice; name others"):
        protocols.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "b" / "photos").rename(tmp_path / "b" / "pictures")
    config["targets"] = (str(tmp_path / "b" / "pictures"),)
    experiment = protocols.Experiment(config, tmp_path / "run")
    assert len(protocols.transfer(experiment).targets) == 2


def test_a_linear_probe_needs_validation_images(data, tmp_path):
    folder = image_folder(tmp_path / "photos", ("circle", "star"), 2)
    config = small("linear_probe:dtd", data, dataset=str(folder))
    with pytest.raises(InputError, match=r"validation images, which linear_probe needs, got phot"):
        protocols.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_validation_images_are_said(data, tmp_path, caplog):
    folder = image_folder(tmp_path / "photos", ("circle", "star"), 2)
    write_images(folder, ["val/star/0.jpg"])
    rows = run("linear_probe:dtd", data, tmp_path / "run", dataset=str(folder))
    assert len(find(rows, method="linear_probe")) == 1
    said = [line for line in caplog.messages if "validation image" in line]
    assert said == [
        "2 of 2 classes have fewer validation images than 2: all of them are used"
        " ('circle' 0, 'star' 1)"
    ]


def test_many_short_classes_are_said_in_one_line(tmp_path, caplog):
    names = [f"class_{number}" for number in range(7)]
    folder = image_folder(tmp_path / "photos", names, 2)
    few_shot.warn_about_short_classes(catalog.load(str(folder), tmp_path), 3)
    shown = ", ".join(f"'class {number}' 2" for number in range(5))
    assert caplog.messages == [
        "7 of 7 classes have fewer training images than 3 shots: all of them are used"
        f" ({shown} and 2 more)"
    ]


@pytest.fixture(scope="module")
def experiment(data, tmp_path_factory):
    """DTD's, before it runs."""
    return protocols.Experiment(small("coop_few_shot:dtd", data), tmp_path_factory.mktemp("run"))


def test_the_transform_of_upright_images_is_another(experiment):
    (target,) = protocols.few_shot(experiment).targets
    turned = dataclasses.replace(target.dataset.test, upright=True)
    own = target._replace(dataset=dataclasses.replace(target.dataset, test=turned))
    papers, upright = experiment.hashes(target), experiment.hashes(own)
    settings = experiment.config["augmentation"], *images.pixel_settings(experiment.frozen.clip)
    assert papers.transform == digest([*settings])
    assert upright.transform == digest([*settings, "upright"])
    assert upright.data == papers.data


def test_pixels_of_tfds_are_other_data(data, tmp_path, experiment):
    (target,) = protocols.few_shot(experiment).targets
    original = experiment.hashes(target)
    copied = dataclasses.replace(experiment.dataset, pixels_from="TFDS")
    tested = experiment.hashes(target._replace(dataset=copied))
    assert tested.data != original.data and tested.split != original.split
    other = protocols.Experiment(small("coop_few_shot:dtd", data), tmp_path / "run")
    other.dataset = copied
    assert other.hashes(target).data not in (original.data, tested.data)


def test_tfds_s_own_split_is_named_where_it_was_learned_from(data, tmp_path, monkeypatch):
    load = catalog.load
    monkeypatch.setattr(
        catalog, "load", lambda *given: dataclasses.replace(load(*given), origin="TFDS")
    )
    rows = run("linear_probe:dtd", data, tmp_path / "run")
    assert {(row.trained_on, row.split) for row in rows} == {
        (None, "test of TFDS"),
        ("dtd of TFDS", "test of TFDS"),
    }


def test_openai_s_file_is_recorded_under_its_backbone_s_name(data, tmp_path):
    folder = source.EMBEDDED_FOLDER
    names = {
        "/w/RN50.pt": "RN50",
        "ViT-B-16.pt": "ViT-B/16",
        "~/ViT-L-14-336px.pt": "ViT-L/14@336px",
        "/w/mine.pt": "/w/mine.pt",
        "/w/RN50.safetensors": "/w/RN50.safetensors",
        "tiny": "tiny",
    }
    assert {name: source.backbone(name) for name in names} == names
    experiment = protocols.Experiment(small("coop_few_shot:dtd", data), tmp_path / "run")
    (target,) = protocols.few_shot(experiment).targets
    found = []
    for name, tokenizer in (("RN50", ""), ("/w/RN50.pt", str(folder))):
        chosen = {"name": name, "dtype": "float32", "tokenizer": tokenizer}
        experiment.config = experiment.config | {"clip": chosen}
        assert experiment.backbone == "RN50"
        experiment.frozen.weights_hash = "weights"
        found.append(experiment.hashes(target))
    assert found[0] == found[1]


def test_test_images_are_not_kept(data, tmp_path):
    experiment = protocols.Experiment(small("coop_few_shot:dtd", data), tmp_path / "run")
    (target,) = protocols.few_shot(experiment).targets
    learning = experiment.run(2, 1, "all")
    experiment.test_images(learning.method, target)
    assert not target.dataset.test.cache._images
    val = images.split(learning.encoder, experiment.dataset.val, seed=0)
    val.images()
    assert len(experiment.dataset.val.cache._images) == len(experiment.dataset.val)


def test_cached_features_give_the_same_results(data, tmp_path):
    """The training features of a seed serve every variant of the method, and any batch size."""
    cache = {"feature_cache": str(tmp_path / "features"), "epochs": 2}
    plain = run("coop_few_shot:eurosat,m4", data, tmp_path / "plain", epochs=2)
    made = run("coop_few_shot:eurosat,m4", data, tmp_path / "made", **cache)
    files = sorted((tmp_path / "features").rglob("*.features"))
    assert len(files) == 3  # the test split, and the training images of each epoch
    kept = run("coop_few_shot:eurosat,m4", data, tmp_path / "kept", **cache)
    losses = [
        (tmp_path / name / "metrics" / "2_shots_seed_1.jsonl").read_text()
        for name in ("plain", "made", "kept")
    ]
    assert losses[0] == losses[1] == losses[2]
    assert [row.accuracy for row in plain] == [row.accuracy for row in made]
    assert [row.accuracy for row in kept] == [row.accuracy for row in made]
    run("coop_few_shot:eurosat,m8,middle", data, tmp_path / "variant", **cache)
    run("coop_few_shot:eurosat,m4", data, tmp_path / "batch", **cache, batch_size=3)
    assert sorted((tmp_path / "features").rglob("*.features")) == files
    run("coop_few_shot:eurosat,m4", data, tmp_path / "seed", **{**cache, "seeds": (2,)})
    assert len(sorted((tmp_path / "features").rglob("*.features"))) == 5
