"""The files of a saved method: `learned.safetensors`, and `method.json`, which says of what.

Both are protected by digests: `method.json` has that of the other file and, as `sha256`, its own,
which is of the file with zeros in that place.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax import finite, writing
from coop_jax.errors import InputError
from coop_jax.terminal import check_name, why_not_made

RECORD = "method.json"
TENSORS = "learned.safetensors"
FORMAT = "coop_jax saved method"
VERSION = 1

FIELDS = {
    "method": str,
    "settings": dict,
    "per_class": list,
    "backbone": str,
    "fingerprint": str,
    "class_names": list,
    "class_ids": list,
    "template": str,
    "code": str,
    "training": dict,
}
"""Contents of a record besides the format, its version and the digests."""

TENSORS_DIGEST = f"sha256 of {TENSORS}"
NO_DIGEST = b"0" * 64

SPACE = "given/"
"""The beginning of the names of tensors that describe given features (`Saved.space`)."""

FOLDER = "saved"
"""The folder of a workdir that has them, in a folder for each run."""

DTYPES = ("float32", "float16", "int32", "uint32", "int8", "uint8", "bool")
"""The types of numbers that are saved."""


def write(folder: Path, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write the two files into a new folder, which is there as a whole or not at all.

    The same content in the same place is left as it is.

    Raises:
        InputError: there is something else in that place, the record is not JSON, or a tensor is of
            another type than `DTYPES` or not finite.
        MachineError: it cannot be written to.
    """
    from safetensors.numpy import save

    check_name(folder)
    folder = folder.absolute()
    _check_numbers(folder / TENSORS, tensors, "learn it again, with a lower learning rate")
    content = save({name: np.asarray(array, order="C") for name, array in tensors.items()})
    contents = {TENSORS: content, RECORD: signed(record, content)}
    if _holds(folder, contents):
        return
    check_new(folder)
    with writing.said("save to a folder", folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        writing.remove_unfinished(folder.parent, of=f"{folder.name}.", shared=True)
        unfinished = writing.unfinished_name(folder.with_name(f".{folder.name}"))
        try:
            unfinished.mkdir()
            writing.write_all({unfinished / name: made for name, made in contents.items()})
            unfinished.rename(folder)
            writing.sync_folder(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def check_new(folder: Path) -> None:
    """See that a folder can be written here and nothing is lost, before any work is done for it.

    Raises:
        InputError: there is something.
        MachineError: the folder cannot be made.
    """
    check_name(folder)
    with writing.said("save to a folder", folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(
                f"expected a new or empty folder to save to, got {folder}, which holds something"
                " else; name another"
            )
    if reason := why_not_made(folder.absolute()):
        raise InputError(f"expected a folder to save to, got {folder} ({reason}); name another")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the record of a saved method (the keys of `FIELDS`) and its tensors by name.

    Raises:
        InputError: the folder holds no saved method, a damaged one, one of a newer format, or one
            whose numbers are not finite.
    """
    check_name(folder)
    record = _read_record(folder)
    tensors = _read_tensors(folder / TENSORS, record[TENSORS_DIGEST])
    return {name: record[name] for name in FIELDS}, tensors


def signed(record: Mapping[str, Any], tensors: bytes) -> bytes:
    """Return a record as a file with both digests."""
    stated = {"format": FORMAT, "format_version": VERSION, "sha256": NO_DIGEST.decode()}
    whole = {**stated, TENSORS_DIGEST: _sha256(tensors), **record}
    try:
        content = (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected a record of plain JSON values, got one that is not ({error});"
            " convert arrays and NumPy numbers, leave out NaN"
        ) from error
    return content.replace(NO_DIGEST, _sha256(content).encode(), 1)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _holds(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Return whether the folder has these files with these contents."""
    paths = [folder / name for name in contents]
    return all(path.is_file() and path.read_bytes() == contents[path.name] for path in paths)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        got = "a file" if folder.exists() else "which is not there"
        if folder.is_dir():
            names = sorted(entry.name for entry in folder.iterdir())
            got = f"which has {', '.join(names[:5]) or 'nothing'}"
        raise InputError(
            f"expected the folder of a saved method, with {RECORD} and {TENSORS}, got {folder},"
            f" {got}; name a folder that a method was saved to"
        )
    content = path.read_bytes()
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got a damaged file ({error}); fetch it again"
        ) from error
    stated = record.get("format") if isinstance(record, dict) else None
    if stated != FORMAT:
        raise InputError(
            f"{path}: expected the format {FORMAT!r}, got {stated!r:.80}, which is none;"
            " name a folder that a method was saved to"
        )
    version = record.get("format_version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise InputError(
            f"{path}: expected format version {VERSION} or older, got {version!r:.80};"
            " update coop_jax to read a newer one"
        )
    digest = str(record.get("sha256"))
    _check_digest(path, content.replace(digest.encode(errors="replace"), NO_DIGEST, 1), digest)
    _check_fields(path, record)
    return record


def _check_digest(path: Path, content: bytes, digest: str) -> None:
    if (found := _sha256(content)) != digest:
        raise InputError(
            f"{path}: expected the file that was saved (sha256 {digest:.8}), got a damaged or"
            f" another one ({found:.8}); fetch it again"
        )


def _check_fields(path: Path, record: dict[str, Any]) -> None:
    wrong = [
        name
        for name, kind in {**FIELDS, TENSORS_DIGEST: str}.items()
        if not isinstance(record.get(name), kind)
        or (kind is list and not all(isinstance(item, str) for item in record[name]))
    ]
    if wrong:
        raise InputError(
            f"{path}: expected {', '.join(FIELDS)} and {TENSORS_DIGEST}, got {', '.join(wrong)}"
            " missing or of another type; fetch it again"
        )


def _check_numbers(path: Path, tensors: Mapping[str, np.ndarray], advice: str) -> None:
    strange = [name for name, array in tensors.items() if str(array.dtype) not in DTYPES]
    if strange:
        raise InputError(
            f"{path}: expected tensors of {', '.join(DTYPES)}, got {', '.join(strange)} of others;"
            " convert them"
        )
    finite.check(dict(tensors), f"in {path}", f"; {advice}")


def _read_tensors(path: Path, digest: str) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if not path.is_file():
        raise InputError(
            f"expected {path}, which {RECORD} describes, got no such file; fetch it again"
        )
    content = path.read_bytes()
    _check_digest(path, content, digest)
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: expected a safetensors file, got a damaged one ({error}); fetch it again"
        ) from error
    _check_numbers(path, tensors, "it cannot be used; learn it again")
    return dict(sorted(tensors.items()))
