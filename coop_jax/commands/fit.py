"""Learn from labelled images, and save what was learned as a new folder.

  coop_jax fit photographs my_prompt --clip ViT-B/16
  coop_jax fit labels.csv my_prompt --shots 4 --epochs 50 --set n_ctx=4
  coop_jax fit dtd my_prompt --method cocoop --batch-size 1 --epochs 10 --data-dir DATA

The dataset is a folder ({train,test[,val]}/<class>/*.jpg, or <class>/*.jpg, which is split), a .csv
(columns path, label, split), a .json of CoOp's format, an .npz of features that any encoder made
(without --clip), or a name of the catalogue. --clip tiny tries the whole way without a download.
Where nothing is said, settings are those of the method's paper.
Exit code 0: all done; 1: some test images could not be read, and the accuracy is of the others; 2:
wrong input.
"""

import argparse
import sys

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.errors import InputError
from coop_jax.printing import escaped, percent, plural


def shots(text: str) -> int | None:
    """Images per class; None for all there are."""
    return None if text == "all" else command_line.positive(text)


PARAMETERS = {
    "shots": (shots, "training images per class, or all; default 16"),
    "epochs": (command_line.whole, "default the method's; CoOp's is by the shots"),
    "seed": (command_line.whole, "of all that is drawn; default 1"),
    "batch_size": (command_line.positive, "images per step; default the method's, CoOp's 32"),
    "learning_rate": (command_line.number, "the highest; default the method's, CoOp's 0.002"),
}
"""Parameters of `Learner`, whose defaults hold where nothing is said."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("dataset", help="folder, .csv, .json, .npz, or name of the catalogue")
    parser.add_argument("saved", type=command_line.path, help="new folder for what is learned")
    options.add_clip(
        parser,
        "backbone of the papers, hub id, folder, file, or tiny; default ViT-B/16",
    )
    parser.add_argument("--method", default="", metavar="NAME", help="default coop")
    for name, (kind, text) in PARAMETERS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=argparse.SUPPRESS, metavar="N", help=text)
    options.add_settings(parser)
    parser.add_argument(
        "--class-names", type=command_line.path, metavar="FILE", help="lines 'label class name'"
    )
    options.add_data(parser)


def run(chosen: argparse.Namespace) -> int:
    """Learn, save, and say how well the test images are classified."""
    from coop_jax import collapse
    from coop_jax.commands import loading
    from coop_jax.data import catalog
    from coop_jax.learner import CLIP, Learner
    from coop_jax.methods import DEFAULT
    from coop_jax.saved import files, seen

    folder, method = chosen.saved, chosen.method or DEFAULT
    files.check_new(folder)
    learner = Learner(
        chosen.clip or CLIP,
        method=method,
        settings=options.settings(method, chosen.set),
        **{name: getattr(chosen, name) for name in PARAMETERS if hasattr(chosen, name)},
        **options.of_clip(chosen),
        data_dir=chosen.data_dir or "",
    )
    dataset = catalog.load(chosen.dataset, chosen.data_dir, chosen.class_names)
    try:
        learner.fit(dataset)
    except InputError as error:
        raise error.renamed(lambda name: f"--{name.replace('_', '-')}") from None
    learner.save(folder)
    classes = plural(len(learner.classes_), "class", "classes")
    print(escaped(f"saved {folder}: {method}, {classes}"), flush=True)
    used = seen.among(learner.training_, dataset.test)
    seen.tell(used, "test", "left out")
    test = dataset.test.subset((~used).nonzero()[0])
    found = learner.predict_many(test)
    if len(found.kept):
        predicted, labels = found.probabilities.argmax(axis=1), test.labels[found.kept]
        shown = percent(100 * (predicted == labels).mean())
        print(f"accuracy on the test images: {shown}", flush=True)
        if collapse.learned(learner.method_) and collapse.is_one_class(predicted, labels):
            why = collapse.cause(learner.method_)
            collapse.say_one_class(method, predicted, learner.classes_.tolist(), why)
    if sys.stdout.isatty():
        print(f"\nnext: coop_jax predict {folder} IMAGE ...\n      coop_jax interpret {folder}")
    return loading.report_unreadable(list(found.failures.values()), len(test))
