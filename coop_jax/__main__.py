"""One command family: coop_jax COMMAND, or python -m coop_jax COMMAND; see --help."""

import difflib
import os
import sys
from collections.abc import Sequence

from coop_jax import command_line
from coop_jax.commands import COMMANDS
from coop_jax.errors import InputError

HELP = """usage: coop_jax COMMAND ...

Learn prompts for a frozen CLIP, and use them. The common cases:

  coop_jax fit photographs my_prompt --clip ViT-B/16    learn from a folder of images per class
  coop_jax predict my_prompt cat.jpg folder/            class and probability of each image
  coop_jax evaluate my_prompt photographs               accuracy on the test images
  coop_jax export my_prompt weights.safetensors         class weights, for PyTorch
  coop_jax push my_prompt user/name                     to the Hugging Face hub
  coop_jax run --config=quickstart --workdir=digits     an experiment, here on digits

All commands:

{commands}

coop_jax COMMAND --help tells the rest, --version the version, and --version --verbose what a bug
report needs. Completion by the Tab key: eval "$(register-python-argcomplete coop_jax)"

Exit code 0: all done; 1: the machine or some of the work failed; 2: wrong input; 130, 143: stopped
by Ctrl-C, SIGTERM. Standard error says why, in one line. Nothing is overwritten.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name; its exit code."""
    if "_ARGCOMPLETE" in os.environ:  # the shell asks, at a Tab key
        from coop_jax.commands import completion

        completion.answer()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in COMMANDS:
        name, *rest = words
        return command_line.main(name, COMMANDS[name][0], rest)
    return command_line.end(lambda: answer(words))


def answer(words: Sequence[str]) -> int:
    """Show the version or the help, or else say that there is no such command.

    Raises:
        InputError: there is no such command.
    """
    if "--version" in words and set(words) <= {"--version", "--verbose"}:
        from coop_jax.commands import version

        return version.show("--verbose" in words)
    if words and not {"-h", "--help"} & set(words):
        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        raise InputError(
            f"expected a command, one of {', '.join(COMMANDS)}, got {words[0]!r:.80}; "
            + (f"did you mean {close[0]}?" if close else "choose one")
        )
    lines = [f"  {name:10} {summary}" for name, (_, summary) in COMMANDS.items()]
    print(HELP.format(commands="\n".join(lines)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
