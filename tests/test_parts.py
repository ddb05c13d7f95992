"""Images without a split: each one's part is a property of the image, and of nothing else."""

import csv
import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import refusal

from coop_jax.data import own, parts

PARTS = ("train", "val", "test")


def write(root, contents):
    """Files of these bytes, by path; for what is read here they need not be images."""
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def photographs(count, *classes, start=0):
    return {
        f"{name}/{number:03}.jpg": f"{name} {number}".encode()
        for name in classes
        for number in range(start, start + count)
    }


def part_by_path(path):
    splits = own.read(path).splits
    return {name: part for part in PARTS for name in splits[part].paths}


def share(content):
    return int.from_bytes(hashlib.sha256(content).digest()) / 2**256


def wanted(content):
    return "train" if share(content) < 0.5 else "val" if share(content) < 0.7 else "test"


def test_the_bytes_say_the_part(tmp_path):
    contents = photographs(40, "cat", "dog")
    found = part_by_path(write(tmp_path, contents))
    assert found == {path: wanted(content) for path, content in contents.items()}
    splits = own.read(tmp_path).splits
    for part in PARTS:
        assert list(splits[part].paths) == sorted(splits[part].paths)
        assert [path[:3] for path in splits[part].paths] == [
            ("cat", "dog")[label] for label in splits[part].labels
        ]


def test_the_shares_are_about_50_20_and_30_percent(tmp_path):
    found = list(part_by_path(write(tmp_path, photographs(500, "cat", "dog"))).values())
    np.testing.assert_allclose([found.count(part) for part in PARTS], [500, 200, 300], atol=50)


def test_other_images_and_names_change_nothing(tmp_path):
    contents = photographs(40, "cat", "dog")
    before = part_by_path(write(tmp_path, contents))
    write(tmp_path, photographs(7, "cat", start=900))
    write(tmp_path, photographs(30, "a_third"))
    (tmp_path / "dog" / "000.jpg").unlink()
    (tmp_path / "dog" / "001.jpg").rename(tmp_path / "dog" / "zzz.png")
    (tmp_path / "cat").rename(tmp_path / "tabby")
    after = part_by_path(tmp_path)
    assert after["dog/zzz.png"] == before["dog/001.jpg"]
    for path in contents.keys() - {"dog/000.jpg", "dog/001.jpg"}:
        assert after[path.replace("cat/", "tabby/")] == before[path]


def test_copies_of_an_image_are_in_one_part(tmp_path):
    contents = photographs(20, "cat", "dog")
    copies = {f"{path[:4]}copy_of_{path[4:]}": content for path, content in contents.items()}
    moved = {path.replace("dog", "cat/more"): contents[path] for path in contents}
    found = part_by_path(write(tmp_path, contents | copies | moved))
    assert len(found) == 100
    for path, content in (contents | copies | moved).items():
        assert found[path] == wanted(content)


def test_a_table_in_any_order_has_the_same_parts_as_its_folder(tmp_path):
    contents = photographs(25, "cat", "dog")
    before = part_by_path(write(tmp_path, contents))
    rows = [(path, path[:3]) for path in contents]
    random.Random(0).shuffle(rows)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    splits = own.read(tmp_path / "table.csv").splits
    assert part_by_path(tmp_path / "table.csv") == before
    order = [path for path, _ in rows]
    for part in PARTS:
        assert list(splits[part].paths) == [path for path in order if before[path] == part]


digests = st.binary(min_size=1, max_size=8).map(lambda content: hashlib.sha256(content).hexdigest())
classes = st.sets(digests, min_size=4, max_size=30)


@given(classes)
def test_no_part_of_a_class_is_empty_and_few_images_move(images):
    found = parts.filled(images)
    assert set(found) == images and set(found.values()) == set(PARTS)
    places = [PARTS.index(found[digest]) for digest in sorted(images)]
    assert places == sorted(places)
    natural = {digest: parts.part_of(digest) for digest in images}
    moved = [digest for digest in images if found[digest] != natural[digest]]
    empty = set(PARTS) - set(natural.values())
    assert len(moved) <= 2 * len(empty)
    assert all(found[digest] in empty | {"val"} for digest in moved)


@given(classes, st.sets(digests))
def test_what_needs_no_filling_stays_whatever_is_added(images, more):
    before = parts.filled(images)
    if before == {digest: parts.part_of(digest) for digest in images}:
        after = parts.filled(images | more)
        assert {digest: after[digest] for digest in images} == before


@given(classes, digests)
def test_one_image_more_or_less_takes_none_from_train_to_test_or_back(images, another):
    fewer, more = parts.filled(images - {another} or images), parts.filled(images | {another})
    assert all({fewer[d], more[d]} != {"train", "test"} for d in fewer.keys() & more.keys())


def test_the_ends_of_the_parts():
    ends = {"0": "train", "7f": "train", "80": "val", "b3": "val", "b4": "test", "ff": "test"}
    for begin, part in ends.items():
        assert parts.part_of(begin.ljust(64, "0")) == part


def test_a_small_class_is_filled_up_and_that_is_said(tmp_path, caplog):
    names = [f"{number}".encode() for number in range(200)]
    trains = sorted((name for name in names if wanted(name) == "train"), key=share)[:5]
    contents = {f"cat/{name.decode()}.jpg": name for name in trains}
    found = part_by_path(write(tmp_path, contents | photographs(40, "dog")))
    small = [found[f"cat/{name.decode()}.jpg"] for name in trains]
    assert small == ["train", "train", "train", "val", "test"]
    (said,) = caplog.messages
    assert said == (
        f"{tmp_path}: filled up the parts that small classes would leave empty (images moved: cat"
        " 2); such an image may change its part when the class grows"
    )


def test_too_few_different_images_are_refused(tmp_path):
    write(tmp_path, photographs(5, "a") | photographs(3, "b"))
    write(tmp_path, {f"c/{number}.jpg": b"the same" for number in range(6)})
    message = refusal(own.read, tmp_path)
    assert "at least 4 images of every class, no two the same, to cut them" in message
    assert "got 3 of b, 1 of c (in 6 files); add images or make the split yourself" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, photographs(4, "a"))

    def deny(file, name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parts.hashlib, "file_digest", deny)
    assert f"{tmp_path}/a/000.jpg, got an error (Permission denied)" in refusal(own.read, tmp_path)


@pytest.mark.parametrize("count", range(4, 24))
def test_every_class_has_images_in_every_part(tmp_path, count):
    splits = own.read(write(tmp_path, photographs(count, "a", "b"))).splits
    for part in PARTS:
        assert set(splits[part].labels) == {0, 1}
