"""Results: `results.jsonl`, one JSON object per evaluation.

Everything that is printed or plotted is computed from this file, so its numbers are unrounded. Each
line ends with a digest of itself, `sha256`: that of the JSON of all other keys, sorted, in ASCII,
without spaces.
"""

import base64
import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool

from coop_jax.errors import InputError
from coop_jax.holding import NO_LOCKS
from coop_jax.writing import append_whole, said, sync_folder

log = logging.getLogger(__name__)

FILE_NAME = "results.jsonl"

DIGEST = "sha256"
"""The key of a line's digest."""

_RANGES = {
    **dict.fromkeys(("accuracy", "macro_f1"), (0, 100)),
    **dict.fromkeys(("shots", "epochs", "seconds"), (0, sys.float_info.max)),
    **dict.fromkeys(("n_classes", "n_examples"), (1, sys.float_info.max)),
}
"""The least and the greatest value of a field."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hashes:
    """Hexadecimal digests of what an evaluation depends on beyond its configuration.

    Raises:
      InputError: a value is not a string.
    """

    data: str
    split: str
    class_names: str
    transform: str
    weights: str
    config: str

    def __post_init__(self):
        _check_types(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One evaluation: `accuracy` and `macro_f1` in percent, unrounded; `seconds` on the wall clock.

    `shots` is the number of labelled training examples per class. A zero-shot result has shots 0
    and says in `prompt` which hand-crafted prompt it used: the template, or "ensemble of N". What a
    method does not have (zero-shot CLIP has no epochs) is None, and so are the seconds of a run
    that was resumed. `settings` are the method's own, `uses` what it learned from besides the
    labelled training images (`Method.uses`), `learned` and `kept` the shapes by name of what it
    learned by gradients and otherwise. `correct` says which test images were classified rightly
    (`pack`, `is_right`). `trained_on` is the dataset whose images the method
    learned from, which cross-dataset transfer evaluates on others; `split` is "test", or, from base
    to new classes, whose test images were classified: "base", "new" or "all". Where the split is
    not CoOp's both say whose it is ("test of TFDS", "dtd of TFDS"). `versions` are those of the
    packages that numbers depend on, `config` is the run's whole config.

    Raises:
      InputError: a value has the wrong type or lies outside its range. Values are plain Python
        numbers: arrays and NumPy scalars are refused.
    """

    protocol: str
    method: str
    dataset: str
    split: str
    backbone: str
    shots: int
    seed: int
    settings: dict
    uses: list
    learned: dict
    kept: dict
    epochs: int | None
    accuracy: float
    macro_f1: float
    correct: str
    n_classes: int
    n_examples: int
    seconds: float | None
    commit: str | None
    hashes: Hashes
    versions: dict
    config: dict
    trained_on: str | None = None
    prompt: str | None = None

    def __post_init__(self):
        _check_types(self)
        for name, (least, greatest) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= greatest:
                raise InputError(
                    f"expected {name} from {least} to {greatest:g}, got {value}; correct the number"
                )
        if self.prompt is not None and self.shots != 0:
            raise InputError(
                f"expected shots 0 for a result with a hand-crafted prompt, got {self.shots}; "
                "give prompt for zero-shot results alone"
            )
        if (self.prompt is None) == (self.trained_on is None):
            raise InputError(
                "expected either the prompt of a zero-shot result or the dataset it was trained_on,"
                f" got {self.prompt!r} and {self.trained_on!r}; give one of them"
            )
        if len(_unpacked(self.correct)) != -(-self.n_examples // 8):
            raise InputError(
                f"expected correct as base64 of a bit for each of {self.n_examples} examples, got"
                f" {self.correct!r:.80}; pack what was right"
            )

    @property
    def is_right(self) -> Bool[np.ndarray, " images"]:
        """True for each test image that was classified rightly, in the order of the split."""
        bits = np.frombuffer(_unpacked(self.correct), np.uint8)
        return np.unpackbits(bits, count=self.n_examples).astype(bool)

    @property
    def parameters(self) -> int:
        """The number of numbers that gradients moved."""
        return sum(math.prod(shape) for shape in self.learned.values())


def pack(is_right: Bool[np.ndarray, " images"]) -> str:
    """Return whether each test image was classified rightly as text: base64 of a bit for each."""
    return base64.b64encode(np.packbits(is_right).tobytes()).decode()


def _unpacked(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def append(path: str | os.PathLike[str], result: Result) -> None:
    """Add one line to a results file, on disk when this returns; make the file and its folders.

    The line is one write, under a lock that other calls of this function respect, so several
    processes can share a file where the file system has locks. What a crash left of an unfinished
    last line is removed first, with a warning in the log.

    Raises:
      InputError: `path` is a folder.
      MachineError: the line could not be written whole (a full disk); the file is as it was before.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"expected a results file, got the folder {path}; name a file inside it")
    with said("write results", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            _append_line(file, path, _to_json(result))
        sync_folder(path.parent)


def read(path: str | os.PathLike[str]) -> list[Result]:
    """Results in the order in which they were written; a file without lines gives an empty list.

    A last line that a crash cut short is dropped, with a warning in the log.

    Raises:
      InputError: there is no such file, or another line is corrupt or not as it was written (the
        message has its number).
      MachineError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"expected a results file, got {path}, which is not a file; "
            f"run an evaluation first or give the path of a {FILE_NAME}"
        )
    with said("read results", path):
        content = path.read_bytes()
    *lines, tail = content.split(b"\n")
    if _is_torn(tail):
        _warn_torn(path, tail)
    elif tail:
        lines.append(tail)
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def find(results: Iterable[Result], **keys: object) -> list[Result]:
    """Results whose fields equal all `keys`, in order: `find(results, method="coop", shots=16)`.

    Raises:
      InputError: a key is not a field of `Result`.
    """
    names = [field.name for field in dataclasses.fields(Result)]
    if unknown := sorted(set(keys) - set(names)):
        raise InputError(
            f"expected fields of a result ({', '.join(names)}), got {', '.join(unknown)}; "
            "search by the names listed"
        )
    return [
        result
        for result in results
        if all(getattr(result, name) == value for name, value in keys.items())
    ]


def _check_types(record: Hashes | Result) -> None:
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        kinds = typing.get_args(field.type) or (field.type,)
        allowed = (*kinds, int) if float in kinds else kinds
        if type(value) not in allowed:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            names = names.replace("NoneType", "None")
            raise InputError(
                f"expected {field.name} as {names}, got {type(value).__name__} {value!r:.80}; "
                "convert it before recording it"
            )


def _to_json(result: Result) -> bytes:
    record = dataclasses.asdict(result)
    for name in ("prompt", "trained_on"):
        if record[name] is None:
            del record[name]
    record[DIGEST] = digest(record)
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def digest(record: Mapping[str, Any]) -> str:
    """Return the digest of a JSON object without its own."""
    text = json.dumps(record, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def of_record(record: Mapping[str, Any]) -> Result:
    """Return the result that `dataclasses.asdict` has made a record of."""
    return Result(**{**record, "hashes": Hashes(**record["hashes"])})


def _parse(line: bytes, place: str) -> Result:
    try:
        record = json.loads(line)
        written = record.pop(DIGEST)
        if (got := digest(record)) != written:
            raise InputError(
                f"expected the line that was written ({DIGEST} {written!s:.8}), got another"
                f" ({got:.8}); restore it, or run the evaluation again in another --workdir"
            )
        return of_record(record)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError(
            f"{place}: expected one result as a JSON object, got {line!r:.80} "
            f"({type(error).__name__}: {reason}); restore the line, or run the evaluation again in"
            " another --workdir"
        ) from None


def _is_torn(tail: bytes) -> bool:
    """Tell whether the bytes after the last newline are the start of a line, not a whole one.

    No proper prefix of a JSON object is valid JSON, so what parses has lost its newline at most.
    """
    try:
        json.loads(tail or b"{}")
    except ValueError:
        return True
    return False


def _warn_torn(path: Path, tail: bytes) -> None:
    log.warning("%s: dropped an unfinished last line of %d bytes: %.80r", path, len(tail), tail)


def _append_line(file: BinaryIO, path: Path, line: bytes) -> None:
    file.seek(0)
    content = file.read()
    tail = content.rpartition(b"\n")[2]
    end = len(content)
    if _is_torn(tail):
        _warn_torn(path, tail)
        end -= len(tail)
        file.truncate(end)
    elif tail:
        line = b"\n" + line
    append_whole(file, line, sync=True)
