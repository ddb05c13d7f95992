"""Tables, split files and folders of labelled images that are none."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from makers import coop_data

from bad_inputs import Case
from bad_inputs.valid import FIT, images

HEADER = "path,label,split\n"
ROW = "images/train/cat/0.jpg,cat,train\nimages/train/dog/0.jpg,dog,train\n"
TABLES: dict[str, bytes] = {
    "is empty": b"",
    "has a header alone": HEADER.encode(),
    "has no header": ROW.encode(),
    "has other columns": b"file,class\na.jpg,cat\n",
    "has null characters": f"{HEADER}images/train/cat/0.jpg\0,cat,train\n".encode(),
    "has a line of 10 MB": f"{HEADER}{'x' * 10**7},cat,train\n".encode(),
    "has quotes that do not end": f'{HEADER}"images/train/cat/0.jpg,cat,train\n'.encode(),
    "has rows of two values": f"{HEADER}images/train/cat/0.jpg,cat\n".encode(),
    "has rows of five values": f"{HEADER}images/train/cat/0.jpg,cat,train,a,b\n".encode(),
    "has an empty path": f"{HEADER},cat,train\n".encode(),
    "has an empty label": f"{HEADER}images/train/cat/0.jpg,,train\n".encode(),
    "has an unknown split": f"{HEADER}images/train/cat/0.jpg,cat,trane\n".encode(),
    "has a column twice": b"path,path,label,split\na,b,c,train\n",
    "names what is not there": f"{HEADER}gone.jpg,cat,train\n".encode(),
    "names a folder": f"{HEADER}images,cat,train\n".encode(),
    "names a path of 5000 characters": f"{HEADER}{'x' * 5000},cat,train\n".encode(),
    "has one class": f"{HEADER}images/train/cat/0.jpg,cat,train\n".encode(),
    "is in Latin-1": f"{HEADER}images/train/cat/0.jpg,k\xe4tzchen,train\n".encode("latin-1"),
    "is in UTF-16": (HEADER + ROW).encode("utf-16"),
    "is of zeros": bytes(10_000),
    "is an image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
}
ENTRY = ["cat/0.jpg", 0, "cat"]
SPLITS: dict[str, str] = {
    "is empty": "",
    "is no JSON": "{",
    "is a list": "[]",
    "is null": "null",
    "has other splits": '{"a": []}',
    "has no entries": '{"train": [], "val": [], "test": []}',
    "has numbers for entries": '{"train": [1, 2], "val": [], "test": []}',
    "has entries of two values": '{"train": [["a", 1]], "val": [], "test": []}',
    "has texts for labels": '{"train": [["a.jpg", "0", "cat"]], "val": [], "test": []}',
    "has negative labels": '{"train": [["a.jpg", -1, "cat"]], "val": [], "test": []}',
    "has labels of 10**30": '{"train": [["a.jpg", 1%s, "cat"]], "val": [], "test": []}'
    % ("0" * 30),
    "has fractions for labels": '{"train": [["a.jpg", 0.5, "cat"]], "val": [], "test": []}',
    "has numbers for names": '{"train": [["a.jpg", 0, 3]], "val": [], "test": []}',
    "has numbers for paths": '{"train": [[3, 0, "cat"]], "val": [], "test": []}',
    "names what is not there": json.dumps(
        {"train": [["a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]], "val": [], "test": []}
    ),
    "has a null character in a path": json.dumps(
        {"train": [["a\0", 0, "cat"]], "val": [], "test": []}
    ),
    "is nested 200,000 deep": "[" * 200_000,
    "has an object nested 200,000 deep": '{"train":' * 200_000,
    "has an integer of 10,000 digits": '{"train": [["a", 1%s, "c"]]}' % ("0" * 10_000),
    "has a split twice": '{"train": 1, "train": [], "val": [], "test": []}',
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, content in TABLES.items():
        yield _file("data.csv", name, functools.partial(_write, content))
    for name, text in SPLITS.items():
        yield _file("data.json", name, functools.partial(_write, text.encode()))
    for file in ("data.csv", "data.json", "data.npz", "data"):
        yield _file(file, "is a fifo", os.mkfifo)
        yield _file(file, "is a link to itself", lambda path: path.symlink_to(path.name))
        yield _file(file, "leads to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
        yield _file(file, "leads to nothing", lambda path: path.symlink_to("gone"))
    for file in ("data.csv", "data.json", "data.npz"):
        yield _file(file, "is an empty folder", os.mkdir)
    for name, make in FOLDERS.items():
        yield _file("data", name, make)
    for name, content in NAMES.items():
        make = functools.partial(_names, content)
        yield Case("datasets", f"a file of class names {name}", make, r"names\.txt|label|class")
    yield Case("datasets", "a split file of a known dataset is torn", _torn_split, "split_zhou")
    yield Case("datasets", "a known dataset is not there", _nowhere, "dtd")


def _file(file: str, name: str, make: Callable[[Path], object]) -> Case:
    def words(folder: Path) -> Sequence[str]:
        images(folder)
        make(folder / file)
        return ["fit", file, *FIT[2:]]

    return Case("datasets", f"{file} {name}", words, "")


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _folder(files: dict[str, bytes], path: Path) -> None:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def _loop(path: Path) -> None:
    for name in ("cat", "dog"):
        (path / "train" / name).mkdir(parents=True)
        (path / "train" / name / "again").symlink_to("../..")


FOLDERS: dict[str, Callable[[Path], object]] = {
    "is empty": lambda path: path.mkdir(),
    "has one class": functools.partial(_folder, {"cat/0.jpg": b"", "cat/1.jpg": b""}),
    "has no images": functools.partial(_folder, {"cat/a.txt": b"", "dog/b.txt": b""}),
    "has images alone": functools.partial(_folder, {"0.jpg": b"", "1.jpg": b""}),
    "has train without classes": functools.partial(_folder, {"train/0.jpg": b""}),
    "has test alone": functools.partial(_folder, {"test/a/0.jpg": b"", "test/b/0.jpg": b""}),
    "has links in a circle": _loop,
}
NAMES: dict[str, bytes] = {
    "is empty": b"",
    "has numbers alone": b"0\n1\n",
    "names a class twice": b"cat a\ncat b\n",
    "leaves a class out": b"cat a\n",
    "names another class": b"cat a\ndog b\nhen c\n",
    "not UTF-8": b"cat \xff\ndog b\n",
    "with a null character": b"cat \0\ndog b\n",
}


def _names(content: bytes, folder: Path) -> Sequence[str]:
    images(folder)
    (folder / "names.txt").write_bytes(content)
    return [*FIT, "--class-names=names.txt"]


def _torn_split(folder: Path) -> Sequence[str]:
    coop_data(folder / "data", ["dtd"], classes=2)
    path = folder / "data" / "dtd" / "split_zhou_DescribableTextures.json"
    path.write_text(path.read_text()[:100])
    return ["fit", "dtd", *FIT[2:], "--data-dir=data"]


def _nowhere(folder: Path) -> Sequence[str]:
    return ["fit", "dtd", *FIT[2:], "--data-dir=data"]
