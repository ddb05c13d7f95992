"""Prompts know which images they were learned from."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from makers import refusal, write_images
from PIL import Image

from coop_jax import Classifier
from coop_jax.__main__ import main
from coop_jax.data import catalog, memory
from coop_jax.saved import Saved, hub, seen

PROBE = {"clip": "tiny", "method": "linear_probe", "shots": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random images of two classes, as {train,val,test}/<class>/*.png."""
    paths = [
        f"{split}/{name}/{number}.png"
        for split in ("train", "val", "test")
        for name in ("cat", "dog")
        for number in range(4)
    ]
    return write_images(tmp_path_factory.mktemp("data") / "own", paths)


@pytest.fixture(scope="module")
def probe(folder):
    """A classifier in closed form, which learns from two validation images per class, too."""
    return Classifier(**PROBE).fit(folder)


def digests(paths):
    return {hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def test_a_record_has_the_digests_of_what_was_learned_from(folder, probe, tmp_path):
    probe.save(tmp_path / "mine")
    record = json.loads((tmp_path / "mine" / "method.json").read_text())
    found = record["training"]["image_digests"]
    assert found == sorted(set(found)) and len(found) == 8
    for split in ("train", "val"):
        assert len(set(found) & digests((folder / split).glob("*/*.png"))) == 4
    assert not set(found) & digests((folder / "test").glob("*/*.png"))
    assert found[0] not in hub.model_card(record, "user/name")
    assert Saved.load(tmp_path / "mine").training["image_digests"] == found


def test_what_was_not_learned_from_is_not_known(folder):
    unlearned = Classifier("tiny", method="zero_shot").fit(folder)
    assert unlearned.training_["image_digests"] == []
    dataset = catalog.load(str(folder))
    for record in ({}, {"image_digests": []}):
        assert not seen.among(record, dataset.train).any()
    for wrong in ("abc", [1], {"a": 1}):
        assert "expected a list of digests" in refusal(
            seen.among, {"image_digests": wrong}, dataset.train
        )


def test_files_copies_and_prepared_copies_are_known(folder, probe, tmp_path):
    known = digests((folder / "train").glob("*/*.png")) & {*probe.training_["image_digests"]}
    dataset = catalog.load(str(folder))
    paths = [folder / name for name in dataset.train.file_names]
    expected = [next(iter(digests([path]))) in known for path in paths]
    assert sum(expected) == 4
    main(["prepare", str(folder), f"--data-dir={tmp_path}"])
    prepared = catalog.load(str(folder), tmp_path)
    assert "prepared copy" in prepared.place
    renamed = [shutil.copy(path, tmp_path / f"{n}.jpg") for n, path in enumerate(paths)]
    for examples in (
        dataset.train,
        prepared.train,
        memory.examples(paths, split="test"),
        memory.examples(renamed, split="test"),
    ):
        assert seen.among(probe.training_, examples).tolist() == expected
    gone = memory.examples([*paths, tmp_path / "gone.png"], split="test")
    assert seen.among(probe.training_, gone).tolist() == [*expected, False]


def test_pixels_in_memory_are_known_as_such():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    record = {"image_digests": seen.digests(memory.examples(pixels[:3], split="train"))}
    for given in (pixels, images):
        found = seen.among(record, memory.examples(given, split="test"))
        assert found.tolist() == [True] * 3 + [False] * 3


def test_score_leaves_out_what_was_learned_from(folder, probe, tmp_path, caplog):
    expected = probe.score(folder)
    assert caplog.messages == []
    root = shutil.copytree(folder, tmp_path / "own")
    for number, path in enumerate(sorted(root.glob("train/*/*.png"))):
        shutil.copy(path, root / "test" / path.parent.name / f"{number}_again.png")
    caplog.clear()
    dataset = catalog.load(str(root))
    used = seen.among(probe.training_, dataset.test)
    assert (used.sum(), len(used)) == (4, 16)
    right = probe.predict([root / name for name in dataset.test.file_names])
    right = right == np.array(dataset.classes.names)[dataset.test.labels]
    assert probe.score(root) == probe.score(dataset) == right[~used].mean()
    assert caplog.messages == ["4 of 16 test images were used to learn this; they are left out"] * 2
    weights = np.arange(16.0)
    weighted = np.average(right[~used], weights=weights[~used])
    assert probe.score(root, sample_weight=weights) == pytest.approx(weighted)
    assert "not all zero" in refusal(probe.score, root, sample_weight=used.astype(float))
    assert expected == probe.score(folder)


def test_of_images_that_are_given_all_count_and_that_is_said(folder, probe, caplog):
    paths = sorted((folder / "train").glob("*/*.png"))
    labels = [path.parent.name for path in paths]
    expected = (probe.predict(paths) == np.array(labels)).mean()
    caplog.clear()
    assert probe.score(paths, labels) == expected
    assert caplog.messages == [
        "4 of 8 test images were used to learn this; they are counted all the same"
    ]


def test_a_test_split_of_training_images_alone_is_refused(folder, probe, tmp_path):
    names = seen.among(probe.training_, catalog.load(str(folder)).train)
    dataset = catalog.load(str(folder))
    for name in dataset.train.file_names[names]:
        for split in ("train", "test"):
            target = tmp_path / "own" / split / name.removeprefix("train/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, target)
    message = refusal(probe.score, tmp_path / "own")
    assert "test images that this was not learned from, got 4, all of which were" in message
