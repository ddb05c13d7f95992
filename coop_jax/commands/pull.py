"""Download a saved method from the Hugging Face hub into a new folder.

  coop_jax pull user/name my_prompt

The other commands take user/name in place of a folder as well.
"""

import argparse

from coop_jax import command_line
from coop_jax.printing import escaped


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("repository", help="user/name")
    parser.add_argument("saved", type=command_line.path, help="new folder for it")
    parser.add_argument("--revision", help="a branch, tag or commit; default the latest")


def run(chosen: argparse.Namespace) -> int:
    """Download, and copy from the hub's cache."""
    from coop_jax.saved import Saved, hub

    Saved.load(hub.pull(chosen.repository, chosen.revision)).save(chosen.saved)
    print(escaped(f"saved {chosen.saved}"))
    return 0
