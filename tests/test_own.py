"""A user's own images: folders, tables, split files, and class-name files."""

import csv
import json
import tarfile

import pytest
import reference
from makers import refusal, write_images
from PIL import Image

from coop_jax.data import catalog, own
from coop_jax.errors import InputError

PARTS = ("train", "val", "test")


def some_each(split, count, *classes):
    """Paths of images of classes: count of each."""
    return [f"{split}{name}/{number:02d}.png" for name in classes for number in range(count)]


@pytest.fixture
def root(tmp_path):
    """A folder with training and test images of two classes."""
    paths = some_each("train/", 3, "a_b", "c") + some_each("test/", 3, "c")
    return write_images(tmp_path / "own", paths)


def load(path, tmp_path, **named):
    return catalog.load(str(path), tmp_path / "data", **named)


# Folders.


def test_without_a_val_folder_train_stays_whole(root, tmp_path):
    dataset = load(root, tmp_path)
    assert (dataset.name, dataset.classes.names) == ("own", ("a b", "c"))
    assert dataset.templates[0] == "a photo of a {}."
    assert dataset.train.file_names.tolist() == some_each("train/", 3, "a_b", "c")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(dataset.val) == 0
    assert dataset.test.labels.tolist() == [1, 1, 1]
    assert not (tmp_path / "data").exists()


def test_a_val_folder_is_taken_as_it_is(root, tmp_path):
    write_images(root, ["val/c/1.png"])
    assert load(root, tmp_path).val.labels.tolist() == [1]


def test_a_changed_folder_is_read_anew(root, tmp_path):
    assert len(load(root, tmp_path).test) == 3
    write_images(root, ["test/a_b/new.png"])
    assert load(root, tmp_path).test.labels.tolist() == [0, 1, 1, 1]


def test_files_that_are_no_images_and_hidden_ones_are_passed_over(root, tmp_path, caplog):
    (root / "test/c/notes.txt").write_text("notes")
    (root / "test/c/._1.png").write_bytes(b"resource fork")
    (root / "test/.cache").mkdir()
    (root / "test/README").write_text("beside the folders")
    write_images(root, ["test/c/CAPITALS.JPEG"])
    (root / "train/c/notes.txt").write_text("notes")
    (root / "train/c/more").mkdir()
    write_images(root, ["test/c/D.JFIF.png"])
    (root / "test/c/D.JFIF.png").rename(root / "test/c/D.JFIF")
    names = load(root, tmp_path).test.file_names
    more = ["test/c/CAPITALS.JPEG", "test/c/D.JFIF"]
    assert names.tolist() == [*some_each("test/", 3, "c"), *more]
    (said,) = [line for line in caplog.messages if "passed over" in line]
    assert said == (
        f"{root}: passed over 2 files and folders that are no images by their names:"
        " train/c/notes.txt, test/c/notes.txt"
    )


def test_a_path_that_is_no_dataset_is_refused(root, tmp_path):
    (root / "notes.txt").write_text("notes")
    assert "got the file" in refusal(catalog.load, str(root / "notes.txt"), tmp_path)
    message = refusal(catalog.load, "digit", tmp_path)
    assert "expected a dataset's name (digits, imagenet, " in message
    assert 'got "digit"; choose a name' in message


def test_a_folder_without_splits_is_cut(tmp_path):
    counts = {"a": 4, "big_dog": 10, "cat": 37}
    paths = [path for name, count in counts.items() for path in some_each("", count, name)]
    root = write_images(tmp_path / "own", paths)
    dataset = load(root, tmp_path)
    assert dataset.classes.names == ("a", "big dog", "cat")
    names = [name for part in PARTS for name in getattr(dataset, part).file_names]
    assert sorted(names) == paths
    for part in PARTS:
        examples = getattr(dataset, part)
        classes = [sorted(counts)[label] for label in examples.labels]
        assert [name.split("/")[0] for name in examples.file_names] == classes
        assert set(classes) == set(counts)


# Tables.


