"""Folders as people have them: what counts as a split, as a class, and as an image of it."""

import os
import subprocess
import sys

import pytest
from makers import refusal, write_images

from coop_jax.commands.loading import find_images
from coop_jax.data import catalog, listing, own

PARTS = ("train", "val", "test")


def write(root, *places, count=4, ending=".jpg"):
    """As many files in each of these folders; what is read here need not be an image."""
    for place in places:
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / place / f"{number}{ending}").write_bytes(f"{place} {number}".encode())
    return root


def found(root):
    """The class names, and the number of images of every split, of what is below a folder."""
    read = own.read(root)
    paths = [path for part in PARTS for path in read.splits[part].paths]
    assert all((root / path).is_file() for path in paths) and len(set(paths)) == len(paths)
    return read.class_names, [len(read.splits[part].paths) for part in PARTS]


def images(root):
    return sorted(path for files in own.read(root).splits.values() for path in files.paths)


@pytest.mark.parametrize("wrapper", ["", "vehicles/", "Archive/vehicles/"])
@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("bus", "test", "val"),
        ("bus", "test", "train", "val"),
        ("Test", "Training", "bus"),
        ("car", "test"),
    ],
)
def test_a_class_may_be_called_as_a_split(names, wrapper, tmp_path):
    root = write(tmp_path / "vehicles", *(f"{wrapper}{name}" for name in names))
    class_names, counts = found(root)
    assert class_names == names and sum(counts) == 4 * len(names)


@pytest.mark.parametrize("wrapper", ["", "caps/", "download/caps/"])
@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "", "test"),
        ("Train", "", "Test"),
        ("TRAIN", "VAL", "TEST"),
        ("training", "validation", "testing"),
        ("Training", "valid", "test"),
        ("train", "Dev", "Testing"),
    ],
)
def test_splits_may_have_the_names_that_people_give_them(train, val, test, wrapper, tmp_path):
    root = tmp_path / "caps"
    for number, name in enumerate(filter(None, (train, val, test)), start=1):
        write(root, f"{wrapper}{name}/cat", f"{wrapper}{name}/dog", count=number)
    assert found(root) == (("cat", "dog"), [2, 4, 6] if val else [2, 0, 4])


@pytest.mark.parametrize(
    "places",
    [
        ("photos/cat", "photos/dog"),
        ("photos/photos/cat", "photos/photos/dog"),
        ("download/photos/cat", "download/photos/dog"),
        ("cat/cat", "dog/dog"),
        ("cat/images", "dog/images"),
        ("cat", "dog/puppies", "dog"),
        ("cat/a", "cat/b", "dog"),
        ("cat/2023/May", "dog"),
    ],
)
def test_images_may_lie_deeper(places, tmp_path):
    root = write(tmp_path / "photos", *places)
    assert found(root) == (("cat", "dog"), found(root)[1])
    assert sum(found(root)[1]) == 4 * len(places)


def test_training_images_alone_are_cut_where_they_are_named(tmp_path):
    root = write(tmp_path / "train", "Train/cat", "Train/dog")
    assert found(root)[0] == found(root / "Train")[0] == ("cat", "dog")


def test_splits_may_be_unpacked_in_folders_of_their_names(tmp_path):
    root = write(tmp_path / "p", "train/train/cat", "train/train/dog", "test/test/dog", "val/val")
    (root / "val" / "val" / "cat").mkdir()
    for number in range(4):
        (root / f"val/val/{number}.jpg").rename(root / f"val/val/cat/{number}.jpg")
    assert found(root) == (("cat", "dog"), [8, 4, 4])


def test_what_lies_deeper_is_said(tmp_path, caplog):
    root = write(tmp_path / "deep", "cat/a", "cat/b", "dog", count=20)
    assert images(root) == sorted(
        f"{place}/{number}.jpg" for place in ("cat/a", "cat/b", "dog") for number in range(20)
    )
    assert caplog.messages == [f"{root}: images in subfolders count for the class, too: cat (a, b)"]


