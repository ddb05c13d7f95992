"""What is refused in CoOp's data folder and in a split file, and how."""

import json
import shutil

import pytest
from makers import coop_data, flatten, refusal

from coop_jax.data import catalog, layouts, listing
from coop_jax.data.official import OFFICIAL
from coop_jax.errors import InputError

ROW = ["a.jpg", 0, "face"]
WRONG_SPLITS = [
    ("{", "expected a split file .* in JSON, got Expecting property name"),
    ("\xff", "expected a split file .* in JSON, got 'utf-8' codec can't decode"),
    ("[" * 100_000, "expected a split file .* in JSON, got maximum recursion depth"),
    ([], "expected an object with the lists train, val, test alone, got"),
    ({"train": [ROW]}, r"lists train, val, test alone, got {'train': \[\["),
    ({"train": [ROW], "test": [ROW], "others": []}, "lists train, val, test alone"),
    ({"train": 5, "test": [ROW]}, "lists train, val, test alone, got {'train': 5"),
    ({"train": None, "test": [ROW]}, "lists train, val, test alone, got {'train': None"),
    ({"train": [ROW, ["b.jpg", 0]], "test": [ROW]}, r"train\[1\]: .* got \['b.jpg', 0\]; correct"),
    ({"train": ["a.jpg"], "test": [ROW]}, r"train\[0\]: expected \[path, label, class name\]"),
    ({"train": [["a.jpg", "0", "face"]], "test": [ROW]}, r"train\[0\]: expected \[path, label"),
    ({"train": [["a.jpg", True, "face"]], "test": [ROW]}, r"train\[0\]: expected \[path, label"),
    ({"train": [["a.jpg", 0, ""]], "test": [ROW]}, r"train\[0\]: expected \[path, label"),
    ({"train": [["", 0, "face"]], "test": [ROW]}, r"train\[0\]: expected \[path, label"),
    ({"train": [["a.jpg", -1, "face"]], "test": [ROW]}, "a label of at least 0, got .*-1"),
    ({"train": [], "test": [ROW]}, "expected images in train, got an empty list"),
    ({"train": [ROW], "test": []}, "expected images in test, got an empty list"),
    (
        {"train": [ROW], "test": [["b.jpg", 1, "b"]]},
        "expected labels from 0 to 0 in test, as in train, got 1; add training images of them",
    ),
    (
        {"train": [ROW], "val": [["b.jpg", 3, "b"]], "test": [ROW]},
        "expected labels from 0 to 0 in val, as in train, got 3;",
    ),
    (
        {"train": [ROW, ["b.jpg", 2, "b"]], "test": [ROW]},
        "every label from 0 to 2, got none of 1; number the labels without gaps",
    ),
    (
        {"train": [ROW, ["b.jpg", 10**15, "b"]], "test": [ROW]},
        "every label from 0 to 1000000000000000, got none of 1;",
    ),
    (
        {"train": [ROW, ["b.jpg", 0, "nose"]], "test": [ROW]},
        "expected one name per label, got 'face' and 'nose' for label 0; correct one",
    ),
]


@pytest.mark.parametrize(("content", "message"), WRONG_SPLITS)
def test_a_wrong_split_file_is_refused(tmp_path, content, message):
    path = tmp_path / "split.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("latin-1"))
    shown = refusal(listing.read_split_file, path, tmp_path)
    assert str(path) in shown
    assert len(shown) < 300 + len(str(path))
    with pytest.raises(InputError, match=message):
        listing.read_split_file(path, tmp_path)


def test_a_split_file_that_is_not_utf_8_or_not_there_is_refused(tmp_path):
    path = tmp_path / "split.json"
    assert "No such file" in refusal(listing.read_split_file, path, tmp_path)
    path.write_text(json.dumps({"train": [ROW], "test": [ROW]}), encoding="utf-16")
    assert "save it as UTF-8" in refusal(listing.read_split_file, path, tmp_path)
    path.write_text(json.dumps({"train": [ROW], "test": [ROW]}), encoding="utf-8-sig")
    assert listing.read_split_file(path, tmp_path).class_names == ("face",)


@pytest.fixture
def small(tmp_path):
    """A data folder to spoil."""
    return lambda *names: coop_data(tmp_path, names)


def test_without_the_official_split_nothing_is_made_up(small):
    root = small("eurosat")
    (root / "eurosat" / "split_zhou_EuroSAT.json").unlink()
    message = refusal(
        layouts.split_file, root / "eurosat", images="2750", split="split_zhou_EuroSAT.json"
    )
    assert "expected the official split" in message
    assert "DATASETS.md" in message


