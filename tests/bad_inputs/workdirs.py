"""Folders of runs, and results, that are damaged or something else."""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import report_results

from bad_inputs import Case
from coop_jax import results

RUN = ("run", "--config=quickstart", "--workdir=work")
EITHER = (1, 2)


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, make in PLACES.items():
        yield _case(f"a workdir that {name}", RUN, make, "work")
    for name, text in CONFIGS.items():
        make = functools.partial(_files, {"config.json": text, "thesis.tex": "years of work"})
        yield _case(f"config.json {name}", RUN, make, "config", EITHER)
    for name, words in WORKDIRS.items():
        yield Case("workdirs", name, functools.partial(_words, words), "work|path|name of a file")
    for name, change in RESULTS.items():
        make = functools.partial(_results, change)
        yield _case(f"results.jsonl {name}", ("report", "work"), make, "work", EITHER)
    for name, words in REPORTS.items():
        make = functools.partial(_results, lambda line: line)
        yield _case(name, words, make, "expected")
    for name, make in REPORTED.items():
        yield _case(f"report of a folder that {name}", ("report", "work"), make, "results|work")


def _case(
    name: str,
    words: Sequence[str],
    make: Callable[[Path], object],
    says: str,
    codes: tuple[int, ...] = (2,),
) -> Case:
    def write(folder: Path) -> Sequence[str]:
        make(folder / "work")
        return words

    return Case("workdirs", name, write, says, codes)


def _words(words: Sequence[str], folder: Path) -> Sequence[str]:
    return words


def _files(files: dict[str, str], folder: Path) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)


def _link(target: str, path: Path) -> None:
    path.symlink_to(target)


PLACES: dict[str, Callable[[Path], object]] = {
    "is a file": lambda path: path.write_text(""),
    "is a fifo": os.mkfifo,
    "is somebody's folder": functools.partial(_files, {"thesis.tex": "years of work"}),
    "has results alone": functools.partial(_files, {"results.jsonl": ""}),
    "is a link to a file": functools.partial(_link, "/dev/null"),
    "is a link to itself": functools.partial(_link, "work"),
}
CONFIGS = {
    "is empty": "",
    "is torn": '{"protocol": "few_',
    "is a list": "[]",
    "is null": "null",
    "is nested 200,000 deep": '{"a":' * 200_000,
    "has no settings": "{}",
    "has a group too many": '{"clip": {"name": {"a": 1}}}',
    "is of another run": '{"protocol": "base_to_new"}',
    "has 5000 other settings": json.dumps({f"setting_{i}": i for i in range(5000)}),
}
WORKDIRS: dict[str, Sequence[str]] = {
    f"--workdir={path:.30}": (*RUN[:2], f"--workdir={path}")
    for path in (
        "http://example.com/x",
        "gs://bucket/x",
        "file:///tmp/x",
        "/dev/null/x",
        "/dev/null",
        "\0",
        "x" * 300,
        "y/" * 3000,
    )
}
REPORTS: dict[str, Sequence[str]] = {
    "report of nothing": ("report", "gone"),
    "report into a folder that is a file": ("report", "work", "--csv=work/results.jsonl/a.csv"),
    "report into a picture that is none": ("report", "work", "--png=a.txt"),
    "report into a fifo's name": ("report", "work", "--png=/dev/null/a.png"),
    "report of a null character": ("report", "\0"),
    "report of a long name": ("report", "x" * 5000),
    "report of a config": ("report", "work/../work", "/dev/null"),
}
REPORTED: dict[str, Callable[[Path], object]] = {
    "is empty": os.mkdir,
    "is a fifo": os.mkfifo,
    "is a link to itself": functools.partial(_link, "work"),
}


def _results(change: Callable[[bytes], bytes], folder: Path) -> None:
    folder.mkdir()
    results.append(folder / "results.jsonl", report_results.make())
    path = folder / "results.jsonl"
    path.write_bytes(change(path.read_bytes()))


def _other(**changes: object) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps({**json.loads(line), **changes}).encode() + b"\n"


RESULTS: dict[str, Callable[[bytes], bytes]] = {
    "has a digit changed": lambda line: line.replace(b'"seed": 1', b'"seed": 2'),
    "has a line that is no JSON": lambda line: b"{\n" + line,
    "has an empty line": lambda line: b"\n" + line,
    "has a list": lambda line: b"[1]\n" + line,
    "has null": lambda line: b"null\n" + line,
    "has a number": lambda line: b"3\n" + line,
    "is of zeros": lambda line: bytes(100) + b"\n",
    "is not UTF-8": lambda line: b'{"\xff": 1}\n',
    "is nested 200,000 deep": lambda line: b"[" * 200_000 + b"\n",
    "has an unsigned accuracy": _other(accuracy=99.9),
    "has no digest": lambda line: b'{"accuracy": 3}\n',
    "has a digest of a number": _other(sha256=3),
    "has hashes of a list": _other(hashes=[]),
    "has an integer of 10,000 digits": lambda line: b'{"seed": 1' + b"0" * 10_000 + b"}\n",
    "has NaN": lambda line: b'{"accuracy": NaN, "sha256": ""}\n',
}
