"""Tokenizer files that are damaged, or belong to another CLIP."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bad_inputs import Case
from bad_inputs.valid import FIT, clip, images

WHOLE, PARTS = "tokenizer.json", ("vocab.json", "merges.txt")
NO_VOCABULARIES = {
    "is empty": "",
    "is no JSON": "{",
    "is a list": "[]",
    "is null": "null",
    "is a number": "3",
    "has other keys": '{"a": 1}',
    "is nested 200,000 deep": '{"a":' * 200_000,
    "is a list nested 200,000 deep": "[" * 200_000,
    "has text for ids": '{"a": "b"}',
    "has negative ids": '{"a": -1}',
    "has ids of 2**70": f'{{"a": {2**70}}}',
    "has a null character": "\0",
}
MERGES = {
    "is empty": "",
    "ends in a word": "#version: 0.2\ni n</w>\nq",
    "has words of one part": "#version: 0.2\nabc\n",
    "has words of many parts": "#version: 0.2\na b c d\n",
    "merges what is not there": "#version: 0.2\n\N{PILE OF POO} \N{PILE OF POO}\n",
    "is a line of 10 MB": "a" * 10**7,
}
SETTINGS: dict[str, Any] = {
    "tokenizer_class is another's": {"tokenizer_class": "NoSuchTokenizer"},
    "tokenizer_class is a list": {"tokenizer_class": ["CLIPTokenizer"]},
    "auto_map names code": {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
    "bos_token is another": {"bos_token": "<s>"},
    "eos_token is a number": {"eos_token": 3},
    "padding_side is left": {"padding_side": "left"},
    "add_bos_token is false": {"add_bos_token": False},
    "extra_special_tokens are some": {"extra_special_tokens": ["<a>"]},
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, text in NO_VOCABULARIES.items():
        for file in (WHOLE, PARTS[0]):
            yield _case(f"{file} {name}", functools.partial(_write, file, text.encode()))
    for name, text in MERGES.items():
        yield _case(f"merges.txt {name}", functools.partial(_write, PARTS[1], text.encode()))
    for file in (WHOLE, *PARTS):
        yield _case(f"{file} is not UTF-8", functools.partial(_write, file, b'{"\xff\xfe": 1}'))
        yield _case(f"{file} is a fifo", functools.partial(_replace, file, os.mkfifo))
        yield _case(f"{file} is a folder", functools.partial(_replace, file, os.mkdir))
        yield _case(f"{file} leads to /dev/zero", functools.partial(_replace, file, _zeros))
        yield _case(f"{file} is torn", functools.partial(_tear, file))
    for name, change in {**VOCABULARIES, **WHOLES}.items():
        yield _case(name, change)
    for name, stated in SETTINGS.items():
        content = json.dumps(stated).encode()
        yield _case(name, functools.partial(_write, "tokenizer_config.json", content))
    for file in ("special_tokens_map.json", "added_tokens.json"):
        yield _case(f"{file} is a list", functools.partial(_write, file, b"[1]"))


def _case(name: str, change: Callable[[Path], None]) -> Case:
    def make(folder: Path) -> list[str]:
        images(folder)
        change(clip(folder))
        return [*FIT, "--clip=clip"]

    return Case("tokenizers", name, make, "tokenizer|clip/|json|merges")


def _alone(file: str, folder: Path) -> None:
    """Leave this file alone, where two layouts are there."""
    for other in PARTS if file == WHOLE else (WHOLE,):
        (folder / other).unlink(missing_ok=True)


def _write(file: str, content: bytes, folder: Path) -> None:
    _alone(file, folder)
    (folder / file).write_bytes(content)


def _replace(file: str, make: Callable[[Path], None], folder: Path) -> None:
    _alone(file, folder)
    (folder / file).unlink()
    make(folder / file)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _tear(file: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    _write(file, content[: len(content) // 2], folder)


def _vocabulary(change: Callable[[dict[str, int]], dict[str, int]], folder: Path) -> None:
    stated = json.loads((folder / PARTS[0]).read_text())
    _write(PARTS[0], json.dumps(change(stated)).encode(), folder)


def _whole(change: Callable[[dict[str, Any]], object], folder: Path) -> None:
    stated = json.loads((folder / WHOLE).read_text())
    change(stated)
    _write(WHOLE, json.dumps(stated).encode(), folder)


END = "<|endoftext|>"
VOCABULARIES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(_vocabulary, change)
    for name, change in {
        "a vocabulary of 100": lambda ids: dict(list(ids.items())[-100:]),
        "ids outside of the text tower": lambda ids: ids | {END: 10**6},
        "every id outside of it": lambda ids: {word: index + 10**6 for word, index in ids.items()},
        "ids up to 2**32 - 1": lambda ids: ids | {"spare": 2**32 - 1},
        "no end token": lambda ids: {word: index for word, index in ids.items() if word != END},
        "an end token in the middle": lambda ids: ids | {END: 5},
        "no tokens": lambda ids: {},
    }.items()
}
WHOLES: dict[str, Callable[[Path], None]] = {
    name: functools.partial(_whole, change)
    for name, change in {
        "a tokenizer.json without a model": lambda whole: whole.pop("model"),
        "a tokenizer.json of another kind": lambda whole: whole["model"].update(type="Odd"),
        "a tokenizer.json of words": lambda whole: whole.update(
            model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        ),
        "a tokenizer.json with ids of 10**9": lambda whole: whole["model"]["vocab"].update(
            {END: 10**9}
        ),
        "a tokenizer.json with merges of what is not there": lambda whole: whole["model"].update(
            merges=[["qq", "zz"]]
        ),
    }.items()
}
