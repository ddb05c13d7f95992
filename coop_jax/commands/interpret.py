"""Words nearest to what was learned, with their distances.

  coop_jax interpret my_prompt
  coop_jax interpret my_class_specific_prompt --class cat --top 5

Distances are Euclidean, between a context vector and the embeddings of CLIP's vocabulary, as in
the CoOp paper's Table 4.
Elsewhere than on a terminal there is a line per vector and word: vector, word and distance, with
tabs between them, and the class in front where every class has its own context.
"""

import argparse
import sys
from typing import Any

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.errors import InputError
from coop_jax.printing import console, escaped


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    options.add_saved(parser, classes=False)
    parser.add_argument(
        "--top",
        type=command_line.positive,
        default=3,
        metavar="K",
        help="words per vector; default 3",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="only this class, of a context that every class has of its own",
    )
    parser.add_argument(
        "--all-tokens", action="store_true", help="pieces of words, numbers and signs as well"
    )


def run(chosen: argparse.Namespace) -> int:
    """Show the nearest words."""
    import jax.numpy as jnp

    from coop_jax import interpret
    from coop_jax.clip.features import needed
    from coop_jax.saved import Saved
    from coop_jax.saved.use import load_its_clip

    learned = Saved.load(chosen.saved)
    clip, its_tokenizer = load_its_clip(learned, chosen.clip, **options.of_clip(chosen))
    backbone = chosen.clip or learned.backbone
    vectors = learned.for_classes(clip, its_tokenizer, backbone=backbone).word_vectors()
    if not vectors:
        raise InputError(
            f"expected a saved method with context vectors, got one of {learned.method}, which has"
            f" {', '.join(learned.learned) or 'none'}; choose another"
        )
    contexts = [
        context
        for name, values in vectors.items()
        for context in (
            zip(learned.classes.names, values, strict=True)
            if values.ndim == 3
            else [(None if name == "context" else name, values)]
        )
    ]
    if chosen.class_name is not None:
        own = [values for values in vectors.values() if values.ndim == 3]
        contexts = _only(contexts if own else [], chosen.class_name)
    tokenizer = needed(its_tokenizer)
    for name, context in contexts:
        words = interpret.nearest_words(
            clip, tokenizer, jnp.asarray(context), chosen.top, whole_words=not chosen.all_tokens
        )
        if sys.stdout.isatty():
            title = "nearest words" + f", context of {name!r}" * (name is not None)
            console().print(interpret.table(words, title))
            continue
        for number, nearest in enumerate(words, start=1):
            for word, distance in ((near.word, near.distance) for near in nearest):
                front = () if name is None else (escaped(name),)
                print(*front, number, escaped(word), f"{distance:.4f}", sep="\t")
    return 0


Context = tuple[str | None, Any]
"""Vectors with the name of a class or a prompt; None where there is one context of all."""


def _only(contexts: "list[Context]", class_name: str) -> "list[Context]":
    from coop_jax.classes import spelled
    from coop_jax.data.listing import some

    names = [name for name, _ in contexts if name is not None]
    if not names:
        raise InputError(
            f"expected no --class with a context that all classes share, got {class_name!r};"
            " leave it out"
        )
    (wanted,) = spelled([class_name])
    found: list[Context] = [one for one in contexts if spelled([one[0] or ""]) == (wanted,)]
    if not found:
        raise InputError(
            f"expected one of the classes that have a context of their own ({some(names)}), got"
            f" {class_name!r}; name one, or leave --class out"
        )
    return found
