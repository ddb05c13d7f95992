"""Copies of image files in shards, and what TFDS is asked to download."""

import errno
import functools
import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from makers import coop_data, image_folder

from coop_jax.__main__ import main
from coop_jax.data import catalog, copies, prepare
from coop_jax.data.listing import SPLITS
from coop_jax.data.official import OFFICIAL
from coop_jax.errors import InputError


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of a few images."""
    monkeypatch.setattr(copies, "plan", functools.partial(copies.plan, limit=10_000))


def assert_same(one, other):
    """The datasets have the same classes and, in the same order, the same images."""
    assert one.classes.names == other.classes.names
    for split in SPLITS:
        ours, theirs = getattr(one, split), getattr(other, split)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.file_names, theirs.file_names)
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        for place in range(len(ours)):
            assert ours.source[place]["image"] == theirs.source[place]["image"]
        if len(ours):
            assert ours.image(len(ours) - 1).tobytes() == theirs.image(len(ours) - 1).tobytes()


def prepared(data_dir):
    return list((data_dir / "prepared").glob("*/1.0.0"))


@pytest.mark.parametrize("name", OFFICIAL)
def test_examples_are_the_same_from_a_copy(name, tmp_path, small_shards):
    coop_data(tmp_path, [name])
    before = catalog.load(name, tmp_path)
    assert before.place.startswith("folder ")
    assert main(["prepare", name, f"--data-dir={tmp_path}", "--workers=3"]) == 0
    after = catalog.load(name, tmp_path)
    (copy,) = prepared(tmp_path)
    assert after.place == f"prepared copy {copy}"
    assert_same(before, after)
    assert len(list(copy.glob("*.array_record-*"))) > len(SPLITS) or not len(after.train)


def test_tfds_reads_a_copy(tmp_path):
    coop_data(tmp_path, ["imagenet"])
    assert main(["prepare", "imagenet", f"--data-dir={tmp_path}"]) == 0
    (copy,) = prepared(tmp_path)
    builder = tfds.builder_from_directory(copy)
    dataset = catalog.load("imagenet", tmp_path)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": len(dataset.train),
        "val": len(dataset.test),
    }
    decoders = {"image": tfds.decode.SkipDecoding()}
    record = builder.as_data_source("val", decoders=decoders)[0]
    assert record["file_name"].decode() == dataset.test.file_names[0]
    assert record["label"] == dataset.test.labels[0]
    names = builder.info.features["label"].names
    assert [name for name in names if "missile" in name] == ["missile (1)", "missile (2)"]


@pytest.mark.parametrize("form", ("folder", "csv", "json"))
def test_own_images_may_be_copied(form, tmp_path, capsys):
    root = image_folder(tmp_path / "my images", ["cat", "dog"], 3)
    path, names = root, tmp_path / "names.txt"
    paths = sorted(p.relative_to(tmp_path) for p in root.rglob("*.jpg"))
    rows = [(str(p), int(p.parts[2] == "dog"), p.parts[2], p.parts[1]) for p in paths]
    names.write_text("cat a small cat\ndog a big dog\n")
    if form == "csv":
        path = tmp_path / "table.csv"
        lines = ["path,label,split", *(f"{p},{name},{split}" for p, _, name, split in rows)]
        path.write_text("\n".join(lines))
    if form == "json":
        path = tmp_path / "split.json"
        lists = {s: [row[:3] for row in rows if row[3] == s] for s in ("train", "test")}
        path.write_text(json.dumps(lists))
        names.write_text("0 a small cat\n1 a big dog\n")
    data_dir = tmp_path / "data"
    before = catalog.load(str(path), data_dir, names)
    flags = [f"--data-dir={data_dir}", f"--class-names={names}"]
    assert main(["prepare", str(path), *flags]) == 0
    (copy,) = prepared(data_dir)
    assert capsys.readouterr().out == f"{path}: prepared copy {copy}\n"
    after = catalog.load(str(path), data_dir, names)
    assert after.place == f"prepared copy {copy}"
    assert_same(before, after)
    assert catalog.load(str(path), data_dir).place == f"folder {before.place[len('folder ') :]}"


def test_a_changed_folder_is_not_taken_for_its_copy(tmp_path):
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 3)
    main(["prepare", str(root), f"--data-dir={tmp_path}"])
    assert catalog.load(str(root), tmp_path).place.startswith("prepared copy")
    image = root / "train" / "cat" / "0.jpg"
    before = image.stat()
    shutil.copy(root / "train" / "dog" / "0.jpg", image)
    changed = catalog.load(str(root), tmp_path)
    assert changed.place == f"folder {root}"
    assert changed.train.source[0]["image"] == image.read_bytes()
    main(["prepare", str(root), f"--data-dir={tmp_path}"])
    assert len(prepared(tmp_path)) == 2
    assert_same(changed, catalog.load(str(root), tmp_path))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert catalog.load(str(root), tmp_path).place == f"folder {root}"


def test_files_are_looked_at_only_where_there_is_a_copy(tmp_path, monkeypatch):
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 3)
    monkeypatch.setattr(copies, "file_states", None)
    assert catalog.load(str(root), tmp_path).place == f"folder {root}"


def test_an_interrupted_copy_is_not_used_and_goes_on(tmp_path, small_shards):
    coop_data(tmp_path, ["dtd"])
    row = OFFICIAL["dtd"]
    listing = row.layout(tmp_path / row.folder)
    done = []

    def stop_after_30(images):
        done.append(images)
        if sum(done) > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copies.write("dtd", listing, tmp_path, 1, stop_after_30)
    assert not prepared(tmp_path)
    assert catalog.load("dtd", tmp_path).place.startswith("folder")
    shards = list((tmp_path / "prepared").glob("*/unfinished/*.array_record-?????-of-?????"))
    times = {path.name: path.stat().st_mtime_ns for path in shards}
    assert len(times) >= 3
    again = []
    copy = copies.write("dtd", listing, tmp_path, 2, again.append)
    assert sum(again) == copies.count(listing) == 60
    assert times == {name: (copy / name).stat().st_mtime_ns for name in times}
    assert not list(copy.glob("*unfinished*"))
    assert catalog.load("dtd", tmp_path).place == f"prepared copy {copy}"
    third = []
    assert copies.write("dtd", listing, tmp_path, 2, third.append) == copy
    assert third == [60]


def test_shards_have_about_the_wanted_size():
    shards = copies.plan("train", np.array([40, 40, 40, 200, 10, 10, 0, 90]), limit=100)
    assert [(shard.start, shard.stop) for shard in shards] == [(0, 2), (2, 3), (3, 7), (7, 8)]
    assert shards[1].file_name == "images-train.array_record-00001-of-00004"
    assert copies.plan("train", np.zeros(3, int), limit=100)[0].stop == 3


def test_a_file_that_went_away_is_named(tmp_path, capsys, monkeypatch):
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 3)
    listing = catalog.own_listing(str(root))[1]
    (root / "test" / "dog" / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"expected an image file .*dog/1\.jpg, got an error"):
        copies.write("pets", listing, tmp_path, 2)


def test_a_data_directory_that_cannot_be_written_is_said(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 3)
    (tmp_path / "file").write_text("")
    assert main(["prepare", str(root), f"--data-dir={tmp_path / 'file'}"]) == 2
    assert "expected to write copies of images to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (["dtd", "nothing"], 'or the path of a folder, .csv, .json or .npz, got "nothing"'),
        (["dtd", "--workers=0"], "--workers: expected a whole number of at least 1, got '0'"),
        (["dtd", "--class-names=names.txt"], "--class-names: expected own images alone, got dtd"),
        (["ucf101"], "TFDS has no images of it that would do"),
        (["fgvc_aircraft"], "TFDS has no images of it that would do"),
    ),
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys):
    assert main(["prepare", *arguments, f"--data-dir={tmp_path}"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert message in output.err


def test_without_tensorflow_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["prepare", "dtd", f"--data-dir={tmp_path}"]) == 2
    assert "run `pip install 'coop_jax[prepare]'`" in capsys.readouterr().err


CATALOGUED = [name for name, row in OFFICIAL.items() if row.tfds]


@pytest.mark.parametrize("name", CATALOGUED)
def test_tfds_is_asked_for_the_dataset_of_the_table(name, tmp_path, capsys, monkeypatch):
    row = OFFICIAL[name].tfds
    builder = tfds.builder
    asked = []

    def spy(request, *, data_dir):
        made = builder(request, data_dir=data_dir)
        assert made.data_path == tmp_path / row.folder

        def download_and_prepare(*, download_config, file_format):
            asked.append((request, file_format))
            raise AssertionError("Manual directory\n does not exist")

        monkeypatch.setattr(made, "download_and_prepare", download_and_prepare)
        return made

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(prepare.tfds, "builder", spy)
    assert main(["prepare", name, f"--data-dir={tmp_path}"]) == 2
    assert asked == [(f"{row.name}:{row.version}", "array_record")]
    error = capsys.readouterr().err
    assert "got AssertionError: Manual directory does not exist; see" in error


def test_a_full_disk_is_no_error_of_the_user_s(tmp_path, capsys, monkeypatch):
    class Full:
        def download_and_prepare(self, **options):
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")
            except OSError as error:
                raise RuntimeError("TFDS says more") from error

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(prepare.tfds, "builder", lambda *_, **options: Full())
    assert main(["prepare", "dtd", f"--data-dir={tmp_path}"]) == 1
    said = "error: expected to write dtd:3.0.1, got No space left on device (shard); make room"
    assert capsys.readouterr().err.startswith(said)


def test_the_digits_are_made(tmp_path, capsys):
    assert main(["prepare", "digits", f"--data-dir={tmp_path}"]) == 0
    assert capsys.readouterr().out == f"digits: TFDS copy {tmp_path / 'digits' / '1.0.0'}\n"
