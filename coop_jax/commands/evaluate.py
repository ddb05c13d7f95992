"""Accuracy of a saved method on a dataset's labelled images.

  coop_jax evaluate my_prompt photographs
  coop_jax evaluate my_prompt photographs --csv per_image.csv --png confusion.png
  coop_jax evaluate my_prompt dtd --classes dataset:dtd --data-dir DATA

The last one is for what was learned on other classes. Elsewhere than on a terminal only
accuracy, macro F1 (both with a percent sign) and the number of images are printed, with tabs
between name and value. Exit code 0: all done; 1: some images could not be read, and the numbers are
of the others; 2: wrong input.

Images that it was learned from are left out, as standard error says, unless --split asks
for the training images: train and all.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.errors import InputError
from coop_jax.printing import cell, console, percent, plural

if TYPE_CHECKING:
    from coop_jax.commands.loading import Ready
    from coop_jax.confusion import Confusion
    from coop_jax.data.examples import Dataset

WORST = 5
"""Classes that a terminal shows."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    options.add_saved(parser)
    parser.add_argument("dataset", help="folder, .csv, .json, .npz, or name of the catalogue")
    parser.add_argument(
        "--split",
        default="test",
        choices=("test", "val", "train", "all"),
        help="default test; all is the three together",
    )
    parser.add_argument(
        "--class-names", type=command_line.path, metavar="FILE", help="lines 'label class name'"
    )
    parser.add_argument(
        "--csv",
        type=command_line.path,
        metavar="FILE",
        help="save label and prediction of every image",
    )
    parser.add_argument(
        "--png",
        type=command_line.path,
        metavar="FILE",
        help="save the confusion matrix as a picture",
    )
    parser.add_argument(
        "--json", type=command_line.path, metavar="FILE", help="save the numbers, of each class too"
    )


def run(chosen: argparse.Namespace) -> int:
    """Classify the images of the split; show and save how well that went."""
    from coop_jax import confusion, terminal
    from coop_jax.commands import loading
    from coop_jax.data import catalog
    from coop_jax.saved.use import warn_of_embedded_clip

    terminal.check_new([path for path in (chosen.csv, chosen.png, chosen.json) if path])
    dataset = catalog.load(chosen.dataset, chosen.data_dir, chosen.class_names)
    ready = loading.ready(chosen)
    dataset.check_space(ready.saved.backbone)
    warn_of_embedded_clip(ready.saved.backbone, dataset.name)
    rows, failures = _judge(ready, dataset, chosen.split)
    code = loading.report_unreadable(failures, len(rows) + len(failures))
    if not rows:
        raise InputError(
            f"expected images that can be read in the {chosen.split} split of {dataset.name}, got"
            " none; choose another --split"
        )
    paths, labels, predicted, *_ = zip(*rows, strict=True)
    names = ready.classes.names
    found = confusion.of(labels, predicted, names)
    shown = f"{percent(found.accuracy)} of {plural(len(paths), 'image')}"
    title = f"{dataset.name}, {chosen.split}: {shown}"
    _show(found, title)
    contents: dict[Path, str | bytes] = {}
    if chosen.csv:
        contents[chosen.csv] = _csv(rows, names)
    if chosen.json:
        record = {"dataset": dataset.full_name, "split": chosen.split, "unreadable": len(failures)}
        record |= found.record()
        contents[chosen.json] = json.dumps(record, indent=2, allow_nan=False) + "\n"
    if chosen.png:
        contents[chosen.png] = confusion.png(found, title)
    terminal.write_new(contents)
    return code


Row = tuple[str, int, int, float, float]
"""Path, label, predicted label, and the probabilities of both."""


def _judge(ready: "Ready", dataset: "Dataset", split: str) -> tuple[list[Row], list[str]]:
    """A row for every image that counts and can be read, and what is wrong with others."""
    import numpy as np

    from coop_jax.data import memory
    from coop_jax.saved import seen

    is_test = split in ("val", "test")
    rows: list[Row] = []
    failures: list[str] = []
    for name in ("train", "val", "test") if split == "all" else (split,):
        examples = getattr(dataset, name)
        if not len(examples):
            continue
        wanted = np.asarray(dataset.classes.ids)[examples.labels]
        try:
            labels = memory.label_numbers(wanted, ready.classes.ids)
        except InputError as error:
            raise InputError(
                f"{error}, or take those of a dataset: --classes dataset:NAME"
            ) from error
        counted = seen.to_count(ready.saved.training, examples, leave_out=is_test)
        examples, labels = examples.subset(counted), labels[counted]
        found = ready.predictor.predict(examples)
        failures += found.failures.values()
        for place, probabilities in zip(found.kept, found.probabilities, strict=True):
            label, predicted = int(labels[place]), int(probabilities.argmax())
            both = float(probabilities[label]), float(probabilities[predicted])
            rows.append((str(examples.file_names[place]), label, predicted, *both))
    return rows, failures


def _csv(rows: list[Row], names: tuple[str, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "predicted", "label_probability", "predicted_probability"))
    for path, label, predicted, *probabilities in rows:
        writer.writerow((path, names[label], names[predicted], *probabilities))
    return text.getvalue()


def _show(found: "Confusion", title: str) -> None:
    if not sys.stdout.isatty():
        print("accuracy", f"{found.accuracy:.4f} %", sep="\t")
        print("macro_f1", f"{found.macro_f1:.4f} %", sep="\t")
        print("images", found.counts.sum(), sep="\t")
        return
    from rich import box
    from rich.table import Table

    out = console()
    table = Table("hardest classes", box=box.SIMPLE_HEAD)
    for column in ("accuracy", "images"):
        table.add_column(column, justify="right")
    table.add_column("mostly taken for")
    for worst in found.hardest(WORST):
        shown = percent(worst.accuracy), str(worst.images), worst.mistaken_for or ""
        table.add_row(*(cell(text, out) for text in (worst.name, *shown)))
    out.print(cell(f"{title}; macro F1 {percent(found.macro_f1)}", out))
    if table.row_count:
        out.print(table)