def write_table(path, columns, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def split_rows(root):
    return [
        ["train/a_b/00.png", "big_dog", "train"],
        ["train/c/00.png", "cat, grey", "train"],
        ["train/a_b/01.png", "big_dog", "val"],
        ["test/c/01.png", "cat, grey", "test"],
        ["test/c/00.png", "cat, grey", "test"],
        ["train/c/01.png", "cat, grey", "train"],
    ]


def test_a_table_with_splits_is_read_in_its_order(root, tmp_path, split_rows):
    path = write_table(root / "table.csv", ["path", "label", "split"], *split_rows)
    dataset = load(path, tmp_path)
    assert (dataset.name, dataset.classes.names) == ("table", ("big dog", "cat, grey"))
    for part in PARTS:
        examples = getattr(dataset, part)
        rows = [row for row in split_rows if row[2] == part]
        assert examples.file_names.tolist() == [row[0] for row in rows]
        labels = [("big_dog", "cat, grey").index(row[1]) for row in rows]
        assert examples.labels.tolist() == labels
        with Image.open(root / rows[0][0]) as image:
            assert examples.image(0).tobytes() == image.tobytes()


def test_a_table_may_have_spaces_other_columns_empty_lines_and_absolute_paths(root, tmp_path):
    path = root / "table.csv"
    lines = [
        "\ufeffsplit, note, path, label",
        f"train, x, {root}/train/a_b/00.png, big_dog",
        ",,,",
        "",
        "test, , test/c/00.png , big_dog",
    ]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    dataset = load(path, tmp_path)
    assert dataset.classes.names == ("big dog",)
    assert dataset.train.file_names.tolist() == [f"{root}/train/a_b/00.png"]
    assert dataset.test.file_names.tolist() == ["test/c/00.png"]
    dataset.train.image(0)


def test_the_splits_of_a_table_may_have_other_names(root, tmp_path):
    rows = [["train/c/00.png", "c", "Training"], ["train/c/01.png", "c", "validation"]]
    rows += [["test/c/00.png", "c", "TEST"]]
    dataset = load(write_table(root / "table.csv", ["path", "label", "split"], *rows), tmp_path)
    for part, row in zip(PARTS, rows, strict=True):
        assert getattr(dataset, part).file_names.tolist() == [row[0]]


GOOD = ["train/c/00.png", "c", "train"]
TEST = ["test/c/00.png", "c", "test"]
WRONG_TABLES = [
    (["file", "label", "split"], [GOOD, TEST], "table.csv: expected the columns path, label and"),
    (["path;label;split"], [["a;b;c"]], "got path;label;split; write them into the first line"),
    ([], [], "got none; write them into the first line, separated by commas"),
    (
        ["path", "label", "split"],
        [GOOD, ["", "c", "test"]],
        "table.csv:3: expected path, label, sp",
    ),
    (["path", "label", "split"], [["test/c/00.png", "", "test"]], "table.csv:2: expected path"),
    (
        ["path", "label", "split"],
        [["test/c/00.png", "c", "fold 1"]],
        "one of train, val, test), got",
    ),
    (["path", "label", "split"], [["test/c/00.png", "c"]], "got ['test/c/00.png', 'c']; correct"),
    (["path", "label"], [["a.png", "cat", " grey"]], "with quotes around a value that has a comma"),
    (["path", "label", "split"], [GOOD], "expected images of split test, got none; add lines"),
    (["path", "label", "split"], [GOOD, ["a", "d", "test"]], "of every label, got none of d; add"),
    (["path", "label", "split"], [], "expected images of split train, got none; add lines"),
    (["path", "label"], [], "table.csv: expected images, got none; add lines"),
    (["path", "label"], [GOOD[:2]] * 3, "images of every class, no two the same, to cut"),
    (
        ["path", "label", "split"],
        [GOOD, ["x.png", "c", "test"]],
        "none for 1 of them (x.png); rest",
    ),
    (["path", "label", "split"], [GOOD, ["\0", "c", "test"]], "got none for 1 of them"),
    (["path", "label", "split"], [GOOD, ["test/c", "c", "test"]], "none for 1 of them (test/c);"),
]


@pytest.mark.parametrize(("columns", "rows", "message"), WRONG_TABLES)
def test_a_wrong_table_is_refused(root, columns, rows, message):
    assert message in refusal(own.read, write_table(root / "table.csv", columns, *rows))


def test_a_table_that_is_not_utf_8_is_refused(root):
    (root / "table.csv").write_bytes("path,label\nü.png,c\n".encode("latin-1"))
    assert "save it as UTF-8 CSV" in refusal(own.read, root / "table.csv")
    (root / "table.csv").unlink()
    (root / "table.csv").mkdir()
    assert "a folder, a pipe or a device" in refusal(own.read, root / "table.csv")


# Split files.


def test_a_split_file_is_read(root, tmp_path):
    rows = {
        "train": [["train/c/00.png", 1, "grey_cat"], ["train/a_b/00.png", 0, "dog"]],
        "test": [["test/c/00.png", 1, "grey_cat"]],
    }
    (root / "split.json").write_text(json.dumps(rows))
    dataset = load(root / "split.json", tmp_path)
    assert (dataset.name, dataset.classes.names) == ("split", ("dog", "grey cat"))
    assert dataset.train.labels.tolist() == [1, 0]
    assert len(dataset.val) == 0
    dataset.test.image(0)
    rows["val"] = [["val/c/00.png", 1, "grey_cat"]]
    (root / "split.json").write_text(json.dumps(rows))
    message = refusal(catalog.load, str(root / "split.json"), tmp_path)
    assert "all of its 4 images" in message
    assert "(val/c/00.png); restore the files or correct the split" in message


# Class names.


def test_a_class_name_file_says_how_prompts_spell_the_classes(root, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffc   the grey_cat\n\na_b\ta very big dog \n", encoding="utf-8")
    dataset = load(root, tmp_path, class_names=path)
    assert dataset.classes.names == ("a very big dog", "the grey cat")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_class_name_file_takes_labels_with_spaces_and_numbers(root, tmp_path, split_rows):
    table = write_table(root / "table.csv", ["path", "label", "split"], *split_rows)
    path = tmp_path / "names.txt"
    path.write_text("cat, grey\tBritish Shorthair\nbig_dog Great Dane\n")
    names = load(table, tmp_path, class_names=path).classes.names
    assert names == ("Great Dane", "British Shorthair")
    rows = [["train/c/00.png", 1, "c"], ["train/a_b/00.png", 0, "a"]]
    (root / "split.json").write_text(json.dumps({"train": rows, "test": rows}))
    path.write_text("1 one\n0 zero\n")
    assert load(root / "split.json", tmp_path, class_names=path).classes.names == ("zero", "one")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_b dog\n", "got none for c, other labels: none, more than one line for none;"),
        ("a_b dog\nc cat\nd fox\n", "got none for none, other labels: d,"),
        ("a_b dog\nc cat\nc fox\n", "more than one line for c; correct the lines"),
        ("a b dog\nc cat\n", "got none for a_b, other labels: a, more than one line for none;"),
        ("a_b dog\nc\n", "expected lines 'label class name', got only 'c'; write the class name"),
        ("a_b dog\nc\t \n", "got only 'c'; write the class name behind it"),
        ("", "labels, got none for a_b, c, other"),
        ("\udcff", "restore it or save it as UTF-8"),
    ],
)
def test_a_wrong_class_name_file_is_refused(root, tmp_path, text, message):
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    shown = refusal(own.read, root, path)
    assert str(path) in shown
    assert message in shown