def test_leftovers_of_archives_servers_and_systems_are_passed_over(tmp_path, caplog):
    root = write(tmp_path / "photos", "photos/cat", "photos/dog", count=30)
    before = images(root)
    write(root, "__MACOSX/photos/cat", "photos/@eaDir/1.jpg", "photos/cat/@eaDir/1.jpg")
    write(root, "photos/.ipynb_checkpoints", "photos/cat/.thumbnails", "$RECYCLE.BIN", "#recycle")
    names = (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r", "._0.jpg", "0.jpg:Zone.Identifier")
    for folder in (root, root / "photos", root / "photos" / "cat"):
        for name in names:
            (folder / name).write_bytes(b"left over")
    assert images(root) == before
    assert caplog.messages == []
    assert sorted(find_images([str(root)])) == [str(root / path) for path in before]


def test_what_is_passed_over_besides_is_said(tmp_path, caplog):
    root = write(tmp_path / "p", "train/cat", "test/cat", "extra")
    (root / "cover.JPG").write_bytes(b"beside the splits")
    (root / "train" / "1.png").write_bytes(b"beside the classes")
    (root / "train" / "cat" / "notes.txt").write_text("in a class")
    (root / "README.md").write_text("no image")
    assert found(root) == (("cat",), [4, 0, 4])
    assert caplog.messages == [
        f"{root}: passed over images beside the folders train, test: extra/ (4 images), cover.JPG",
        f"{root}/train: passed over images beside the folders cat: 1.png",
        f"{root}: passed over 1 file or folder that is no image by its name: train/cat/notes.txt",
    ]


def test_an_empty_val_folder_is_none(tmp_path):
    root = write(tmp_path / "p", "train/cat", "test/cat")
    (root / "val" / "cat").mkdir(parents=True)
    assert found(root) == (("cat",), [4, 0, 4])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ["animals/cat", "animals/dog", "things/car"],
            "{root}: expected images right in each class's folder, got none there, but 12 one"
            " folder deeper, in the subfolders animals/cat (4), animals/dog (4), things/car (4);"
            " if these are the classes, move them up into {root}; if the classes are animals,"
            " things, move the images up; or list the images in a .csv",
        ),
        (["train/a/b", "train/a/c", "train/d/e", "test/a"], "the subfolders a/b (4), a/c (4), d/e"),
        (
            ["train/cat", "train/dog", "other"],
            "{root}: expected a folder train and a folder test, each with a folder per class, got"
            " other (4 images), train (8 images in the subfolders cat, dog); add what is missing;"
            " or name {root}/train as the dataset, to have it cut into train, val and test; or, if"
            " train is a class, move its images out of the subfolders",
        ),
        (["Test/cat", "Test/dog"], "name {root}/Test as the dataset, to have it cut"),
        (["train/cat", "Validation/cat"], "got Validation (4 images in the subfolders cat), train"),
        (["train", "test/cat"], "got test (4 images in the subfolders cat), train (4 images);"),
        (
            ["train", "test"],
            "{root}: expected a folder per class in train, test, got images right in train"
            " (4 images), test (4 images); put each class's images into a folder of its name, as"
            " train/cat; or list the images in a .csv",
        ),
        (["Train"], "{root}: expected a folder per class in Train, got images right in Train (4"),
        (["train/a", "test/a", "val"], "expected a folder per class in val, got images right in"),
        (
            ["train/a", "Training/a", "test/a"],
            "{root}: expected one folder per split, got Training (4 images in the subfolders a),"
            " train (4 images in the subfolders a); put the images of one split into one folder",
        ),
        (["train/a", "test/a", "val/b"], "expected in {root}/val only classes that train has, got"),
        (["Train/a", "Test/b"], "expected in {root}/Test only classes that train has, got also b"),
        ([""], "a folder per class in {root}, got none, but 4 images right in it; put each"),
    ],
)
def test_what_is_not_clear_is_refused_by_what_was_seen(tmp_path, places, message):
    root = write(tmp_path / "own", *places)
    said = refusal(own.read, root)
    assert message.format(root=root) in said
    assert "remove" not in said and "delete" not in said


@pytest.mark.parametrize(
    ("ending", "shown"), [(".dng", "4 .dng"), (".MOV", "4 .mov"), ("", "4 without ending")]
)
def test_a_class_of_other_files_says_which(tmp_path, ending, shown):
    root = write(write(tmp_path / "own", "cat", "dog"), "bird", ending=ending)
    (root / "empty").mkdir()
    assert f"per class in {root}/empty, got an empty one; put each" in refusal(
        own.read, root / "empty"
    )
    said = refusal(own.read, root)
    assert f"in every class's folder of {root}, got bird ({shown}), empty (nothing); add" in said
    assert "convert other files to JPEG or PNG" in said and "remove" not in said


