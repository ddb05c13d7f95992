"""CoOp's data folder: the 15 datasets in small, and the official splits."""

import json
import random

import numpy as np
import pytest
import reference
from makers import IMAGENET, SPLIT_FILES, coop_data, flatten

from coop_jax.data import catalog, listing, sampling
from coop_jax.data.official import FEW_SHOT, IMAGENET_VARIANTS, OFFICIAL

PARTS = ("train", "val", "test")
FOUR = {
    **{name: tuple(named.values())[:4] for name, (_, _, named) in SPLIT_FILES.items()},
    "fgvc_aircraft": ("707-320", "Cessna 172", "F/A-18", "Tu-154"),
    **dict.fromkeys(("imagenet", *IMAGENET_VARIANTS), ("tench", "missile", "missile", "banana")),
    **dict.fromkeys(("imagenet_a", "imagenet_r"), ("tench", "missile")),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("coop"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_dataset_is_read_from_its_official_layout(data, name):
    dataset = catalog.load(name, data)
    count = len(FOUR[name])
    assert dataset.name == name
    assert dataset.classes.names == tuple(each.replace("_", " ") for each in FOUR[name])
    assert dataset.templates[0] == OFFICIAL[name].template
    sizes = {"train": 6, "val": 5 if name == "imagenet" else 4, "test": 5}
    for part in PARTS:
        examples = getattr(dataset, part)
        wanted = 0 if name in IMAGENET_VARIANTS and part != "test" else sizes[part]
        assert examples.split == part
        assert examples.labels.dtype == np.int32
        assert np.bincount(examples.labels, minlength=count).tolist() == [wanted] * count
        assert len(set(examples.file_names)) == len(examples)
        for index in range(0, len(examples), 3):
            assert examples.image(index).size == (50, 40)


@pytest.mark.parametrize("name", FEW_SHOT)
def test_images_show_what_their_labels_say(data, name):
    dataset = catalog.load(name, data)
    assert len(dataset.train) == 24
    by_label = {}
    for part in (dataset.train, dataset.test):
        for index, label in enumerate(part.labels.tolist()):
            colour = np.asarray(part.image(index)).mean(axis=(0, 1))
            by_label.setdefault(label, []).append(colour)
    centres = np.array([np.mean(by_label[label], axis=0) for label in range(4)])
    for label, colours in by_label.items():
        distances = np.abs(np.array(colours)[:, None] - centres).sum(axis=-1)
        assert (distances.argmin(axis=1) == label).all()


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_split_s_order_is_kept(data, name):
    dataset = catalog.load(name, data)
    rows = json.loads((data / SPLIT_FILES[name][1]).read_text())
    for part in PARTS:
        examples = getattr(dataset, part)
        assert examples.file_names.tolist() == [row[0] for row in rows[part]]
        assert examples.labels.tolist() == [row[1] for row in rows[part]]
    first_seen = list(dict.fromkeys(dataset.train.labels.tolist()))
    ascending = name not in ("oxford_flowers", "stanford_cars")
    assert (first_seen == sorted(first_seen)) == ascending


def test_aircraft_s_lists_are_read_in_their_order(data):
    dataset = catalog.load("fgvc_aircraft", data)
    lines = (data / "fgvc_aircraft" / "images_variant_val.txt").read_text().splitlines()
    variants = [dataset.classes.names[label] for label in dataset.val.labels]
    names = [path.removeprefix("images/").removesuffix(".jpg") for path in dataset.val.file_names]
    assert [f"{name} {variant}" for name, variant in zip(names, variants, strict=True)] == lines


def test_a_flat_imagenet_validation_folder_has_the_labels_of_the_class_folders(tmp_path):
    coop_data(tmp_path, ["imagenet"])
    sorted_into_classes = catalog.load("imagenet", tmp_path)
    flatten(tmp_path / "imagenet" / "images" / "val")
    (tmp_path / "imagenet" / "images" / "val" / ".cache").mkdir()
    flat = catalog.load("imagenet", tmp_path)
    assert flat.test.labels.tolist() == sorted_into_classes.test.labels.tolist()
    for index in range(len(flat.test)):
        name = flat.test.file_names[index].rsplit("/", 1)[1]
        assert name == sorted_into_classes.test.file_names[index].rsplit("/", 1)[1]
    assert flat.val.file_names.tolist() == flat.test.file_names.tolist()


def test_imagenet_s_repeated_names_stay_two_classes(data):
    for name in ("imagenet", "imagenetv2", "imagenet_sketch"):
        dataset = catalog.load(name, data)
        assert dataset.classes.names.count("missile") == 2
        assert "missile" in dataset.classes.repeated
        assert sorted(set(dataset.test.labels.tolist())) == [0, 1, 2, 3]
    labels = dict(enumerate(sorted(list(IMAGENET)[:4])))
    for part in ("train", "test"):
        examples = getattr(catalog.load("imagenet", data), part)
        for label, path in zip(examples.labels.tolist(), examples.file_names, strict=True):
            assert f"/{labels[label]}/" in path


def by_the_official_rule(rows, shots, seed):
    """The official code's few-shot selection of a split's rows (protocol 2.2)."""
    random.seed(seed)
    chosen = {}
    for part, wanted in (("train", shots), ("val", min(shots, 4))):
        groups = {}
        for row in rows[part]:
            groups.setdefault(row[1], []).append(row)
        chosen[part] = [
            row
            for group in groups.values()
            for row in (random.sample(group, wanted) if len(group) >= wanted else group)
        ]
    return chosen


@pytest.mark.parametrize("name", ["oxford_flowers", "stanford_cars", "eurosat"])
@pytest.mark.parametrize("shots", [1, 4, 16])
def test_few_shot_selections_are_those_of_the_official_code(data, name, shots):
    dataset = catalog.load(name, data)
    rows = json.loads((data / SPLIT_FILES[name][1]).read_text())
    for seed in (1, 2):
        chosen = sampling.few_shot(dataset.train.labels, dataset.val.labels, shots, seed)
        wanted = by_the_official_rule(rows, shots, seed)
        for part, indices in zip(("train", "val"), chosen, strict=True):
            examples = getattr(dataset, part).subset(indices)
            assert examples.file_names.tolist() == [row[0] for row in wanted[part]]


# The official split files.


def official_splits():
    """Each official split there is: the catalogue's name, the file, its facts and its dataset."""
    facts = json.loads(reference.path("reference/datasets.json").read_text())["datasets"]
    names = {fact["split_file"]: name for name, fact in facts.items()}
    paths = sorted(reference.path("coop_splits").glob("split_zhou_*.json"))
    if not paths:
        pytest.skip("no official splits")
    for path in paths:
        name = names[path.name]
        read = listing.read_split_file(path, path.parent)
        # No image is there, and none is needed.
        dataset = catalog.open_listing(name, read, ("{}",), data_dir=path.parent)
        yield name, path, facts[name], dataset


def test_official_splits_have_the_published_sizes():
    for name, path, facts, dataset in official_splits():
        sizes = tuple(len(getattr(dataset, part)) for part in PARTS)
        assert sizes == OFFICIAL[name].sizes == tuple(facts["sizes"][part] for part in PARTS), name
        assert len(dataset.classes.names) == OFFICIAL[name].n_classes == facts["num_classes"]
        rows = json.loads(path.read_text())
        for part in PARTS:
            examples = getattr(dataset, part)
            for index in range(0, len(examples), 97):
                file_name, label, class_name = rows[part][index]
                assert (examples.file_names[index], examples.labels[index]) == (file_name, label)
                assert dataset.classes.names[label] == class_name.replace("_", " ")


def test_official_splits_have_the_published_halves():
    for name, _, facts, dataset in official_splits():
        wanted = facts["base_new"]
        for part in ("base", "new"):
            half = dataset.half(part)
            assert len(half.classes.names) == wanted[f"{part}_classes"], name
            assert len(half.test) == wanted[f"{part}_test"], name
            assert sorted(set(half.train.labels.tolist())) == list(range(len(half.classes.names)))
        assert wanted["base_classes"] - wanted["new_classes"] == len(dataset.classes.names) % 2
        names = dataset.half("base").classes.names + dataset.half("new").classes.names
        assert names == dataset.classes.names
        assert dataset.half("all").test.labels.tolist() == dataset.test.labels.tolist()


def test_shots_are_chosen_before_the_classes_are_halved():
    for name, path, _, dataset in official_splits():
        rows = by_the_official_rule(json.loads(path.read_text()), 4, seed=2)
        indices = sampling.few_shot(dataset.train.labels, dataset.val.labels, 4, seed=2)
        chosen = catalog.Dataset(
            name,
            dataset.classes,
            ("{}",),
            dataset.train.subset(indices[0]),
            dataset.val.subset(indices[1]),
            dataset.test,
        )
        middle = -(-len(dataset.classes.names) // 2)
        for half, first, last in (("base", 0, middle), ("new", middle, len(dataset.classes.names))):
            for part in ("train", "val"):
                examples = getattr(chosen.half(half), part)
                wanted = [row for row in rows[part] if first <= row[1] < last]
                assert examples.file_names.tolist() == [row[0] for row in wanted], name
                assert examples.labels.tolist() == [row[1] - first for row in wanted], name
