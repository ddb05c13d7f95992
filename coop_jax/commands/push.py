"""Upload a saved method to the Hugging Face hub, with a model card made from its record.

  coop_jax push my_prompt user/name
  coop_jax push my_prompt user/name --private

`hf auth login` comes first. A README.md in the folder is used in place of the card.
"""

import argparse

from coop_jax import command_line


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("saved", type=command_line.path, help="its folder")
    parser.add_argument("repository", help="user/name; a new one, or one with a saved method")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(chosen: argparse.Namespace) -> int:
    """Upload, and say where it is."""
    from coop_jax.saved import hub

    print(hub.push(chosen.saved, chosen.repository, private=chosen.private))
    return 0