@pytest.mark.parametrize("name", [".JPG", ".jpeg", ".Png", ".WEBP", ".tif", ".heic", ".HEIF"])
def test_endings_count_in_any_case(name):
    assert listing.is_image(f"a{name}") and not listing.is_image(name[1:])


def test_links_to_folders_are_followed_but_not_round_and_round(tmp_path):
    root, elsewhere = tmp_path / "own", write(tmp_path / "elsewhere", "many", count=5)
    write(root, "cat/more", "dog")
    (root / "bird").symlink_to(elsewhere / "many", target_is_directory=True)
    (root / "cat" / "more" / "again").symlink_to(root, target_is_directory=True)
    assert found(root)[0] == ("bird", "cat", "dog") and sum(found(root)[1]) == 13
    assert find_images([str(root)]) == [
        f"{root}/{place}/{number}.jpg"
        for place, count in (("bird", 5), ("cat/more", 4), ("dog", 4))
        for number in range(count)
    ]


def test_fit_predict_and_the_doctor_count_the_same(tmp_path):
    root = write_images(tmp_path / "p", [f"p/{c}/{n}.PNG" for c in ("a/1", "b") for n in range(9)])
    write(root, "__MACOSX/p/a/1")
    (root / "p" / "b" / "Thumbs.db").write_bytes(b"left over")
    dataset = catalog.load(str(root), tmp_path / "data")
    names = [name for part in PARTS for name in getattr(dataset, part).file_names]
    assert sorted(names) == [f"p/{c}/{n}.PNG" for c in ("a/1", "b") for n in range(9)]
    assert sorted(find_images([str(root)])) == sorted(str(root / name) for name in names)


def test_an_empty_class_folder_and_a_link_to_nothing_are_named(tmp_path):
    root = write(tmp_path / "own", "train/cat", "test/cat")
    (root / "train" / "dog").mkdir()
    assert f"in every class's folder of {root}/train, got dog (nothing)" in refusal(own.read, root)
    write(root, "train/dog", count=1)
    (root / "train" / "dog" / "a.png").symlink_to(root / "gone.png")
    (root / "train" / "dog" / "b.png").mkdir()
    assert "links to nothing or no files: train/dog/a.png; restore" in refusal(own.read, root)
    (root / "gone.png").write_bytes(b"there again")
    assert found(root) == (("cat", "dog"), [6, 0, 4])


def test_pipes_and_links_in_a_circle_are_named(tmp_path):
    root = write(tmp_path / "own", "train/cat", "test/cat")
    odd = [root / "train" / "cat" / name for name in ("loop.png", "pipe.png")]
    odd[0].symlink_to(odd[0])
    os.mkfifo(odd[1])
    names = [f"train/cat/{path.name}" for path in odd]
    said = refusal(own.read, root)
    assert f"links to nothing or no files: {', '.join(names)}; restore" in said
    assert set(map(str, odd)) < set(find_images([str(root)]))
    table = root / "labels.csv"
    lines = [
        "path,label,split",
        *[f"{name},cat,train" for name in names],
        "train/cat/0.jpg,cat,test",
    ]
    table.write_text("\n".join(lines))
    assert f"got none for 2 of them ({', '.join(names)}); restore" in refusal(own.read, table)
    (root / "circle").symlink_to(root / "circle")
    for path in odd:
        path.unlink()
    assert found(root) == (("cat",), [4, 0, 4])


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(listing.os, "scandir", deny)
    assert "got an error (Permission denied)" in refusal(own.read, write(tmp_path, "a", "b"))


def test_names_are_read_as_utf_8_in_any_locale(tmp_path):
    write(tmp_path, "кошка", "狗")
    code = (
        "import pathlib; from coop_jax.data import own;"
        f"print(ascii(own.read(pathlib.Path({str(tmp_path)!r})).class_names))"
    )
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | locale, capture_output=True, text=True
    )
    assert child.stdout.strip() == ascii(("кошка", "狗")), child.stderr