def test_a_missing_class_name_file_and_one_for_the_catalogue_are_refused(root, tmp_path):
    assert "No such file" in refusal(own.read, root, tmp_path / "names.txt")
    with pytest.raises(InputError, match="expected a class-name file for own images alone"):
        catalog.load("digits", tmp_path, class_names=tmp_path / "names.txt")


# Photographs.


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    archive = reference.path("cifar10/cifar10_200.tar")
    root = tmp_path_factory.mktemp("own") / "photographs"
    with tarfile.open(archive) as file:
        file.extractall(root, filter="data")
    return root


def check_photographs(dataset, root, folder):
    """Every photograph is there once, bit for bit, under its label; paths begin in the folder."""
    folders = sorted(path.name for path in (root / "train").iterdir())
    assert dataset.classes.names == tuple(folders)
    names = []
    for part in PARTS:
        examples = getattr(dataset, part)
        for index in range(len(examples)):
            path = (folder / examples.file_names[index]).resolve()
            names.append(path.relative_to(root).as_posix())
            assert folders[examples.labels[index]] == path.parent.name
            assert examples.source[index]["image"] == path.read_bytes()
            with Image.open(path) as image:
                assert examples.image(index).tobytes() == image.tobytes()
    assert sorted(names) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))


def test_photographs_survive_bit_for_bit(photographs, tmp_path):
    dataset = load(photographs, tmp_path)
    assert dataset.name == "photographs"
    check_photographs(dataset, photographs, photographs)


def test_photographs_in_one_folder_per_class_survive_bit_for_bit(photographs, tmp_path):
    for path in photographs.rglob("*.jpg"):
        link = tmp_path / "flat" / path.parent.name / f"{path.parts[-3]}{path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    check_photographs(load(tmp_path / "flat", tmp_path), photographs, tmp_path / "flat")


def test_photographs_of_a_table_survive_bit_for_bit(photographs, tmp_path):
    paths = sorted(path for path in photographs.rglob("*.jpg"))
    rows = [[path, path.parent.name, path.parts[-3]] for path in paths]
    table = write_table(tmp_path / "table.csv", ["path", "label", "split"], *rows)
    check_photographs(load(table, tmp_path), photographs, tmp_path)
