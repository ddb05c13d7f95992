"""The dataset doctor on small datasets, whole and damaged."""

import dataclasses
import json
import subprocess

import pytest
from makers import coop_data, image_folder, write_images
from reference import FOLDER

from coop_jax.__main__ import main
from coop_jax.data import catalog, class_names, doctor
from coop_jax.data.official import OFFICIAL


@pytest.fixture
def textures(tmp_path, monkeypatch):
    """DTD with all its classes and one image each per split, which the table expects."""
    names = class_names.shipped("dtd")
    rows = {
        split: [[f"{name}/{name}_{split}.jpg", k, name] for k, name in enumerate(names)]
        for split in ("train", "val", "test")
    }
    write_images(tmp_path / "dtd" / "images", [row[0] for part in rows.values() for row in part])
    rewrite(tmp_path, monkeypatch, rows)
    return rows


def rewrite(data_dir, monkeypatch, rows):
    """Write DTD's split, and let the table know its hash."""
    row = OFFICIAL["dtd"]
    path = data_dir / "dtd" / row.split_file.name
    path.write_text(json.dumps(rows))
    split_file = dataclasses.replace(row.split_file, git_hash=doctor.git_hash(path))
    known = dataclasses.replace(row, sizes=(47, 47, 47), split_file=split_file)
    monkeypatch.setitem(OFFICIAL, "dtd", known)


def run(capsys, *arguments):
    """The exit code and what was printed."""
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_all_is_well(textures, tmp_path, capsys):
    code, printed = run(capsys, "dtd", f"--data-dir={tmp_path}")
    assert code == 0
    assert f"dtd in folder {tmp_path / 'dtd' / 'images'}" in printed
    assert "split_zhou_DescribableTextures.json is CoOp's" in printed
    assert "the 47 class names are CoOp's" in printed
    assert "all 141 images can be read" in printed
    assert "problem" not in printed and "\x1b" not in printed
    assert run(capsys, "dtd", "--quick", f"--data-dir={tmp_path}")[0] == 0
    main(["prepare", "dtd", f"--data-dir={tmp_path}"])
    code, printed = run(capsys, "dtd", f"--data-dir={tmp_path}")
    assert code == 0 and "dtd in prepared copy" in printed


def test_broken_and_missing_images_are_named(textures, tmp_path, capsys):
    images = tmp_path / "dtd" / "images"
    broken = [row[0] for row in textures["train"][:22]]
    for path in broken:
        (images / path).write_bytes((images / path).read_bytes()[:400])
    missing = [row[0] for row in textures["test"][:23]]
    for path in missing:
        (images / path).unlink()
    code, printed = run(capsys, "dtd", f"--data-dir={tmp_path}")
    assert code == 1
    assert f"23 of 141 images are missing: {', '.join(missing[:20])} and 3 more; restore" in printed
    assert "22 of 141 images cannot be read" in printed
    lines = [line for line in printed.splitlines() if "expected a readable image" in line]
    assert len(lines) == 20
    for path, line in zip(broken[:20], lines, strict=True):
        assert path in line and line.endswith("replace the file")
    code, printed = run(capsys, "dtd", "--quick", f"--data-dir={tmp_path}")
    assert code == 1 and "cannot be read" not in printed and "missing" in printed


def test_another_count_and_class_name_are_shown(textures, tmp_path, capsys, monkeypatch):
    for rows in textures.values():
        rows[3][2] = "bubbles"
    del textures["val"][-1]
    path = tmp_path / "dtd" / OFFICIAL["dtd"].split_file.name
    path.write_text(json.dumps(textures))
    code, printed = run(capsys, "dtd", f"--data-dir={tmp_path}")
    assert code == 1
    assert "expected images: 47 in val, got 46;" in printed
    assert "expected CoOp's class names, got label 3: 'bubbles' for 'bubbly'; restore" in printed
    assert f"{path}: expected CoOp's file (git hash " in printed
    rewrite(tmp_path, monkeypatch, textures)
    assert "expected CoOp's file" not in run(capsys, "dtd", f"--data-dir={tmp_path}")[1]


def test_another_number_of_classes_is_shown(tmp_path, capsys):
    coop_data(tmp_path, ["imagenet_r", "imagenet"])
    code, printed = run(capsys, "imagenet_r", f"--data-dir={tmp_path}", "--quick")
    assert code == 1
    assert "expected 200 classes, got 2" in printed
    assert "the 2 class names are CoOp's" in printed
    code, printed = run(capsys, "imagenet", f"--data-dir={tmp_path}")
    assert "all 44 images can be read" in printed
    assert "expected 1000 classes, got 4" in printed
    assert "label 1: 'missile' for 'goldfish'" in printed


def test_a_dataset_that_cannot_be_opened_does_not_end_the_check(textures, tmp_path, capsys):
    code, printed = run(capsys, "all", f"--data-dir={tmp_path}")
    assert code == 1
    assert "all 141 images can be read" in printed
    for name in OFFICIAL:
        assert (f"expected {name} in {tmp_path}" in printed) == (name != "dtd")
    assert printed.rstrip().endswith("imagenet_sketch, imagenet_a, imagenet_r")
    (tmp_path / "dtd" / OFFICIAL["dtd"].split_file.name).unlink()
    code, printed = run(capsys, "dtd", "digits", f"--data-dir={tmp_path}")
    assert code == 1
    assert "problem: expected the official split" in printed
    assert "all 1797 images can be read" in printed
    assert printed.rstrip().endswith("problems in dtd")


def test_own_images_are_checked(tmp_path, capsys):
    root = image_folder(tmp_path / "pets", ["cat", "dog"], 3)
    code, printed = run(capsys, root, f"--data-dir={tmp_path}")
    assert code == 0 and "all 12 images can be read" in printed
    assert "expected" not in printed
    (root / "test" / "dog" / "1.jpg").write_text("no image")
    code, printed = run(capsys, root, f"--data-dir={tmp_path}")
    assert code == 1 and "1 of 12 images cannot be read" in printed


def test_an_unknown_name_is_bad_input(tmp_path, capsys):
    assert main(["check", "nothing", f"--data-dir={tmp_path}"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: expected a dataset's name")


def test_tfds_s_own_split_and_what_it_leaves_out_are_notes(textures, tmp_path, monkeypatch):
    dataset = catalog.load("dtd", tmp_path)
    row = OFFICIAL["dtd"]
    tfds_row = dataclasses.replace(row.tfds, allow_missing=2)
    known = dataclasses.replace(row, sizes=(47, 47, 49), tfds=tfds_row)
    monkeypatch.setitem(OFFICIAL, "dtd", known)
    for place, origin, wanted in (
        ("TFDS copy x", "", "TFDS left out 2 broken images"),
        ("TFDS copy x", "TFDS", "the split is that of TFDS"),
    ):
        found = dataclasses.replace(dataset, place=place, origin=origin)
        monkeypatch.setattr(doctor, "_open", lambda *_, found=found: found)
        findings = doctor.examine("dtd", tmp_path)
        assert not findings.problems
        assert any(wanted in note for note in findings.notes)


def test_hashes_are_git_s(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some\r\ntext")
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, text=True, check=True
    )
    assert doctor.git_hash(path) == git.stdout.strip()
    for row in OFFICIAL.values():
        official = row.split_file and FOLDER / "coop_splits" / row.split_file.name
        if official and official.is_file():
            assert doctor.git_hash(official) == row.split_file.git_hash
