"""Learn a prompt from labelled images, and save it as a new folder.

  coop_jax fit photographs my_prompt --clip ViT-B/16
  coop_jax fit labels.csv my_prompt --shots 4 --epochs 50 --set n_ctx=4
  coop_jax fit dtd my_prompt --method cocoop --batch-size 1 --epochs 10 --data-dir DATA

The dataset is a folder ({train,test[,val]}/<class>/*.jpg, or <class>/*.jpg, which is split), a .csv
(columns path, label, split), a .json of CoOp's format, or a name of the catalogue. --clip tiny
tries the whole way without a download. Where nothing is said, settings are the CoOp paper's.
"""

import argparse
import ast
import sys
from typing import Any

from coop_jax.commands import options
from coop_jax.errors import InputError


def shots(text: str) -> int | None:
    """Images per class; None for all there are."""
    return None if text == "all" else int(text)


PARAMETERS = {
    "shots": (shots, "training images per class, or all; default 16"),
    "epochs": (int, "default the CoOp paper's, by the shots"),
    "seed": (int, "of all that is drawn; default 1"),
    "batch_size": (int, "images per step; default 32"),
    "learning_rate": (float, "at the beginning; default 0.002"),
}
"""Parameters of `Classifier`, whose defaults hold where nothing is said."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("dataset", help="folder, .csv, .json, or name of the catalogue")
    parser.add_argument("prompt", type=options.path, help="new folder for what is learned")
    options.add_clip(
        parser,
        "backbone of the papers, hub id, folder, file, or tiny; default ViT-B/16",
        "ViT-B/16",
    )
    parser.add_argument("--method", default="coop", metavar="NAME", help="default coop")
    for name, (kind, text) in PARAMETERS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar="N", help=text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, e.g. n_ctx=4, class_specific=True; may be repeated",
    )
    parser.add_argument(
        "--class-names", type=options.path, metavar="FILE", help="lines 'label class name'"
    )
    options.add_data(parser)


def run(chosen: argparse.Namespace) -> int:
    """Learn, save, and say how well the test images are classified."""
    from coop_jax.classifier import Classifier

    folder = chosen.prompt
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"expected a new or empty folder for the prompt, got {folder}, which holds something;"
            " name another"
        )
    classifier = Classifier(
        chosen.clip,
        method=chosen.method,
        settings=_settings(chosen.method, chosen.set),
        **{name: getattr(chosen, name) for name in PARAMETERS if hasattr(chosen, name)},
        dtype=chosen.dtype,
        tokenizer=chosen.tokenizer,
        data_dir=chosen.data_dir or "",
    )
    classifier.fit(chosen.dataset, class_names=chosen.class_names)
    classifier.save(folder)
    print(f"saved {folder}: {chosen.method}, {len(classifier.classes_)} classes", flush=True)
    right = classifier.score(chosen.dataset, class_names=chosen.class_names)
    print(f"accuracy on the test images: {right:.1%}")
    if sys.stdout.isatty():
        print(f"\nnext: coop_jax predict {folder} IMAGE ...\n      coop_jax interpret {folder}")
    return 0


def _settings(method: str, given: list[str]) -> dict[str, Any]:
    """Settings as Python writes them, or as plain text where the method's default is a text."""
    from coop_jax import methods

    defaults = methods.default_config(method)
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in defaults:
            raise InputError(
                f"--set: expected KEY=VALUE with a setting of {method}"
                f" ({', '.join(defaults) or 'it has none'}), got {text!r}; correct it"
            )
        kind = type(defaults[name])
        try:
            settings[name] = value if kind is str else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = None
        if type(settings[name]) is not kind:
            raise InputError(
                f"--set: expected {name} as {kind.__name__}, like {defaults[name]!r}, got"
                f" {value!r}; correct it"
            )
    return settings
