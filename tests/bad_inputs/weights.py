"""Files of weights that are damaged, lie about themselves, or point elsewhere."""

import functools
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lone import TRANSFORMERS
from safetensors.numpy import load_file, save_file

from bad_inputs import Case
from bad_inputs.valid import FIT, clip, images

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
TENSOR = "logit_scale"
SHARDED = TRANSFORMERS.with_name("transformers_gelu_sharded")
OF_99 = TRANSFORMERS.with_name("tokenizer_of_99")


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, change in BYTES.items():
        yield _case(name, functools.partial(_change_bytes, change), f"{FILE}|clip: ")
    for name, change in TENSORS.items():
        yield _case(name, functools.partial(_change_tensors, change), "")
    for name, make in PLACES.items():
        yield _case(f"the weights are {name}", functools.partial(_replace, make), "")
    for name, index in INDICES.items():
        yield _sharded(
            f"an index {name}", f"{INDEX}|clip/config", functools.partial(_write_index, index)
        )
    for name, change in SHARDS.items():
        yield _sharded(f"shards {name}", "", change)


def _header(header: Any, rest: bytes = b"") -> bytes:
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + rest


def _entry(begin: int, end: int, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "an empty file": lambda content: b"",
    "a file of 7 bytes": lambda content: content[:7],
    "a torn header": lambda content: content[:100],
    "torn numbers": lambda content: content[: len(content) // 2],
    "a byte less": lambda content: content[:-1],
    "a byte more": lambda content: content + b"\0",
    "a header of 2**60 bytes": lambda content: struct.pack("<Q", 2**60) + content[8:],
    "a header of no bytes": lambda content: struct.pack("<Q", 0) + content[8:],
    "a header that is no JSON": lambda content: struct.pack("<Q", 4) + b"{{{{",
    "a header nested deeply": lambda content: struct.pack("<Q", 10**6) + b'{"a":' * 200_000,
    "a header not UTF-8": lambda content: struct.pack("<Q", 4) + b'{"\xff}',
    "an empty header": lambda content: _header({}),
    "overlapping offsets": lambda content: _header(
        {"a": _entry(0, 4), "b": _entry(2, 6)}, bytes(6)
    ),
    "offsets behind the end": lambda content: _header({"a": _entry(0, 2**40, [2**38])}, bytes(4)),
    "negative offsets": lambda content: _header({"a": _entry(-4, 0)}, bytes(4)),
    "a shape that overflows": lambda content: _header({"a": _entry(0, 4, [2**40] * 3)}, bytes(4)),
    "a shape that is no list": lambda content: _header({"a": _entry(0, 4, "x")}, bytes(4)),
    "an unknown dtype": lambda content: _header({"a": _entry(0, 4, [1], "F33")}, bytes(4)),
    "a tensor named twice": lambda content: struct.pack("<Q", len(TWICE)) + TWICE + bytes(8),
    "metadata of numbers": lambda content: _header({"__metadata__": {"a": 3}}),
    "a page of HTML": lambda content: b"<!DOCTYPE html><html>not here</html>",
    "a pointer of Git LFS": lambda content: b"version https://git-lfs.github.com/spec/v1\n",
    "a zip": lambda content: b"PK\x05\x06" + bytes(18),
    "zeros": lambda content: bytes(1000),
}
TWICE = (
    json.dumps({"x": _entry(0, 4)})[:-1].encode()
    + b', "x": '
    + json.dumps(_entry(4, 8)).encode()
    + b"}"
)

Tensors = dict[str, np.ndarray]


def _filled(value: float, tensors: Tensors) -> Tensors:
    name = max(tensors, key=lambda name: tensors[name].size)
    return tensors | {name: np.full_like(tensors[name], value)}


TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    "a missing tensor": lambda t: {name: t[name] for name in t if name != TENSOR},
    "a tensor too many": lambda t: t | {"text_model.other": np.zeros(3, np.float32)},
    "a tensor of float64": lambda t: t | {TENSOR: t[TENSOR].astype(np.float64)},
    "a tensor of int8": lambda t: t | {TENSOR: t[TENSOR].astype(np.int8)},
    "a tensor of another shape": lambda t: t | {TENSOR: np.zeros((2, 2), np.float32)},
    "a tensor without numbers": lambda t: t | {TENSOR: np.zeros((0,), np.float32)},
    "weights of NaN": functools.partial(_filled, np.nan),
    "weights of infinity": functools.partial(_filled, np.inf),
    "a logit scale of 1e30": lambda t: t | {TENSOR: np.full_like(t[TENSOR], 1e30)},
    "no tensors": lambda t: {},
    "tensors of something else": lambda t: {"bert.weight": np.zeros((2, 2), np.float32)},
}
PLACES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a fifo": os.mkfifo,
    "a link to nothing": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}
INDICES = {
    "is a list": [],
    "without a map": {},
    "with a list for a map": {"weight_map": [1]},
    "with an empty map": {"weight_map": {}},
    "naming a number": {"weight_map": {TENSOR: 3}},
    "naming a file above": {"weight_map": {TENSOR: "../clip/model.safetensors"}},
    "naming an absolute file": {"weight_map": {TENSOR: "/etc/passwd"}},
    "naming the folder": {"weight_map": {TENSOR: "."}},
    "naming the folder above": {"weight_map": {TENSOR: ".."}},
    "naming nothing": {"weight_map": {TENSOR: ""}},
    "naming a file that is not there": {"weight_map": {TENSOR: "gone.safetensors"}},
    "naming a file with a null character": {"weight_map": {TENSOR: "a\0b"}},
    "naming a file of 5000 characters": {"weight_map": {TENSOR: "x" * 5000}},
    "naming itself": {"weight_map": {TENSOR: INDEX}},
    "naming the config": {"weight_map": {TENSOR: "config.json"}},
}


def _first(folder: Path) -> Path:
    return folder / "model-00001-of-00004.safetensors"


def _fifo(folder: Path) -> None:
    _first(folder).unlink()
    os.mkfifo(_first(folder))


def _pickles(folder: Path) -> None:
    _first(folder).write_bytes(b"\x80\x02}q\x00.")


def _repeat(folder: Path) -> None:
    """Let two shards have a tensor of one name, with other numbers."""
    second = folder / "model-00002-of-00004.safetensors"
    name, tensor = next(iter(load_file(_first(folder)).items()))
    save_file(load_file(second) | {name: np.ones_like(tensor)}, second)


SHARDS: dict[str, Callable[[Path], None]] = {
    "of which one is missing": lambda folder: _first(folder).unlink(),
    "of which one is empty": lambda folder: _first(folder).write_bytes(b"") and None,
    "of which one is a fifo": _fifo,
    "of which one is a pickle": _pickles,
    "with a tensor in two of them": _repeat,
}


def _case(name: str, change: Callable[[Path], None], says: str) -> Case:
    def make(folder: Path) -> list[str]:
        images(folder)
        change(clip(folder) / FILE)
        return [*FIT, "--clip=clip"]

    return Case("weights", name, make, says)


def _sharded(name: str, says: str, change: Callable[[Path], None]) -> Case:
    def make(folder: Path) -> list[str]:
        images(folder)
        change(shutil.copytree(SHARDED, folder / "clip"))
        return [*FIT, "--clip=clip", f"--tokenizer={OF_99}"]

    return Case("weights", name, make, says)


def _change_bytes(change: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(change(path.read_bytes()))


def _change_tensors(change: Callable[[Tensors], Tensors], path: Path) -> None:
    save_file(change(load_file(path)), path)


def _replace(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


def _write_index(index: Any, folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps(index))
