"""Files of PyTorch looked through before PyTorch reads them: nesting, sizes, code.

Nothing is unpickled here. PyTorch's own reader calls no unknown name, but a tuple in a tuple, some
200,000 deep, ends the process that looks it up as a key; and TorchScript runs what a file says.
"""

import itertools
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from coop_jax.errors import InputError

DEEPEST = 200
"""Levels of containers: a checkpoint of training has some ten."""

LARGEST = 2**26
"""Bytes of the largest pickle or code of an archive, whose numbers lie beside it."""

OLD_PICKLES = 5
"""Pickles at the beginning of a file from before PyTorch 1.6; storages follow."""

ZIP = b"PK\x03\x04"

GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
"""Operations that put objects into a container, or a state into an object."""


def is_zip(path: Path) -> bool:
    """Return True for a zip, by its first bytes, as PyTorch tells them apart."""
    with path.open("rb") as file:
        return file.read(len(ZIP)) == ZIP


def check(path: Path) -> None:
    """Refuse a file that nests too deep, claims more than it holds, or runs code as it is read.

    Raises:
        InputError: it does.
        Exception: it is damaged, of as many kinds as there are.
    """
    if not is_zip(path):
        with path.open("rb") as file:
            _check_pickles(file, path, OLD_PICKLES)
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if (claimed := sum(entry.file_size for entry in entries)) > path.stat().st_size + LARGEST:
            raise _refusal(path, f"{claimed:,} bytes packed into {path.stat().st_size:,}")
        for entry in entries:
            is_pickle, is_code = entry.filename.endswith(".pkl"), entry.filename.endswith(".py")
            if (is_pickle or is_code) and entry.file_size > LARGEST:
                raise _refusal(path, f"{entry.filename!a:.80} of {entry.file_size:,} bytes")
            if is_pickle:
                with archive.open(entry) as file:
                    _check_pickles(file, path, 1)
            if is_code and b"__setstate__" in archive.read(entry):
                raise _refusal(path, f"code that is run as it is read ({entry.filename!a:.80})")


def _refusal(path: Path, got: str) -> InputError:
    return InputError(
        f"{path}: expected tensors in a few containers, got {got}, which was not read; do not trust"
        " this file"
    )


def _check_pickles(file: IO[bytes], path: Path, count: int) -> None:
    for level in itertools.chain.from_iterable(_levels(file) for _ in range(count)):
        if level > DEEPEST:
            raise _refusal(path, f"containers nested more than {DEEPEST} deep")


def _levels(file: IO[bytes]) -> Iterator[int]:
    """Yield after each operation of a pickle how many levels the topmost object has.

    What is put into a list or dictionary after it has been referred to does not count there: tuples
    are what is looked up, and they are whole from the beginning.
    """
    stack: list[int] = []
    below: list[list[int]] = []
    memory: dict[Any, int] = {}
    for operation, argument, _ in pickletools.genops(file):
        name, before = operation.name, operation.stack_before
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name.endswith("PUT") or name == "MEMOIZE":
            memory[len(memory) if name == "MEMOIZE" else argument] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memory[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            taken: list[int] = []
            if pickletools.markobject in before:
                taken, stack = stack, below.pop()
                before = before[: before.index(pickletools.markobject)]
            taken += [stack.pop() for _ in before]
            container = taken.pop() if name in GROWING else 0
            level = max(container, max(taken, default=-1) + 1)
            stack += [level] * len(operation.stack_after)
        yield max(len(below), *stack[-1:], 0)
