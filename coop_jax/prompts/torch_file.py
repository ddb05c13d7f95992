"""Tensors in files of PyTorch (`torch.save`, zip format), read and written without PyTorch.

A file is a zip archive: `data.pkl` describes objects, and each tensor's numbers lie in an entry
`data/KEY` of their own. A pickle can name any function to call, so nothing is called here: a few
names stand for tensors and plain containers, an optimizer's and a scheduler's objects become
placeholders that keep nothing, and every other name is refused.
"""

import errno
import io
import math
import pickle
import pickletools
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coop_jax.errors import InputError

STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16"}
"""The kinds of numbers that are read and written; others may be there, but not be asked for."""

INERT_PACKAGES = ("torch.optim", "dassl.optim")
INERT_NAMES = {
    ("builtins", "dict"),
    ("__builtin__", "dict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
}
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""What files of PyTorch before 1.6 begin with."""


class _Inert:
    """In place of an object that nobody needs: takes whatever a pickle gives it, keeps nothing."""

    def __new__(cls, *arguments: Any, **named: Any) -> "_Inert":
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Rebuild:
    """In place of the functions that make tensors; has no attributes that a pickle could set."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> "Tensor":
        return Tensor(storage, offset, shape, stride)


class _First:
    """In place of functions whose first argument is all that counts; as `_Rebuild`."""

    __slots__ = ()

    def __call__(self, value: Any, *_: Any) -> Any:
        return value


class _Dict(dict[Any, Any]):
    """In place of an ordered dictionary, without the attributes that a pickle may give it."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(NamedTuple):
    """Numbers in the entry `data/KEY` of the archive."""

    key: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """Where a tensor lies; its numbers are read, and its place checked, when they are asked for."""

    storage: Any
    offset: Any
    shape: Any
    stride: Any


class _Unpickler(pickle.Unpickler):
    """Makes containers, `Tensor`s and placeholders, and nothing else.

    What it hands out is immutable (objects without attributes, named tuples, texts) or belongs to
    the pickle alone, so that no pickle can change what the next one meets.
    """

    def find_class(self, module: str, name: str) -> Any:
        """What stands for this name.

        Raises:
            InputError: nothing does; the message is the name.
        """
        known = {
            ("collections", "OrderedDict"): _Dict,
            ("torch._utils", "_rebuild_tensor"): _Rebuild(),
            ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(),
            ("torch._utils", "_rebuild_parameter"): _First(),
            ("torch", "Size"): _First(),
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name.endswith("Storage"):
            return STORAGES.get(name, name)
        package = ".".join(module.split(".")[:2])
        if package in INERT_PACKAGES or (module, name) in INERT_NAMES:
            return _Inert
        raise InputError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage, which is all that PyTorch leaves out of its pickles."""
        kind, dtype, key, _, size = pid
        if kind != "storage":
            raise ValueError("a persistent id that is no storage")
        return _Storage(key, dtype, size)


class TorchFile:
    """A file that `torch.save` wrote: `content` has a `Tensor` in place of each tensor.

    Raises:
        InputError: the file is missing, damaged, of another or of the old format, or its pickle
            names anything but tensors, plain containers and an optimizer's objects.
    """

    def __init__(self, path: Path):
        self._path = path
        if not path.is_file():
            raise InputError(f"expected a file of torch.save, got {path}, no file; name one")
        try:
            self._refuse_legacy()
            with zipfile.ZipFile(path) as archive:
                self._entries = self._stored(archive)
                pickled = archive.read(self._entry("data.pkl"))
                self._is_big_endian = (
                    "byteorder" in self._entries
                    and archive.read(self._entry("byteorder")) == b"big"
                )
        except InputError:
            raise
        except Exception as error:  # zipfile has many for damaged archives
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        self.content = self._unpickle(pickled)

    def read(self, tensor: Tensor) -> np.ndarray:
        """A tensor's numbers, float32 or float16.

        Raises:
            InputError: they are of another kind, do not lie one behind the other, or are not in
                the file.
        """
        if not _has_place(tensor):
            raise self._damaged("a tensor without a place")
        storage, shape, stride = tensor.storage, tensor.shape, tensor.stride
        if storage.dtype not in STORAGES.values():
            raise InputError(
                f"{self._path}: expected tensors of {' or '.join(STORAGES.values())}, got one of"
                f" {storage.dtype!a:.80}; convert it in PyTorch"
            )
        count, step = math.prod(shape), 1
        for length, actual in zip(reversed(shape), reversed(stride), strict=True):
            if length > 1 and actual != step:
                raise InputError(
                    f"{self._path}: expected a contiguous tensor, got shape {list(shape)} with"
                    f" stride {list(stride)}; save tensor.contiguous()"
                )
            step *= length
        dtype = np.dtype(storage.dtype).newbyteorder(">" if self._is_big_endian else "<")
        entry = self._entry(f"data/{storage.key}")
        if entry.file_size != storage.size * dtype.itemsize or tensor.offset + count > storage.size:
            raise self._damaged("a tensor or storage of another size than stated")
        try:
            with zipfile.ZipFile(self._path) as archive:
                numbers = np.frombuffer(archive.read(entry), dtype)
        except Exception as error:  # as above
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        chosen = numbers[tensor.offset : tensor.offset + count]
        return chosen.reshape(shape).astype(storage.dtype)

    def _stored(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """The entries by their names below the top folder; they are never compressed."""
        entries = archive.infolist()
        total = sum(entry.file_size for entry in entries)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
            total > self._path.stat().st_size
        ):
            raise InputError(
                f"{self._path}: expected entries as torch.save stores them, got compressed or"
                f" overlapping ones of {total} bytes; fetch the file again"
            )
        return {entry.filename.partition("/")[2]: entry for entry in entries}

    def _entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise self._damaged(f"no entry {name}")
        return self._entries[name]

    def _unpickle(self, pickled: bytes) -> Any:
        try:
            self._check_memo(pickled)
            return _Unpickler(io.BytesIO(pickled)).load()
        except InputError as error:
            raise InputError(
                f"{self._path}: expected tensors alone, got a pickle that names"
                f" {str(error)!a:.200}, which was not run; do not trust this file"
            ) from None
        except Exception as error:  # whatever the numbers in a damaged pickle lead to
            raise self._damaged(f"{type(error).__name__}: {error}") from error

    @staticmethod
    def _check_memo(pickled: bytes) -> None:
        """Refuse sizes and places in the memo that would take more memory than the file."""
        for opcode, argument, _ in pickletools.genops(pickled):
            is_place = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
            if is_place and int(argument or 0) > len(pickled):
                raise ValueError(f"memo place {argument}")

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"{self._path}: expected a file of torch.save, got a damaged or another one"
            f" ({' '.join(reason.split()):.200}); fetch it again"
        )

    def _refuse_legacy(self) -> None:
        with self._path.open("rb") as file:
            if file.read(len(LEGACY)) != LEGACY:
                return
        raise InputError(
            f"{self._path}: expected the zip format of PyTorch 1.6 and later, got the one before;"
            " convert a file that you trust in PyTorch: torch.save(torch.load(old,"
            " map_location='cpu', weights_only=False), new)"
        )


