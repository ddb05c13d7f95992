"""Command lines that no command takes."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from bad_inputs import Case
from coop_jax.commands import COMMANDS

WHOLE: dict[str, Sequence[str]] = {
    "fit": ("gone", "new"),
    "predict": ("gone", "gone.jpg"),
    "evaluate": ("gone", "gone"),
    "interpret": ("gone",),
    "export": ("gone", "new.npz"),
    "import": ("gone", "new", "--clip=tiny", "--classes=a,b"),
    "push": ("gone", "user/name"),
    "pull": ("user", "new"),
    "run": ("--config=gone", "--workdir=new"),
    "sweep": ("gone", "--workdir=new"),
    "report": ("gone",),
    "check": ("gone",),
    "prepare": ("gone",),
}
"""Words of each command, all that it needs; what they name is not there."""

LONG, ODD = "x" * 100_000, "\x00\x1b[31m\r\n\t\x07\u202e\ud800\udcff"
LINES: dict[str, Sequence[str]] = {
    "an unknown command": ("learn",),
    "an empty command": ("",),
    "a command of 100,000 characters": (LONG,),
    "a command of control characters": (ODD,),
    "a command that is an option": ("--learn",),
    "a command in capitals": ("FIT", "gone", "new"),
    "--version with more": ("--version", "--help-me"),
    "two commands": ("fit", "predict"),
    "a coordinator alone": ("run", "--config=quickstart", "--workdir=new", "--coordinator=a:1"),
    "processes alone": ("run", "--config=quickstart", "--workdir=new", "--processes=2"),
    "a process alone": ("run", "--config=quickstart", "--workdir=new", "--process=0"),
}
COORDINATORS = {
    "not a host": ("notahost", "2", "0"),
    "port 99999": ("localhost:99999", "2", "0"),
    "port 0": ("localhost:0", "2", "0"),
    "no port": ("localhost:", "2", "0"),
    "port of words": ("localhost:http", "2", "0"),
    "an empty text": ("", "2", "0"),
    "control characters": (ODD, "2", "0"),
    "spaces": ("a b:80", "2", "0"),
    "no processes": ("localhost:12345", "0", "0"),
    "-1 processes": ("localhost:12345", "-1", "0"),
    "10**30 processes": ("localhost:12345", "1" + "0" * 30, "0"),
    "process 2 of 2": ("localhost:12345", "2", "2"),
    "process -1": ("localhost:12345", "2", "-1"),
    "process 0.5": ("localhost:12345", "2", "0.5"),
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, words in LINES.items():
        yield _case(name, words)
    for name, (address, processes, process) in COORDINATORS.items():
        said = [f"--coordinator={address}", f"--processes={processes}", f"--process={process}"]
        yield _case(f"a coordinator with {name}", [*LINES["a coordinator alone"][:3], *said])
    for command, words in WHOLE.items():
        yield _case(f"{command} of what is not there", [command, *words])
        yield _case(f"{command} with an unknown option", [command, *words, "--nonsense=3"])
        yield _case(f"{command} without words", [command])
        yield _case(
            f"{command} with an option of 100,000 characters", [command, *words, f"--{LONG}"]
        )
        yield _case(f"{command} with an odd option", [command, *words, f"--{ODD}"])
        yield _case(f"{command} with odd words", [command, *(_odd(word, ODD) for word in words)])
        yield _case(f"{command} with long words", [command, *(_odd(word, LONG) for word in words)])
        yield _case(f"{command} with empty words", [command, *(_odd(word, "") for word in words)])
        yield _case(f"{command} with words too many", [command, *words, *["more"] * 3])
        yield _case(f"{command} with an option without a value", [command, *words, VALUED[command]])
    assert WHOLE.keys() == COMMANDS.keys(), "a command has no bad inputs"


VALUED = {
    **dict.fromkeys(WHOLE, "--clip"),
    "push": "--revision",
    "pull": "--revision",
    "run": "--workdir",
    "sweep": "--workdir",
    "report": "--csv",
    "check": "--data-dir",
    "prepare": "--data-dir",
}
"""An option of each command that needs a value, or that it does not have."""


def _case(name: str, words: Sequence[str]) -> Case:
    return Case("words", name, functools.partial(_words, words), "expected")


def _words(words: Sequence[str], _: Path) -> Sequence[str]:
    return words


def _odd(word: str, value: str) -> str:
    """Give an option another value, or a word."""
    name, equals, _ = word.rpartition("=")
    return f"{name}{equals}{value}"
