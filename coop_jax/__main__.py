"""One command family: coop_jax COMMAND, or python -m coop_jax COMMAND; see --help."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from coop_jax import commands, compilation_cache
from coop_jax.commands import forwarded

DESCRIPTION = """Learn prompts for a frozen CLIP, and use them. The common cases:

  coop_jax fit photographs my_prompt --clip ViT-B/16    learn from a folder of images per class
  coop_jax predict my_prompt cat.jpg folder/            class and probability of each image
  coop_jax evaluate my_prompt photographs               accuracy on the test images
  coop_jax export my_prompt weights.safetensors         class weights, for PyTorch
  coop_jax push my_prompt user/name                     to the Hugging Face hub
  coop_jax run --config=configs/few_shot.py --workdir=runs/dtd    an experiment of the papers
"""

EPILOG = """coop_jax COMMAND --help tells the rest. Exit code 0: all done; 1: some of it failed, as
standard error says; 2: wrong input, in one line. Nothing is overwritten."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Returns:
        The exit code: 0 if all is done, 1 if some of it failed, 2 for bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    compilation_cache.keep()
    if words and words[0] in forwarded.COMMANDS:
        return forwarded.run(words[0], words[1:])
    parser = create_parser()
    if not words:
        parser.print_help()
        return 0
    chosen = parser.parse_args(words)
    from coop_jax.terminal import command

    try:
        return command(lambda: chosen.run(chosen))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # what reads our output wants no more of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def create_parser() -> argparse.ArgumentParser:
    """The parser of the commands that have arguments of their own."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "coop_jax", usage="coop_jax COMMAND ...", epilog=EPILOG, formatter_class=as_written
    )
    family = parser.add_subparsers(
        prog="coop_jax", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    summaries = {}
    for name, module_name in commands.MODULES.items():
        module = importlib.import_module(f"coop_jax.commands.{module_name}")
        text = module.__doc__ or ""
        summaries[name] = text.splitlines()[0]
        below = family.add_parser(
            name, description=text, formatter_class=as_written, allow_abbrev=False
        )
        module.arguments(below)
        below.set_defaults(run=module.run)
    summaries |= {name: summary for name, (_, summary) in forwarded.COMMANDS.items()}
    lines = (f"  {name:10} {summary.rstrip('.')}" for name, summary in summaries.items())
    parser.description = DESCRIPTION + "\n".join(["", "All commands:", "", *lines])
    return parser


if __name__ == "__main__":
    sys.exit(main())