def test_absent_images_are_counted_and_the_first_are_named(small):
    root = small("dtd")
    for path in (root / "dtd" / "images" / "braided").iterdir():
        path.unlink()
    (root / "dtd" / "images" / "banded" / "banded_0001.jpg").unlink()
    (root / "dtd" / "images" / "banded" / "banded_0001.jpg").symlink_to("nothing")
    (root / "dtd" / "images" / "banded" / "banded_0002.jpg").unlink()
    (root / "dtd" / "images" / "banded" / "banded_0002.jpg").mkdir()
    message = refusal(catalog.load, "dtd", root)
    assert "all of its 60 images" in message
    assert "got none for 17 of them (banded/banded_0001.jpg, banded/banded_0002.jpg" in message
    assert "and 12 more); restore the files or correct the split" in message
    shutil.rmtree(root / "dtd" / "images")
    (root / "dtd" / "images").mkdir()
    assert "got none for 60 of them" in refusal(catalog.load, "dtd", root)


def test_wrong_aircraft_lists_are_refused(small):
    root = small("fgvc_aircraft")
    path = root / "fgvc_aircraft" / "images_variant_val.txt"
    kept = path.read_text()
    path.write_text(kept + "0034309 F-18\n")
    message = refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")
    assert f"{path}: expected variants of variants.txt, got 'F-18'; restore" in message
    path.write_text("0034309\n")
    assert "got '0034309'" in refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")
    path.write_text("\n")
    assert "got an empty one" in refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")
    path.write_text(kept + "1234567 F/A-18\n")
    assert "images/1234567.jpg" in refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")
    path.write_bytes(b"\xff\xfe")
    assert str(path) in refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")
    path.unlink()
    assert "No such file" in refusal(OFFICIAL["fgvc_aircraft"].layout, root / "fgvc_aircraft")


@pytest.mark.parametrize("name", ["imagenet", "imagenetv2", "imagenet_sketch", "imagenet_a"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["n03773504 missile", "n01440764 tench"],
            "in ascending order of wnids, got another order",
        ),
        (["n01440764 tench", "n01440764 tench"], "got another order; fetch it"),
        (["n01440764 tench", "n03773504"], "got n03773504; fetch it"),
        ([], "got an empty one;"),
    ],
)
def test_wrong_imagenet_class_names_are_refused(small, name, lines, message):
    root = small(name) / OFFICIAL[name].folder
    (root / "classnames.txt").write_text("".join(f"{line}\n" for line in lines))
    assert message in refusal(OFFICIAL[name].layout, root)
    (root / "classnames.txt").unlink()
    assert "No such file" in refusal(OFFICIAL[name].layout, root)


@pytest.mark.parametrize("place", ["imagenet/images/train", "imagenet/images/val"])
def test_missing_and_unknown_imagenet_folders_are_named(small, place):
    root = small("imagenet")
    (root / place / "n01440764").rename(root / place / "n99999999")
    (root / place / "n02119789x").mkdir()
    message = refusal(OFFICIAL["imagenet"].layout, root / "imagenet")
    assert "expected the 4 class folders" in message
    assert "got 1 of them not (n01440764) and 2 others (n02119789x, n99999999);" in message
    shutil.rmtree(root / place)
    assert str(root / place) in refusal(OFFICIAL["imagenet"].layout, root / "imagenet")
    (root / place).mkdir()
    assert str(root / place) in refusal(OFFICIAL["imagenet"].layout, root / "imagenet")


def test_strange_files_in_a_flat_validation_folder_are_named(small):
    root = small("imagenet") / "imagenet"
    folder = root / "images" / "val"
    flatten(folder)
    for name in ("n01440764_1.JPEG", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_².JPEG"):
        (folder / name).write_bytes(b"")
        assert f"got {name}; move" in refusal(OFFICIAL["imagenet"].layout, root)
        (folder / name).unlink()
    (folder / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    assert "expected the class n01751748 of ILSVRC2012_val_00000001.JPEG" in refusal(
        OFFICIAL["imagenet"].layout, root
    )


def test_wrong_folders_of_the_imagenet_variants_are_named(small):
    root = small("imagenetv2", "imagenet_r")
    numbered = root / "imagenetv2" / "imagenetv2-matched-frequency-format-val"
    (numbered / "3").rename(numbered / "4")
    message = refusal(catalog.load, "imagenetv2", root)
    assert "got 1 of them not (3) and 1 others (4)" in message
    folders = root / "imagenet-rendition" / "imagenet-r"
    (folders / "n99999999").mkdir()
    assert "got also n99999999; move" in refusal(catalog.load, "imagenet_r", root)
    (folders / "n99999999").rmdir()
    for path in (folders / "n01440764").iterdir():
        path.unlink()
    message = refusal(catalog.load, "imagenet_r", root)
    assert f"folder of {folders}, got n01440764 (nothing); add images" in message
