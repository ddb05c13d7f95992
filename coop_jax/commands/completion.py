"""Tab completion in bash and zsh, by argcomplete."""

import argparse
import importlib
import os
from typing import Any

from coop_jax import config_files
from coop_jax.commands import COMMANDS


def answer() -> None:
    """Answer the shell and end the process; of all commands only the one typed is imported."""
    import argcomplete

    argcomplete.autocomplete(_parser(os.environ.get("COMP_LINE", "").split()[1:2]))


def _parser(typed: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("coop_jax")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    family = parser.add_subparsers()
    for name, (module_name, _) in COMMANDS.items():
        below = family.add_parser(name)
        if [name] == typed:
            importlib.import_module(module_name).arguments(below)
            for action in below._actions:
                if action.dest in ("config", "configs"):
                    action.completer = _configs  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def _configs(prefix: str, **_: Any) -> list[str]:
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()(prefix) if "/" in prefix or prefix.startswith(".") else []
    return [*config_files.names(), *files]
