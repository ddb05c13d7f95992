"""Config files that give no config."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bad_inputs import Case

FILE = "mine.py"
DEFAULT = "import coop_jax.config\ndef get_config():\n    return "

TEXTS = {
    "empty": "",
    "without get_config": "config = {}",
    "a syntax error": "def get_config(:",
    "an error of indentation": "def get_config():\nreturn 3",
    "raises at import": "raise RuntimeError('one\\ntwo')",
    "raises an error without a message": "raise RuntimeError",
    "imports what is not there": "import no_such_module_at_all",
    "raises when called": "def get_config():\n    return {}['x']",
    "exits": "import sys\nsys.exit(0)",
    "exits when called": "def get_config():\n    raise SystemExit('gone')",
    "without end": "def get_config():\n    return get_config()",
    "takes two arguments": "def get_config(a, b):\n    return {}",
    "get_config is no function": "get_config = 3",
    "returns None": "def get_config():\n    return None",
    "returns a list": "def get_config():\n    return [1]",
    "returns a text": "def get_config():\n    return 'config'",
    "returns a number": "def get_config():\n    return 3",
    "returns an empty dict": "def get_config():\n    return {}",
    "returns a dict of other settings": "def get_config():\n    return {'lr': 3}",
    "returns a config without a group": DEFAULT
    + "{k: v for k, v in coop_jax.config.default().items() if k != 'clip'}",
    "returns a config of numbers by number": "def get_config():\n    return {1: 2}",
    "returns itself inside": "c = {}\nc['c'] = c\ndef get_config():\n    return c",
    "returns functions": DEFAULT + "{**coop_jax.config.default(), 'epochs': len}",
    "reads standard input": "def get_config():\n    return input()",
    "has a message of many lines": "raise ValueError('a\\nb\\x1b[31m' * 5000)",
    "raises what no handler expects": "class Odd(BaseException): pass\nraise Odd('odd')",
    "raises an error that cannot be shown": "class Odd(Exception):\n"
    "    def __str__(self):\n        raise ValueError\nraise Odd",
}
BYTES = {
    "not UTF-8": b"x = '\xff\xfe'",
    "of zeros": bytes(100),
    "of random bytes": bytes(range(256)),
    "with an unknown encoding": b"# -*- coding: nonsense -*-\n",
    "deeply nested": b"x = " + b"(" * 100_000,
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, text in TEXTS.items():
        yield _case(f"a file that {name}", functools.partial(_write, text.encode()))
    for name, content in BYTES.items():
        yield _case(f"a file {name}", functools.partial(_write, content))
    yield _case("a folder", lambda path: path.mkdir())
    yield _case("a fifo", os.mkfifo)
    yield _case("a link to itself", lambda path: path.symlink_to(path.name))
    yield _case("a link to /dev/zero", lambda path: path.symlink_to("/dev/zero"))
    yield _case("a link to nothing", lambda path: path.symlink_to("gone.py"))
    for name in (
        "/dev/zero",
        "/dev/null",
        "",
        ":",
        "../",
        "x" * 5000,
        "a\0b.py",
        "quickstart:zero",
    ):
        words = ["run", "--workdir=new", f"--config={name}"]
        yield Case(
            "config_files", f"--config={name:.20}", lambda _, words=words: words, "config|met"
        )


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _case(name: str, write: Callable[[Path], object]) -> Case:
    def make(folder: Path) -> list[str]:
        write(folder / FILE)
        return ["run", "--workdir=new", f"--config={FILE}"]

    return Case("config_files", name, make, "--config")
