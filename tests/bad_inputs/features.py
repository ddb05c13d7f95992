"""Files of features that hold something else, or claim too much."""

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from makers import feature_arrays

from bad_inputs import Case
from bad_inputs.valid import features

FIT = ("fit", "features.npz", "new", "--method=tip_adapter", "--shots=1", "--epochs=1")
ARRAYS = feature_arrays()
IMAGES = ARRAYS["train_features"]
LABELS = ARRAYS["train_labels"]


def _with(value: Any) -> np.ndarray:
    changed = IMAGES.copy()
    changed[0, 0] = value
    return changed


CHANGES: dict[str, dict[str, Any]] = {
    "no class names": {"class_names": None},
    "no text features": {"text_features": None},
    "no training features": {"train_features": None},
    "no labels": {"train_labels": None},
    "no test features": {"test_features": None},
    "an unknown array": {"other_features": IMAGES},
    "class names of numbers": {"class_names": np.arange(4)},
    "class names as objects": {"class_names": np.array(["a", "b", "c", None], object)},
    "a class name twice": {"class_names": np.array(["a", "a", "b", "c"])},
    "an empty class name": {"class_names": np.array(["", "a", "b", "c"])},
    "class names of two axes": {"class_names": np.array([["a", "b"], ["c", "d"]])},
    "no class": {"class_names": np.array([], str)},
    "three class names of four": {"class_names": np.array(["a", "b", "c"])},
    "NaN": {"train_features": _with(np.nan)},
    "infinity": {"train_features": _with(np.inf)},
    "features of zeros": {"train_features": np.zeros_like(IMAGES)},
    "1e38": {"train_features": _with(1e38)},
    "NaN in texts": {"text_features": np.full_like(ARRAYS["text_features"], np.nan)},
    "texts of zeros": {"text_features": np.zeros_like(ARRAYS["text_features"])},
    "features of texts": {"train_features": np.array([["a"] * 12] * 12)},
    "features of complex numbers": {"train_features": IMAGES.astype(complex)},
    "features of truth values": {"train_features": IMAGES > 0},
    "another width": {"train_features": IMAGES[:, :11]},
    "features of one axis": {"train_features": IMAGES[0]},
    "features of five axes": {"train_features": IMAGES[None, None, None]},
    "no rows": {"train_features": IMAGES[:0], "train_labels": LABELS[:0]},
    "fewer labels than features": {"train_labels": LABELS[:-1]},
    "labels of -1": {"train_labels": LABELS - 1},
    "labels of 10**9": {"train_labels": LABELS + 10**9},
    "labels of fractions": {"train_labels": LABELS + 0.5},
    "labels of NaN": {"train_labels": np.full(12, np.nan)},
    "labels of texts": {"train_labels": np.array(["a"] * 12)},
    "labels of two axes": {"train_labels": LABELS[None]},
}


def _npz(**arrays: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def _npy(header: str, numbers: bytes = b"") -> bytes:
    content = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(content)) + content + numbers


def _claims(shape: str, descr: str = "'<f4'", numbers: bytes = b"") -> bytes:
    return _npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", numbers)


class _Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


PICKLED = _claims("(1,)", "'|O'", pickle.dumps([_Runs()]))
HUGE = _claims("(1000000000,)", numbers=bytes(10**8))
BYTES: dict[str, bytes] = {
    "is empty": b"",
    "is a text": b"features",
    "is of zeros": bytes(1000),
    "is an empty zip": b"PK\x05\x06" + bytes(18),
    "is a torn zip": _npz(a=_claims("(1,)", numbers=bytes(4)))[:-30],
    "has a pickle": _npz(class_names=PICKLED),
    "is a pickle": pickle.dumps([_Runs()]),
    "is an array that is a pickle": PICKLED,
    "claims 2**40 rows": _npz(train_features=_claims(f"({2**40}, 512)")),
    "claims a negative shape": _npz(train_features=_claims("(-1, 5)")),
    "claims a shape beyond 64 bits": _npz(train_features=_claims(f"({2**70},)")),
    "claims a thousand axes": _npz(train_features=_claims(f"({'1,' * 1000})")),
    "is a zip bomb": _npz(train_features=HUGE),
    "has a header of code": _npz(train_features=_npy("__import__('os').mkdir('ran')")),
    "has a header nested deeply": _npz(train_features=_npy("(" * 30_000)),
    "has a header that is no text": _npz(train_features=_npy("\0")),
    "has a dtype nested deeply": _npz(train_features=_claims("(1,)", "[('a'," * 3000)),
    "has names that lead above": _npz(**{"../../above": _claims("(1,)", numbers=bytes(4))}),
    "has a zip in it": _npz(train_features=_npz(a=b"")),
}
PLACES: dict[str, Callable[[Path], object]] = {
    "is a fifo": os.mkfifo,
    "is a folder": os.mkdir,
    "leads to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, changes in CHANGES.items():
        yield Case("features", f"a file with {name}", functools.partial(_changed, changes), "")
    for name, content in BYTES.items():
        yield Case("features", f"a file that {name}", functools.partial(_written, content), "")
    for suffix in (".npy", ".npz"):
        for name, make in PLACES.items():
            words = functools.partial(_placed, suffix, make)
            yield Case("features", f"a {suffix} that {name}", words, f"features{suffix}|image")


def _changed(changes: dict[str, Any], folder: Path) -> Sequence[str]:
    features(folder, **changes)
    return FIT


def _written(content: bytes, folder: Path) -> Sequence[str]:
    (folder / "features.npz").write_bytes(content)
    return FIT


def _placed(suffix: str, make: Callable[[Path], object], folder: Path) -> Sequence[str]:
    make(folder / f"features{suffix}")
    return ["fit", f"features{suffix}", *FIT[2:]]
