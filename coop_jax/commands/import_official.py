r"""Make a saved method of what the official CoOp or CoCoOp code saved.

  coop_jax import output/.../prompt_learner/model.pth.tar-50 my_prompt --clip RN50 \
      --classes dataset:dtd --data-dir DATA

The file says neither which CLIP nor which classes it was learned with, so name them.
Reading it needs PyTorch (pip install 'coop_jax[torch]'); no code in it is run.
"""

import argparse

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.printing import escaped, plural


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("file", type=command_line.path, help="prompt_learner/model.pth.tar-EPOCHS")
    parser.add_argument("saved", type=command_line.path, help="new folder for it")
    options.add_clip(parser, "the CLIP it was learned with, e.g. RN50 or ViT-B/16", required=True)
    parser.add_argument(
        "--classes",
        required=True,
        metavar="CLASSES",
        help=f"the classes it was learned on, in the order of the labels ({options.CLASSES})",
    )
    options.add_data(parser)
    parser.add_argument(
        "--class-token-position",
        default="end",
        choices=("end", "middle", "front"),
        help="TRAINER.COOP.CLASS_TOKEN_POSITION of the training; default end",
    )
    parser.add_argument(
        "--context-init",
        default="",
        metavar="PHRASE",
        help="TRAINER.COOP.CTX_INIT or TRAINER.COCOOP.CTX_INIT of the training",
    )


def run(chosen: argparse.Namespace) -> int:
    """Read the file and save what it holds."""
    from coop_jax.clip import source
    from coop_jax.commands import loading
    from coop_jax.frozen import said_of
    from coop_jax.saved import official
    from coop_jax.saved.use import load_clip

    classes, _ = loading.read_classes(chosen.classes, chosen.data_dir)
    settings = options.of_clip(chosen)
    clip, _ = load_clip(chosen.clip, **settings)
    kind, _, dataset = chosen.classes.partition(":")
    learned = official.read(
        chosen.file,
        clip=clip,
        backbone=source.backbone(chosen.clip),
        classes=classes,
        class_token_position=chosen.class_token_position,
        context_init=chosen.context_init,
        dataset=dataset if kind == "dataset" else None,
    )
    learned.training.update(said_of(settings))
    learned.save(chosen.saved)
    count = plural(len(classes.names), "class", "classes")
    print(escaped(f"saved {chosen.saved}: {learned.method}, {count}"))
    return 0
