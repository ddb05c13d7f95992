"""Readers of files that strangers write: one line for what they cannot use, and no way out."""

import io
import json
import os
import string
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import refusal, write_images
from PIL import Image

from coop_jax.data import decoding, features, layouts, own, records
from coop_jax.errors import InputError

NAMES = [f"{index}.png" for index in range(6)]
SPLIT = {
    "train": [[name, index % 2, "ab"[index % 2]] for index, name in enumerate(NAMES[:4])],
    "test": [[name, index % 2, "ab"[index % 2]] for index, name in enumerate(NAMES[4:])],
}
TABLE = "path,label,split\n" + "".join(
    f"{name},{'ab'[index % 2]},{'train' if index < 4 else 'test'}\n"
    for index, name in enumerate(NAMES)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with six images, and one outside of it."""
    root = tmp_path_factory.mktemp("readers")
    write_images(root, ["outside.png"])
    return write_images(root / "images", NAMES)


def written(folder, path, suffix):
    """A split file or a table whose first image is at this path."""
    file = folder / f"first{suffix}"
    split = {**SPLIT, "train": [[path, 0, "a"], *SPLIT["train"][1:]]}
    file.write_text(json.dumps(split) if suffix == ".json" else TABLE.replace("0.png", path, 1))
    return file


# Where paths lead.


@pytest.mark.parametrize("suffix", [".json", ".csv"])
@pytest.mark.parametrize("path", ["../outside.png", "a/../../outside.png", "./../outside.png"])
def test_paths_do_not_leave_the_folder(folder, path, suffix):
    line = refusal(own.read, written(folder, path, suffix))
    assert f"got {path!r}, which leads out of it" in line


def test_absolute_paths_are_read_where_the_user_wrote_them(folder):
    outside = str(folder.parent / "outside.png")
    assert own.read(written(folder, outside, ".csv")).splits["train"].paths[0] == outside
    line = refusal(own.read, written(folder, outside, ".json"))
    assert "expected paths relative to its folder, got the absolute one" in line


@pytest.mark.parametrize("path", ["./0.png", "images/../0.png", "..0.png", "linked.png"])
def test_paths_that_stay_in_the_folder_and_links_are_read(folder, path):
    for name, target in (("..0.png", "0.png"), ("linked.png", "../outside.png")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    (folder / "images").mkdir(exist_ok=True)
    for suffix in (".json", ".csv"):
        assert own.read(written(folder, path, suffix)).splits["train"].paths[0] == path


def test_lists_of_the_papers_datasets_do_not_leave_the_folder(tmp_path):
    (tmp_path / "variants.txt").write_text("707\n")
    for split in ("train", "val", "test"):
        (tmp_path / f"images_variant_{split}.txt").write_text("../../outside 707\n")
    line = refusal(layouts.fgvc_aircraft, tmp_path, "images")
    assert "got 'images/../../outside.jpg', which leads out of it" in line


# What never ends.


def names_file(path):
    return own.read(path.with_name("split.json"), path)


def wnids_file(path):
    return layouts.imagenet_class_names(path.parent)


READERS = {
    "table.csv": own.read,
    "other.json": own.read,
    "names.txt": names_file,
    layouts.CLASS_NAMES_FILE: wnids_file,
    "features.npz": features.read,
    "0.jpg": decoding.read,
}


@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "folder"])
@pytest.mark.parametrize("name", READERS)
def test_what_never_ends_is_refused_at_once(folder, tmp_path, name, kind):
    write_images(tmp_path, NAMES)
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    path = tmp_path / name
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "circle":
            path.symlink_to(path)
        case "folder":
            path.mkdir()
    with pytest.raises((InputError, OSError)) as error:
        READERS[name](path)
    assert isinstance(error.value, InputError) == (name != "0.jpg")
    assert "\n" not in str(error.value)


# What is in them.


def reads_or_refuses(read, *arguments):
    """What a reader returns; None where it refuses in one line of bounded length."""
    try:
        return read(*arguments)
    except InputError as error:
        assert "\n" not in str(error).strip() and len(str(error)) < 5_000
        return None


def test_columns_of_several_lines_are_said_in_one(tmp_path):
    for header, line in (('"a\nb",label', "x,y"), ('path,label,"a\nb"', "x,,z")):
        (tmp_path / "table.csv").write_text(f"{header}\n{line}\n")
        with pytest.raises(InputError, match=r"a\\nb") as error:
            READERS["table.csv"](tmp_path / "table.csv")
        assert "\n" not in str(error.value)


CELLS = st.text(st.characters(max_codepoint=0x2FF), max_size=5) | st.sampled_from(
    [*NAMES, "a", "b", "train", "test", "val", "path", "label", "split", '"', ",", "../0.png"]
)


@given(rows=st.lists(st.lists(CELLS, max_size=4), max_size=8), head=st.booleans())
def test_tables(folder, rows, head):
    lines = [",".join(row) for row in rows]
    (folder / "table.csv").write_text("\n".join(["path,label"] * head + lines), newline="")
    listing = reads_or_refuses(own.read, folder / "table.csv")
    if listing is not None:
        assert all((folder / path).is_file() for path in listing.splits["train"].paths)


@given(content=st.binary(max_size=60))
def test_bytes_in_place_of_tables_and_names(folder, content):
    (folder / "bytes.csv").write_bytes(b"path,label\n" + content)
    (folder / "bytes.json").write_bytes(content)
    (folder / "bytes.txt").write_bytes(content)
    (folder / layouts.CLASS_NAMES_FILE).write_bytes(content)
    (folder / "split.json").write_text(json.dumps(SPLIT))
    reads_or_refuses(own.read, folder / "bytes.csv")
    reads_or_refuses(own.read, folder / "bytes.json")
    reads_or_refuses(own.read, folder / "split.json", folder / "bytes.txt")
    reads_or_refuses(layouts.imagenet_class_names, folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
LABELS = st.integers(-1, 3)
ROWS = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | JSON, st.integers(-1, 3) | JSON, st.sampled_from("ab") | JSON
    )
    | JSON,
    max_size=5,
)


@given(split=st.fixed_dictionaries({"train": ROWS, "test": ROWS}, optional={"val": ROWS}) | JSON)
def test_split_files(folder, split):
    (folder / "any.json").write_text(json.dumps(split))
    listing = reads_or_refuses(own.read, folder / "any.json")
    if listing is not None:
        labels = [label for files in listing.splits.values() for label in files.labels]
        assert set(labels) <= set(range(len(listing.class_names)))


LINES = st.lists(
    st.tuples(st.sampled_from(["0", "1", "2", ""]), st.sampled_from([" ", "\t", ""]), CELLS),
    max_size=4,
)


@given(lines=LINES)
def test_class_names(folder, lines):
    (folder / "split.json").write_text(json.dumps(SPLIT))
    (folder / "names.txt").write_text("\n".join(map("".join, lines)), newline="")
    listing = reads_or_refuses(own.read, folder / "split.json", folder / "names.txt")
    assert listing is None or len(listing.class_names) == 2


ARRAYS = {
    "class_names": np.array(["cat", "dog"]),
    "text_features": np.eye(2, 4),
    "test_features": np.ones((2, 4), np.float32),
    "test_labels": np.array([0, 1]),
}


def archive(arrays):
    """An .npz whose arrays are these bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in arrays.items():
            opened.writestr(f"{name}.npy", content)
    return file.getvalue()


def stored(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@given(name=st.sampled_from(sorted(ARRAYS)), at=st.integers(0, 200), byte=st.integers(0, 255))
def test_features(folder, name, at, byte):
    contents = {key: stored(array) for key, array in ARRAYS.items()}
    changed = bytearray(contents[name])
    changed[at % len(changed)] = byte
    path = folder / "features.npz"
    path.write_bytes(archive({**contents, name: bytes(changed)}))
    dataset = reads_or_refuses(features.read, path)
    assert dataset is None or np.isfinite(dataset.test.features).all()
    path.write_bytes(archive(contents)[: at * 3])
    reads_or_refuses(features.read, path)


def test_texts_of_no_character_are_refused(folder):
    names = np.array(["cat", "dog"])
    names.view(np.uint32)[0] = 0x110000
    np.savez(folder / "features.npz", **{**ARRAYS, "class_names": names})
    line = refusal(features.read, folder / "features.npz")
    assert "class_names: expected texts of Unicode's characters" in line


RECORDS = [
    {"label": index % 3, "file_name": name, "image": b""} for index, name in enumerate(NAMES)
]


@given(at=st.integers(0, 2000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_index_is_not_used(folder, at, byte, cut):
    kept = folder / "index.npz"
    kept.unlink(missing_ok=True)
    expected = records.index(RECORDS, kept)
    content = bytearray(kept.read_bytes())
    at %= len(content)
    content[at] = byte
    kept.write_bytes(content[:at] if cut else content)
    for _ in range(2):
        for got, wanted in zip(records.index(RECORDS, kept), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def image(format):
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, format)
    return file.getvalue()


IMAGES = [image(format) for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


@given(
    content=st.sampled_from(IMAGES),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    length=st.integers(0, 2000),
)
def test_images(content, changes, length):
    changed = bytearray(content)
    for at, byte in changes:
        changed[at % len(changed)] = byte
    decoded = reads_or_refuses(lambda: decoding.decode(bytes(changed[:length]), "a", upright=True))
    assert decoded is None or decoded.width * decoded.height <= decoding.LARGEST


@given(text=st.text(string.printable, max_size=40))
def test_names_of_wnids(folder, text):
    (folder / layouts.CLASS_NAMES_FILE).write_text(text)
    names = reads_or_refuses(layouts.imagenet_class_names, folder)
    assert names is None or list(names) == sorted(names)
