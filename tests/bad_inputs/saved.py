"""Saved methods that are damaged, forged, or belong to another CLIP."""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from bad_inputs import Case
from bad_inputs.valid import change_json, clip, images, saved, write_saved
from coop_jax.saved import files

WIDTH, CLASSES, N_CTX = 96, 2, 16


def _context(value: Any = 0, shape: Sequence[int] = (N_CTX, WIDTH)) -> dict[str, np.ndarray]:
    return {"context": np.full(shape, value, np.float32)}


TENSORS: dict[str, dict[str, np.ndarray | None]] = {
    "another width": _context(shape=(N_CTX, 95)),
    "another number of vectors": _context(shape=(5, WIDTH)),
    "vectors of three axes": _context(shape=(CLASSES, N_CTX, WIDTH)),
    "vectors of one axis": _context(shape=(WIDTH,)),
    "no numbers in its vectors": _context(shape=(0, WIDTH)),
    "NaN": _context(np.nan),
    "infinity": _context(np.inf),
    "1e38": _context(1e38),
    "-1e30": _context(-1e30),
    "no vectors": {"context": None},
    "a tensor too many": {"other": np.zeros(3, np.float32)},
    "another tensor in place of its own": {
        "context": None,
        "other": np.zeros((16, 96), np.float32),
    },
    "vectors of float64": {"context": np.zeros((N_CTX, WIDTH))},
    "vectors of int32": {"context": np.zeros((N_CTX, WIDTH), np.int32)},
    "texts of given features": {f"{files.SPACE}texts": np.zeros((1, 2, 96), np.float32)},
}
RECORDS: dict[str, dict[str, Any]] = {
    "an unknown method": {"method": "no_such_method"},
    "a method of a file that is not there": {"method": "gone.py"},
    "a method of a file with a null character": {"method": "\0.py"},
    "a method that is a module of the package": {"method": "base"},
    "a method above": {"method": "../saved"},
    "another method": {"method": "cocoop"},
    "a setting too many": {"settings": {"other": 1}},
    "a setting of another type": {"settings": {"n_ctx": "many"}},
    "a setting out of range": {"settings": {"n_ctx": 10**11}},
    "a setting of 2**65": {"settings": {"n_ctx": 2**65}},
    "a position that is none": {"settings": {"class_token_position": "left"}},
    "no classes": {"class_names": [], "class_ids": []},
    "an empty class name": {"class_names": ["cat", ""], "class_ids": ["cat", ""]},
    "fewer ids than names": {"class_ids": ["cat"]},
    "a class name of 100,000 characters": {"class_names": ["cat", "x" * 100_000]},
    "another fingerprint": {"fingerprint": "0" * 64},
    "no fingerprint": {"fingerprint": ""},
    "a CLIP that is not there": {"backbone": "no/such/clip/here"},
    "a CLIP with a null character": {"backbone": "a\0b"},
    "a per_class of what is not there": {"per_class": ["other"]},
    "a class_ids of numbers": {"class_ids": [1, 2]},
    "code of a file": {"code": "0" * 64},
    "heads of nonsense": {"training": {"heads": ["a", {}], "activation": 3}},
    "heads of a number": {"training": {"heads": 3}},
    "a template without a place": {"template": "a photo", "method": "zero_shot"},
}
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "is empty": lambda content: b"",
    "is torn": lambda content: content[: len(content) // 2],
    "has a byte changed": lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
    "has a byte more": lambda content: content + b" ",
    "is of zeros": lambda content: bytes(len(content)),
}
TEXTS: dict[str, str] = {
    "is a list": "[]",
    "is null": "null",
    "is a number": "3",
    "is nested 200,000 deep": "[" * 200_000,
    "is an object nested 200,000 deep": '{"format":' * 200_000,
    "is of 50 MB": '{"format": "%s"}' % ("x" * 50_000_000),
    "has no format": "{}",
    "is not UTF-8": "\xff\xfe",
}
PLACES: dict[str, Callable[[Path], object]] = {
    "is gone": lambda path: None,
    "is a folder": os.mkdir,
    "is a fifo": os.mkfifo,
    "leads to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "leads to itself": lambda path: path.symlink_to(path.name),
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, tensors in TENSORS.items():
        yield _case(f"a prompt with {name}", functools.partial(saved, tensors=tensors))
    for name, record in RECORDS.items():
        yield _case(f"a record with {name}", functools.partial(_forged, record))
    for file in (files.RECORD, files.TENSORS):
        for name, change in BYTES.items():
            yield _case(f"{file} {name}", functools.partial(_changed, file, change))
        for name, make in PLACES.items():
            yield _case(f"{file} {name}", functools.partial(_replaced, file, make))
    for name, text in TEXTS.items():
        write = functools.partial(_changed, files.RECORD, _constant(text.encode("latin-1")))
        yield _case(f"{files.RECORD} {name}", write)
    for field in ("format", "format_version", "sha256", files.TENSORS_DIGEST, *files.FIELDS):
        for value in (None, 3, {"a": 1}):
            write = functools.partial(_unsigned, field, value)
            yield _case(f"{field} of {files.RECORD} is {value!r}, unsigned", write)
    for name in ("gone", "/dev/null", "", "..", "\0", "x" * 5000, "\udcff"):
        yield _words(f"interpret of {name:.20}", ["interpret", name], "saved method|name of a file")
    yield _case("a record with a method of a file beside it", _with_code)
    yield _words("another CLIP", ["interpret", "saved", "--clip=clip"], "fingerprint", clip=True)
    for command in COMMANDS:
        yield _words(" ".join(command)[:60], command, "")


COMMANDS: list[list[str]] = [
    ["predict", "saved", "images", "--classes=cat"],
    ["predict", "saved", "images", "--classes=cat,cat"],
    ["predict", "saved", "images", "--classes=gone.txt"],
    ["predict", "saved", "images", "--classes=dataset:gone"],
    ["predict", "saved", "images", "--classes=dataset:"],
    ["predict", "saved", "images", "--csv=gone/new.csv"],
    ["predict", "saved", "images", "--csv=saved/method.json"],
    ["predict", "saved", "images", "--csv=new", "--json=new"],
    ["predict", "saved", "images", "--csv=/dev/null/new"],
    ["predict", "saved", "images", "--csv=" + "x" * 5000],
    ["evaluate", "saved", "gone"],
    ["evaluate", "saved", "images", "--split=other"],
    ["evaluate", "saved", "images", "--split=val"],
    ["evaluate", "saved", "images", "--png=images"],
    ["interpret", "saved", "--class=cat"],
    ["export", "saved", "new.txt"],
    ["export", "saved", "gone/new.npz"],
    ["export", "saved", "saved/method.json"],
    ["export", "saved", "images"],
    ["push", "saved", "no slash"],
    ["push", "gone", "user/name"],
    ["pull", "../above", "new"],
    ["pull", "a/b/c", "new"],
    ["fit", "images", "saved", "--clip=tiny"],
    ["fit", "images", "images/train/cat/0.jpg", "--clip=tiny"],
]


def _case(name: str, make: Callable[[Path], object]) -> Case:
    def words(folder: Path) -> Sequence[str]:
        make(folder)
        return ["interpret", "saved"]

    return Case("saved", name, words, "")


def _words(name: str, words: Sequence[str], says: str, clip: bool = False) -> Case:
    def make(folder: Path) -> Sequence[str]:
        saved(folder)
        images(folder)
        if clip:
            _another(folder)
        return words

    return Case("saved", name, make, says)


def _with_code(folder: Path) -> None:
    code = 'import os\nos.mkdir("ran")\n'
    digest = hashlib.sha256(code.encode()).hexdigest()
    _forged({"method": "saved/mine.py", "code": digest}, folder)
    (folder / "saved" / "mine.py").write_text(code)


def _another(folder: Path) -> None:
    """A CLIP with other weights."""
    path = clip(folder) / "model.safetensors"
    tensors = load(path.read_bytes())
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"] + 1
    path.write_bytes(save(tensors))


def _forged(changes: dict[str, Any], folder: Path) -> None:
    place = saved(folder)
    stated = json.loads((place / files.RECORD).read_text())
    tensors = load((place / files.TENSORS).read_bytes())
    for path in (place / files.RECORD, place / files.TENSORS):
        path.unlink()
    place.rmdir()
    record = {name: stated[name] for name in files.FIELDS}
    if "settings" in changes:
        changes = changes | {"settings": record["settings"] | changes["settings"]}
    write_saved(folder, record | changes, tensors)


def _unsigned(field: str, value: Any, folder: Path) -> None:
    change_json(saved(folder) / files.RECORD, **{field: [value]})


def _constant(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


def _changed(file: str, change: Callable[[bytes], bytes], folder: Path) -> None:
    path = saved(folder) / file
    path.write_bytes(change(path.read_bytes()))


def _replaced(file: str, make: Callable[[Path], object], folder: Path) -> None:
    path = saved(folder) / file
    path.unlink()
    make(path)
