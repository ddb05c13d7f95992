r"""Class and probability of images: files, folders, patterns; or of features.

  coop_jax predict my_prompt cat.jpg
  coop_jax predict my_prompt folder/ 'more/*.jpg' --top 5 --csv predictions.csv
  coop_jax predict my_prompt folder/ --classes cat,dog,hen
  coop_jax predict learned_from_features embeddings.npy

On a terminal a table; elsewhere a line per image (and class, with --top): path, class and
probability (from 0 to 1), with tabs between them. Tabs and ends of lines in names are written as \t
and \n; the files that --csv and --json name have them as they are. Exit code 0: all done; 1: some
images could not be read, as standard error says line by line, and the others are done; 2: wrong
input.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coop_jax import command_line
from coop_jax.commands import options
from coop_jax.printing import cell, console, escaped, percent

if TYPE_CHECKING:
    from coop_jax.commands.loading import Ready
    from coop_jax.data.examples import Examples

Row = tuple[str, int, str, float]
"""Path, rank from 1, class and probability."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    options.add_saved(parser)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="file, folder or 'pattern'; .npy or .npz where it was learned from features",
    )
    parser.add_argument(
        "--top", type=command_line.positive, default=1, metavar="K", help="the K likeliest classes"
    )
    parser.add_argument("--csv", type=command_line.path, metavar="FILE", help="save a table here")
    parser.add_argument("--json", type=command_line.path, metavar="FILE", help="save as JSON here")


def run(chosen: argparse.Namespace) -> int:
    """Classify the images and show or save what is found."""
    from coop_jax import terminal
    from coop_jax.commands import loading
    from coop_jax.saved.use import warn_of_embedded_clip

    terminal.check_new([path for path in (chosen.csv, chosen.json) if path])
    paths = loading.find_images(chosen.images)
    ready = loading.ready(chosen)
    warn_of_embedded_clip(ready.saved.backbone, ready.saved.training.get("dataset"))
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for names, images in _images(paths, ready):
        found = ready.predictor.predict(images)
        for place, probabilities in zip(found.kept, found.probabilities, strict=True):
            likeliest = (-probabilities).argsort(kind="stable")[: chosen.top]
            for rank, label in enumerate(likeliest, start=1):
                name = ready.classes.names[label]
                rows.append((names[place], rank, name, float(probabilities[label])))
        failures |= {names[place]: line for place, line in found.failures.items()}
    _show(rows)
    contents = {chosen.csv: _csv(rows), chosen.json: _json(rows, failures)}
    terminal.write_new({path: text for path, text in contents.items() if path})
    return loading.report_unreadable(list(failures.values()), len(paths))


def _images(paths: list[str], ready: "Ready") -> "list[tuple[list[str], list[str] | Examples]]":
    """Return names and images, a pair for each file of features."""
    if not ready.saved.space:
        return [(paths, paths)]
    from coop_jax.data import features

    size, backbone = ready.clip.config.embedding, ready.saved.backbone
    files = [features.read_rows(Path(path), size, backbone) for path in paths]
    return [(rows.file_names.tolist(), rows) for rows in files]


def _show(rows: Sequence[Row]) -> None:
    if not sys.stdout.isatty():
        for path, _, name, probability in rows:
            print(escaped(path), escaped(name), f"{probability:.6f}", sep="\t")
        return
    from rich import box
    from rich.table import Table

    out, table = console(), Table(box=box.SIMPLE_HEAD)
    for column in ("image", "class"):
        table.add_column(column, overflow="fold")
    table.add_column("probability", justify="right", no_wrap=True)
    for path, rank, name, probability in rows:
        shown = path if rank == 1 else "", name, percent(100 * probability)
        table.add_row(*(cell(text, out) for text in shown))
    out.print(table)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "rank", "class", "probability"))
    writer.writerows(rows)
    return text.getvalue()


def _json(rows: Sequence[Row], failures: dict[str, str]) -> str:
    """A list of an object per image: its classes, or else what is wrong with it."""
    images: dict[str, dict] = {}
    for path, _, name, probability in rows:
        image = images.setdefault(path, {"path": path, "classes": []})
        image["classes"].append({"class": name, "probability": probability})
    wrong = [{"path": path, "error": line} for path, line in failures.items()]
    every = [*images.values(), *wrong]
    return json.dumps(every, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
