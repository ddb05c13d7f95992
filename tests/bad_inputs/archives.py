"""Files of PyTorch that run code, nest without end, or claim too much."""

import functools
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bad_inputs import Case

PROMPTS = Path(__file__).parent.parent / "data" / "official_prompts"
WORDS = ("import", "prompt.pth.tar-50", "new", "--clip=tiny", "--classes=cat,dog")
DEEP = 200_000


class _Runs:
    """What makes a folder when it is unpickled."""

    def __init__(self, function: Any = os.mkdir, *arguments: Any):
        self._reduced = function, arguments or ("ran",)

    def __reduce__(self) -> Any:
        return self._reduced


def _zip(files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def _archive(content: bytes, **more: bytes) -> bytes:
    """A zip as `torch.save` writes it."""
    return _zip({"archive/data.pkl": content, "archive/version": b"3\n", **more})


def _pickled(*operations: bytes) -> bytes:
    return b"\x80\x02" + b"".join(operations) + b"."


def _legacy(content: bytes) -> bytes:
    """A file as PyTorch wrote it before version 1.6."""
    begin = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in begin) + content + pickle.dumps([], 2)


def _tensor(name: bytes, size: bytes, stride: bytes, count: int = 4) -> bytes:
    """A tensor of a storage that the archive has as `data/0`."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        + (b"J" + struct.pack("<i", count))
        + b"tQ"
    )
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride
    rebuild += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"}X" + struct.pack("<I", len(name)) + name + rebuild + b"s"


def _long(value: int) -> bytes:
    content = pickle.encode_long(value)
    return b"\x8a" + bytes([len(content)]) + content


STORAGE = {"archive/data/0": bytes(16), "archive/byteorder": b"little"}
TUPLES = b"N" + b"\x85" * DEEP
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "a text": b"not a checkpoint",
    "zeros": bytes(1000),
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a zip of nothing known": _zip({"a.txt": b"a"}),
    "a zip of an empty pickle": _archive(b""),
    "a zip of a torn pickle": _archive(b"\x80\x02}q"),
    "a zip in a zip": _zip({"archive/data.pkl": _archive(_pickled(b"}"))}),
    "a zip with names that lead above": _zip({"../data.pkl": _pickled(b"}"), "../../x": b"x"}),
    "a zip with absolute names": _zip({"/etc/data.pkl": _pickled(b"}"), "/tmp/x": b"x"}),
    "a zip with a name twice": _archive(_pickled(b"}")) + _archive(_pickled(b"}")),
    "a zip bomb": _zip({"archive/data.pkl": bytes(2 * 10**8)}, zipfile.ZIP_DEFLATED),
    "a zip bomb of numbers": _zip(
        {
            "archive/data.pkl": _pickled(_tensor(b"ctx", b"J\x00\xe1\xf5\x05\x85", b"K\x01\x85")),
            "archive/version": b"3\n",
            "archive/data/0": bytes(4 * 10**8),
        },
        zipfile.ZIP_DEFLATED,
    ),
    "a pickle of no weights": _archive(_pickled(b"}")),
    "a number": _archive(_pickled(b"K\x03")),
    "a pickle that runs code": _archive(pickle.dumps({"ctx": _Runs()}, 2)),
    "a pickle that runs a shell": _archive(pickle.dumps(_Runs(os.system, "mkdir ran"), 2)),
    "a pickle that evaluates": _archive(
        pickle.dumps(_Runs(eval, "__import__('os').mkdir('r')"), 2)
    ),
    "a pickle that opens a file": _archive(pickle.dumps(_Runs(open, "ran", "w"), 2)),
    "an old file that runs code": _legacy(pickle.dumps({"ctx": _Runs()}, 2)),
    "a bare pickle that runs code": pickle.dumps({"ctx": _Runs()}, 2),
    "a newer pickle that runs code": pickle.dumps({"ctx": _Runs()}, 4),
    "a tuple nested deeply as a key": _archive(_pickled(b"}", TUPLES, b"Ns")),
    "a tuple nested deeply as a value": _archive(_pickled(b"}K\x01", TUPLES, b"s")),
    "a tuple nested deeply by marks": _archive(_pickled(b"}", b"(" * DEEP, b"t" * DEEP, b"Ns")),
    "a tuple nested deeply by memory": _archive(
        _pickled(b"}N", b"".join(b"\x85q\x00h\x00\x86" for _ in range(300)), b"Ns")
    ),
    "a list nested deeply": _archive(_pickled(b"]" * DEEP, b"a" * (DEEP - 1))),
    "a dictionary nested deeply": _archive(_pickled(b"}K\x01" * DEEP, b"}", b"s" * DEEP)),
    "an old file with a tuple nested deeply": _legacy(_pickled(b"}", TUPLES, b"Ns")),
    "a bare pickle with a tuple nested deeply": _pickled(b"}", TUPLES, b"Ns"),
    "a size nested deeply": _archive(_pickled(b"}ctorch\nSize\n", TUPLES, b"RNs")),
    "many marks": _archive(_pickled(b"(" * 1_000_000)),
    "a text of 2**31 bytes": _archive(_pickled(b"X", struct.pack("<I", 2**31 - 1))),
    "a place of 2**32 in memory": _archive(_pickled(b"}r\xff\xff\xff\xff")),
    "a tensor of 2**40 numbers": _archive(
        _pickled(_tensor(b"ctx", _long(2**40) + b"\x85", b"K\x00\x85")), **STORAGE
    ),
    "a tensor behind its storage": _archive(
        _pickled(_tensor(b"ctx", b"M\xff\x7f\x85", b"K\x01\x85")), **STORAGE
    ),
    "a tensor of negative size": _archive(
        _pickled(_tensor(b"ctx", _long(-5) + b"\x85", b"K\x01\x85")), **STORAGE
    ),
    "a storage of 2**31 - 1 numbers": _archive(
        _pickled(_tensor(b"ctx", b"K\x04\x85", b"K\x01\x85", 2**31 - 1)), **STORAGE
    ),
    "a storage that is not there": _archive(_pickled(_tensor(b"ctx", b"K\x04\x85", b"K\x01\x85"))),
    "a prompt of another width": _archive(
        _pickled(_tensor(b"ctx", b"K\x02K\x02\x86", b"K\x02K\x01\x86")), **STORAGE
    ),
    "a prompt of one axis": _archive(
        _pickled(_tensor(b"ctx", b"K\x04\x85", b"K\x01\x85")), **STORAGE
    ),
    "TorchScript of nothing": _zip({"a/data.pkl": _pickled(b"}"), "a/constants.pkl": b""}),
    "TorchScript with a tuple nested deeply": _zip(
        {
            "a/data.pkl": _pickled(TUPLES),
            "a/constants.pkl": _pickled(b")"),
            "a/version": b"3\n",
        }
    ),
    "TorchScript with code that is run as it is read": _zip(
        {
            "a/data.pkl": _pickled(b"}"),
            "a/constants.pkl": _pickled(b")"),
            "a/version": b"3\n",
            "a/code/__torch__.py": b"class M(Module):\n  def __setstate__(self, x: int) -> None:\n"
            b'    torch.save(x, "ran")\n',
        }
    ),
}
"""The file's content by what it is."""

PLACES: dict[str, Callable[[Path], object]] = {
    "gone": lambda path: None,
    "a folder": os.mkdir,
    "a fifo": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, content in CONTENTS.items():
        yield _case(f"a file that is {name}", functools.partial(_write, content))
    for path in sorted(PROMPTS.iterdir()):
        content = path.read_bytes()
        yield _case(f"{path.name}, of another CLIP", functools.partial(_write, content))
        for share in (0.1, 0.5, 0.99):
            torn = content[: int(share * len(content))]
            yield _case(f"{share:.0%} of {path.name}", functools.partial(_write, torn))
    for name, make in PLACES.items():
        yield _case(f"a file that is {name}", make)


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _case(name: str, make: Callable[[Path], object]) -> Case:
    def words(folder: Path) -> Sequence[str]:
        make(folder / WORDS[1])
        return WORDS

    return Case("archives", name, words, "prompt", needs="torch")
