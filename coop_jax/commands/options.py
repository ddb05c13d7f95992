"""Arguments that several commands have, and readers of their values."""

import argparse
import ast
import contextlib
from collections.abc import Sequence
from typing import Any

from coop_jax import command_line
from coop_jax.errors import InputError

CLASSES = "a,b,c: these; FILE: one per line; dataset:NAME: those of a dataset"


def add_saved(parser: argparse.ArgumentParser, *, classes: bool = True) -> None:
    """A saved method, and what else it takes to use it."""
    parser.add_argument("saved", help="folder of a saved method, or its hub id user/name")
    add_clip(parser, "the CLIP it was learned with, where that has another name or place here")
    if classes:
        parser.add_argument(
            "--classes",
            metavar="CLASSES",
            help=f"the classes to tell apart, if not those it was learned on ({CLASSES})",
        )
        add_data(parser)


def add_clip(
    parser: argparse.ArgumentParser,
    text: str,
    default: str | None = None,
    *,
    required: bool = False,
) -> None:
    """Add the options of a CLIP, which `of_clip` reads."""
    parser.add_argument("--clip", default=default, required=required, metavar="NAME", help=text)
    parser.add_argument(
        "--tokenizer",
        default="",
        metavar="FOLDER",
        help="the tokenizer's files, if not beside the CLIP's weights",
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="what the CLIP computes in; default float32",
    )
    parser.add_argument(
        "--activation",
        default="",
        metavar="NAME",
        help="quick_gelu, gelu or gelu_tanh: the CLIP's, if a file of weights without a config",
    )
    parser.add_argument(
        "--heads",
        default=(),
        type=heads,
        metavar="IMAGE,TEXT",
        help="the number of heads of both its towers, if such a file, e.g. 12,8",
    )


def heads(text: str) -> tuple[int, int]:
    """Return the heads of both towers, as "12,8" has them.

    Raises:
        ArgumentTypeError: the text is something else.
    """
    try:
        image, others = map(command_line.positive, text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"expected two whole numbers such as 12,8, got {text!r:.80}"
        ) from None
    return image, others


def of_clip(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say of a CLIP besides its name."""
    return {name: getattr(chosen, name) for name in ("dtype", "tokenizer", "activation", "heads")}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where datasets lie."""
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help="where named datasets lie; default $TFDS_DATA_DIR"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the option that sets a method's own settings, which `settings` reads."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, e.g. n_ctx=4, class_specific=True; may be repeated",
    )


def settings(method: str, given: Sequence[str]) -> dict[str, Any]:
    """Return settings as Python writes them, or as text where that is none or is the default."""
    from coop_jax import methods

    defaults = methods.default_config(method)
    read = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set: expected KEY=VALUE, got {text!r}; correct it")
        read[name] = value
        if not isinstance(defaults.get(name), str):
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError):
                read[name] = ast.literal_eval(value)
    return read
