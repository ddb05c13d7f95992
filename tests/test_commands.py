"""The command family as its users type it: what is said, what is written, and how it ends."""

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from makers import coop_data, openai_tensors, write_image
from PIL import Image
from safetensors.numpy import save_file

from coop_jax import Classifier, config, experiment
from coop_jax.__main__ import main
from coop_jax.clip import source
from coop_jax.data import catalog
from coop_jax.saved import Saved, use

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
FIT = ("--clip=tiny", "--shots=all", "--epochs=40", "--learning-rate=0.02", "--set", "n_ctx=4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of three colours, as {train,test}/<class>/*.png."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 4)):
        for name, colour in COLOURS.items():
            for number in range(count):
                write_image(root / split / name / f"{number}.png", rng, colour)
    return root


class Terminal(io.StringIO):
    """What says that it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    """A prompt that knows the colours, and what a terminal has shown of its making."""
    folder, shown = tmp_path_factory.mktemp("prompts") / "mine", Terminal()
    with contextlib.redirect_stdout(shown):
        assert main(["fit", str(data), str(folder), *FIT, "--seed=2"]) == 0
    return folder, shown.getvalue().splitlines()


@pytest.fixture(scope="module")
def mine(fitted):
    return fitted[0]


def test_other_commands_get_their_arguments(run, refused, tmp_path):
    coop_data(tmp_path, ["dtd"])
    code, out, _ = run("check", "dtd", "--quick", "--data-dir", tmp_path)
    assert code == 1 and any("dtd" in line for line in out)
    assert "absent" in refused("report", tmp_path / "absent")
    assert "absent" in refused("prepare", tmp_path / "absent")
    assert "absent" in refused("sweep", "absent.py", f"--workdir={tmp_path / 'sweep'}")
    assert "--workdir" in refused("run", "--config=quickstart")


def test_fit_says_how_good_it_is_and_what_comes_next(data, fitted):
    folder, shown = fitted
    score = Classifier.load(folder).score(data)
    assert shown[:3] == [
        f"saved {folder}: coop, 3 classes",
        f"accuracy on the test images: {100 * score:.1f} %",
        "",
    ]
    assert f"coop_jax predict {folder}" in shown[3] and score > 0.5
    learned = Saved.load(folder)
    record = learned.training
    assert (learned.backbone, learned.settings["n_ctx"]) == ("tiny", 4)
    assert (record["shots"], record["images"], record["seed"], record["epochs"]) == (None, 9, 2, 40)
    assert record["optimizer"]["learning_rate"] == 0.02


def test_fit_refuses_before_it_learns(data, mine, tmp_path, refused, monkeypatch):
    assert "holds something" in refused("fit", data, mine, *FIT)
    new, file = tmp_path / "new", data / "test" / "red" / "0.png"
    monkeypatch.setattr("coop_jax.learner.learn", None)
    assert "is a file" in refused("fit", data, file / "new", *FIT)
    assert "too long" in refused("fit", data, tmp_path / ("a" * 300), *FIT)
    assert "too long" in refused("fit", "a" * 300, new, *FIT)
    assert "at most 77 tokens" in refused("fit", data, new, *FIT, "--set", "n_ctx=1000")
    assert "KEY=VALUE" in refused("fit", data, new, *FIT, "--set", "n_ctx")
    assert "n_ctx" in refused("fit", data, new, *FIT, "--set", "nctx=4")
    assert "n_ctx as int" in refused("fit", data, new, *FIT, "--set", "n_ctx=four")
    assert "class_specific as bool" in refused("fit", data, new, *FIT, "--set", "class_specific=1")
    assert "cop" in refused("fit", data, new, *FIT, "--method", "cop")
    monkeypatch.undo()
    assert not new.exists()
    assert "--shots" in refused("fit", data, new, "--shots", "few")


def test_fit_saves_what_it_learned_whatever_the_test_images_are(data, run, tmp_path):
    broken = data / "test" / "red" / "broken.png"
    broken.write_text("no image")
    try:
        code, out, err = run("fit", data, tmp_path / "new", *FIT, "--epochs=1")
    finally:
        broken.unlink()
    assert code == 1 and out[0] == f"saved {tmp_path / 'new'}: coop, 3 classes"
    score = Classifier.load(tmp_path / "new").score(data)
    assert out[1:] == [f"accuracy on the test images: {100 * score:.1f} %"]
    assert "test/red/broken.png" in err[-2] and err[-1] == "1 of 13 images could not be read"


def test_a_file_name_may_be_any_bytes(data, mine, tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")
    shutil.copy(data / "test" / "red" / "0.png", name)
    written, (table, numbers) = io.BytesIO(), (tmp_path / "p.csv", tmp_path / "p.json")
    with contextlib.redirect_stdout(io.TextIOWrapper(written, encoding="utf-8")) as shown:
        code = main(["predict", str(mine), name, f"--csv={table}", f"--json={numbers}"])
        shown.flush()
        assert code == 0 and written.getvalue().startswith(os.fsencode(name) + b"\t")
    assert "caf\\udce9.png,1," in table.read_text(encoding="utf-8")
    assert json.loads(numbers.read_bytes())[0]["path"] == name


def test_a_result_is_shown_though_it_cannot_be_saved(data, mine, run, tmp_path, monkeypatch):
    """All files are written, or none; and the work is not lost."""
    image, files = data / "test" / "red" / "0.png", (tmp_path / "p.csv", tmp_path / "p.json")
    replace = Path.replace

    def fail(path, target):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "replace", fail)
    for words in (("predict", mine, image), ("evaluate", mine, data)):
        code, out, err = run(*words, "--csv", files[0], "--json", files[1])
        assert code == 1 and out and "no space left" in err[0]
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "replace", replace)


def test_predict_prints_lines_for_other_programs(data, mine, run):
    code, out, err = run("predict", mine, data / "test")
    assert (code, err) == (0, [])
    paths = sorted((data / "test").glob("*/*.png"))
    expected = Classifier.load(mine).predict_proba(paths)
    rows = [line.split("\t") for line in out]
    assert [row[0] for row in rows] == list(map(str, paths))
    assert [row[1] for row in rows] == [list(COLOURS)[row.argmax()] for row in expected]
    np.testing.assert_allclose([float(row[2]) for row in rows], expected.max(axis=1), atol=1e-5)


def test_predict_finds_files_folders_and_patterns_once(data, mine, run, tmp_path, monkeypatch):
    names = ("b/[1].JPG", "b/c/2.png", "a.jpeg", ".hidden/3.png", "b/.4.png")
    for name in names:
        write_image(tmp_path / name, np.random.default_rng(0))
    (tmp_path / "b" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("predict", mine, "a.jpeg", ".", "b/[[]1].*", "b/[1].JPG", "b/?")
    assert code == 0
    found = [line.split("\t")[0] for line in out]
    assert found == ["a.jpeg", "./a.jpeg", "./b/[1].JPG", "./b/c/2.png", "b/[1].JPG", "b/c/2.png"]


def test_predict_does_the_rest_and_saves_it(data, mine, run, refused, tmp_path):
    broken, files = data / "test" / "red" / "broken.jpg", (tmp_path / "p.csv", tmp_path / "p.json")
    options = ("--top", "2", "--csv", files[0], "--json", files[1])
    broken.write_text("no image")
    try:
        code, out, err = run("predict", mine, data / "test" / "red", *options)
    finally:
        broken.unlink()
    assert code == 1 and len(out) == 8
    assert "broken.jpg" in err[0] and err[1:] == ["1 of 5 images could not be read"]
    rows = list(csv.DictReader(files[0].read_text().splitlines()))
    images = json.loads(files[1].read_text())
    assert [row["rank"] for row in rows] == ["1", "2"] * 4
    assert images.pop() == {"path": str(broken), "error": err[0]}
    flat = [(image["path"], *found.values()) for image in images for found in image["classes"]]
    assert flat == [(row["path"], row["class"], float(row["probability"])) for row in rows]
    before = [file.read_bytes() for file in files]
    for option in (("--csv", files[0]), ("--json", files[1])):
        assert "new file" in refused("predict", mine, data / "test", *option)
    assert "folder" in refused("predict", mine, data, "--csv", tmp_path / "absent" / "p.csv")
    twice = ("--csv", tmp_path / "new", "--json", tmp_path / "new")
    assert "twice" in refused("predict", mine, data, *twice)
    assert "twice" in refused("evaluate", mine, data, *twice)
    assert [file.read_bytes() for file in files] == before


def test_predict_shows_a_table_on_a_terminal(data, mine, run, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.chdir(data)
    code, out, _ = run("predict", mine, "test/blue/0.png", "--top", "3")
    assert code == 0 and re.search(r"test/blue/0.png +blue +\d+\.\d %", "\n".join(out))


@pytest.mark.parametrize("kind", ["list", "file", "dataset"])
def test_other_classes_are_told_apart(kind, data, mine, run, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffred\n\nblue \n", encoding="utf-8")
    for name in ("red", "blue"):
        for number in range(4):
            path = tmp_path / "two" / name / f"{number}.png"
            write_image(path, np.random.default_rng(number))
    given = {"list": "blue, red", "file": tmp_path / "names.txt"}
    classes = given.get(kind, f"dataset:{tmp_path / 'two'}")
    image = data / "test" / "green" / "0.png"
    code, out, _ = run("predict", mine, image, "--top=5", "--classes", classes)
    assert code == 0
    found = {line.split("\t")[1]: float(line.split("\t")[2]) for line in out}
    expected = Classifier.load(mine, class_names=["blue", "red"]).predict_proba([image])[0]
    assert set(found) == {"blue", "red"} and found["blue"] == pytest.approx(expected[0], abs=1e-5)


def test_predict_refuses_what_is_no_input(data, mine, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    image = data / "test" / "red" / "0.png"
    assert "absent.jpg" in refused("predict", mine, image, "absent.jpg")
    assert "matches a file" in refused("predict", mine, str(tmp_path / "*.jpg"))
    assert ".jpeg" in refused("predict", mine, tmp_path / "empty")
    assert "which is not there" in refused("predict", tmp_path / "absent", image)
    assert "which is no file" in refused("predict", mine, image, "--classes=names.txt")
    assert "which is no file" in refused("predict", mine, image, f"--classes={'a' * 300}")
    assert "different class names" in refused("predict", mine, image, f"--classes={'a,' * 300}")
    assert "too long" in refused("predict", "a" * 300, image)
    assert "too long" in refused("evaluate", mine, "a" * 300)
    assert "expected a CLIP" in refused("predict", mine, image, "--clip", "a" * 300)
    assert "different class names" in refused("predict", mine, image, "--classes=red,green,red")
    save_file(openai_tensors(), tmp_path / "other.safetensors", {"naming": "openai"})
    other = ("--clip", tmp_path / "other.safetensors", "--tokenizer", source.EMBEDDED_FOLDER)
    line = refused("predict", mine, image, *other)
    assert "learned with, tiny" in line and f"got {tmp_path / 'other.safetensors'}" in line
    for words, option in ((["--top", "0"], "--top"), (["--dtype", "float64"], "--dtype"), ([], "")):
        assert option in refused("predict", mine, *words)


def test_evaluate_agrees_with_the_classifier(data, mine, run, tmp_path):
    table, picture, numbers = (tmp_path / f"out.{ending}" for ending in ("csv", "png", "json"))
    saved = ("--csv", table, "--png", picture, "--json", numbers)
    code, out, err = run("evaluate", mine, data, "--classes=red,violet,green,blue", *saved)
    assert (code, err) == (0, [])
    classifier = Classifier.load(mine, class_names=["red", "violet", "green", "blue"])
    shown = dict(line.split("\t") for line in out)
    assert shown["images"] == "12"
    accuracy, sign = shown["accuracy"].split(" ")
    assert float(accuracy) == pytest.approx(100 * classifier.score(data), abs=1e-4)
    assert sign == "%" and shown["macro_f1"].endswith(" %")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    paths = [data / row["path"] for row in rows]
    probabilities = classifier.predict_proba(paths)
    assert [row["label"] for row in rows] == [path.parent.name for path in paths]
    assert [row["predicted"] for row in rows] == classifier.predict(paths).tolist()
    got = [float(row["predicted_probability"]) for row in rows]
    np.testing.assert_allclose(got, probabilities.max(axis=1), atol=1e-5)
    columns = [classifier.classes_.tolist().index(row["label"]) for row in rows]
    got = [float(row["label_probability"]) for row in rows]
    np.testing.assert_allclose(got, probabilities[np.arange(12), columns], atol=1e-5)
    record = json.loads(numbers.read_text())
    assert (record["split"], record["images"], record["unreadable"]) == ("test", 12, 0)
    assert [one["class"] for one in record["classes"]] == ["red", "green", "blue"]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert record["accuracy"] == pytest.approx(100 * right / 12)
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 500


def test_what_the_embedded_clip_cannot_do_is_said_once(data, mine, run, tmp_path, caplog):
    image, unsaid = data / "test" / "red" / "0.png", use._warn_of_embedded_clip.cache_clear
    for words in (("predict", mine, image), ("evaluate", mine, data)):
        unsaid()
        (line,) = run(*words)[2]
        assert "'tiny'" in line and "no photograph" in line and "ViT-B/16" in line
        assert run(*words)[2] == []
    settings = {**config.default("zero_shot"), "dataset": str(data)}
    for use_it in (
        lambda: Classifier.load(mine),
        lambda: Classifier("tiny", method="zero_shot").fit([str(image)], ["red"]),
        lambda: experiment.Experiment(settings, tmp_path / "run"),
    ):
        unsaid()
        caplog.clear()
        use_it()
        assert "no photograph" in caplog.text
    unsaid()
    caplog.clear()
    use.warn_of_embedded_clip("tiny", "digits")
    use.warn_of_embedded_clip("ViT-B/16", "photographs")
    assert not caplog.records
    use.warn_of_embedded_clip("tiny", None)


def test_evaluate_leaves_out_what_cannot_be_read(data, mine, run, monkeypatch):
    broken = data / "train" / "blue" / "broken.png"
    broken.write_text("no image")
    try:
        code, out, err = run("evaluate", mine, data, "--split=all")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        _, table, _ = run(
            "evaluate", mine, data, "--split=train", "--classes=red,violet,green,blue"
        )
    finally:
        broken.unlink()
    assert code == 1 and out[-1] == "images\t21"
    assert err[0] == ("9 of 10 train images were used to learn this; they are counted all the same")
    assert "train/blue/broken.png" in err[1] and err[2:] == ["1 of 22 images could not be read"]
    assert re.match(r"colours, train: \d+\.\d % of 9 images; macro F1 \d+\.\d %", table[0])


@pytest.fixture
def mixed(data, tmp_path):
    """The images of three colours, where six training images are in test, too."""
    root = shutil.copytree(data, tmp_path / "mixed")
    for name in COLOURS:
        for number in range(2):
            image = root / "train" / name / f"{number}.png"
            shutil.copy(image, root / "test" / name / f"copy_of_{number}.png")
    return root


def test_images_that_were_learned_from_do_not_count(data, mine, mixed, run, refused, tmp_path):
    said = "6 of 18 test images were used to learn this; they are left out"
    _, expected, _ = run("evaluate", mine, data)
    table, numbers = tmp_path / "t.csv", tmp_path / "n.json"
    code, out, err = run("evaluate", mine, mixed, "--csv", table, "--json", numbers)
    assert (code, out, err) == (0, expected, [said])
    assert out[-1] == "images\t12" and json.loads(numbers.read_text())["images"] == 12
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == sorted(
        path.relative_to(data).as_posix() for path in (data / "test").glob("*/*.png")
    )
    code, out, err = run("fit", mixed, tmp_path / "new", *FIT, "--epochs=1")
    assert (code, err) == (0, [said])
    score = Classifier.load(tmp_path / "new").score(data)
    assert out[1] == f"accuracy on the test images: {100 * score:.1f} %"
    shutil.rmtree(mixed / "test")
    shutil.copytree(mixed / "train", mixed / "test")
    line = refused("evaluate", mine, mixed)
    assert "that this was not learned from, got 9, all of which were used" in line


def test_evaluate_refuses_other_classes_and_takes_those_of_a_dataset(mine, run, refused, tmp_path):
    coop_data(tmp_path, ["dtd"], classes=3)
    dtd = ("dtd", "--data-dir", tmp_path)
    line = refused("evaluate", mine, *dtd)
    assert "banded" in line and "--classes dataset:NAME" in line and line.count(";") == 1
    code, out, _ = run("evaluate", mine, *dtd, "--classes", "dataset:dtd", "--split", "val")
    assert code == 0 and out[-1] == f"images\t{len(catalog.load('dtd', tmp_path).val)}"
    (tmp_path / "images.csv").write_text("path,label,split\na.png,red,train\nb.png,pink,test\n")
    assert "pink" in refused("evaluate", mine, tmp_path / "images.csv")
    existing = tmp_path / "images.csv"
    assert "new file" in refused("evaluate", mine, *dtd, "--png", existing)


def test_a_split_without_images_is_refused(data, mine, refused):
    assert "val split" in refused("evaluate", mine, data, "--split=val")