def _has_place(tensor: Tensor) -> bool:
    """Whether a tensor's place is stated as one; not yet whether it lies in the file."""
    storage, offset, shape, stride = tensor
    if not isinstance(storage, _Storage) or type(shape) is not tuple or type(stride) is not tuple:
        return False
    numbers = [storage.size, offset, *shape, *stride]
    texts = [storage.key, storage.dtype]
    return (
        len(shape) == len(stride) <= 4
        and all(length != 0 for length in shape)
        and all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        and all(type(text) is str for text in texts)
    )


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that `torch.load` reads, `weights_only` or not.

    Args:
        path: a new file.
        content: by name: numbers, texts, arrays (float32 or float16, which become tensors), or
            mappings of these, which become ordered.

    Raises:
        OSError: it cannot be written, or is there.
    """
    pickler = _Pickler()
    pickled = pickler.pickle(content)
    if path.exists():
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        unfinished = Path(temporary) / path.name
        with zipfile.ZipFile(unfinished, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/byteorder", "little")
            for key, array in enumerate(pickler.arrays):
                archive.writestr(f"archive/data/{key}", array.tobytes())
            archive.writestr("archive/version", "3\n")
        unfinished.rename(path)


class _Pickler:
    """Writes a pickle that names PyTorch's functions without having them."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def pickle(self, value: Any) -> bytes:
        """The whole pickle, of protocol 2."""
        return pickle.PROTO + b"\x02" + self._opcodes(value) + pickle.STOP

    def _opcodes(self, value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            return self._tensor(value)
        if isinstance(value, Mapping):
            items = b"".join(self._opcodes(part) for item in value.items() for part in item)
            return self._call("collections", "OrderedDict") + self._marked(items, pickle.SETITEMS)
        if isinstance(value, tuple):
            return self._marked(b"".join(map(self._opcodes, value)), pickle.TUPLE)
        if isinstance(value, str):
            encoded = value.encode()
            return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded
        if isinstance(value, bool):
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        if isinstance(value, int):
            return pickle.LONG1 + b"\x08" + struct.pack("<q", value)
        raise TypeError(f"cannot write {type(value).__name__}")

    def _tensor(self, array: np.ndarray) -> bytes:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        kind = {dtype: name for name, dtype in STORAGES.items()}[array.dtype.name]
        key, self.arrays = str(len(self.arrays)), [*self.arrays, little]
        place = b"".join(
            (
                self._opcodes("storage"),
                self._global("torch", kind),
                *map(self._opcodes, (key, "cpu", array.size)),
            )
        )
        stride = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        arguments = b"".join(
            (
                self._marked(place, pickle.TUPLE) + pickle.BINPERSID,
                *map(self._opcodes, (0, array.shape, stride, False, {})),
            )
        )
        return (
            self._global("torch._utils", "_rebuild_tensor_v2")
            + self._marked(arguments, pickle.TUPLE)
            + pickle.REDUCE
        )

    @staticmethod
    def _global(module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def _call(self, module: str, name: str) -> bytes:
        return self._global(module, name) + pickle.EMPTY_TUPLE + pickle.REDUCE

    @staticmethod
    def _marked(content: bytes, opcode: bytes) -> bytes:
        return pickle.MARK + content + opcode
