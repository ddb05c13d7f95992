"""Find out what is missing or broken in datasets.

  coop_jax check dtd eurosat --data-dir=DATA
  coop_jax check photographs

Counts, class names and the split are compared with what the papers used, every image is decoded,
and images that are there more than once are found. What training would refuse is a problem; what
may be meant, such as an image that is both in train and in test, is a warning. Exit code 0: no
problems; 1: problems were found, with what to do; 2: wrong input.
"""

import argparse
import sys

from rich.console import Console
from rich.table import Table

from coop_jax import command_line, printing
from coop_jax.data import catalog, doctor
from coop_jax.data.doctor import Findings
from coop_jax.data.official import OFFICIAL
from coop_jax.printing import cell
from coop_jax.terminal import count_images

ALL = "all"
PROBLEMS = 1
"""Exit code when problems were found."""


def show(findings: Findings, console: Console) -> None:
    """Print what was found."""
    dataset = findings.dataset
    title = findings.name if dataset is None else f"{findings.name} in {dataset.place}"
    console.print(cell(title, console, "bold"), soft_wrap=True)
    if dataset is not None:
        table = Table()
        rows = [*findings.counts, ("classes", len(dataset.classes.names), _classes(findings))]
        is_known = any(expected is not None for *_, expected in rows)
        table.add_column("split")
        for column in ("images", *["expected"] * is_known):
            table.add_column(column, justify="right")
        for what, number, expected in rows:
            shown = "" if expected is None else f"{expected:,}"
            colour = "red" if expected not in (None, number) else ""
            table.add_row(what, f"{number:,}", *[shown] * is_known, style=colour)
        console.print(table)
    for note in findings.notes:
        console.print(cell(f"  {note}", console), soft_wrap=True)
    for word, colour, lines in (
        ("warning", "yellow", findings.warnings),
        ("problem", "red", findings.problems),
    ):
        for line in lines:
            shown = cell(f"  {word}: {line}", console)
            shown.stylize(colour, 2, len(f"  {word}:"))
            console.print(shown, soft_wrap=True)


def _classes(findings: Findings) -> int | None:
    row = OFFICIAL.get(findings.name)
    return row.n_classes if row else None


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(catalog.names())}, {ALL} for the papers' datasets, or a folder, .csv or"
        " .json of own images, or an .npz of features",
    )
    parser.add_argument("--data-dir", help="data directory; default $TFDS_DATA_DIR")
    parser.add_argument("--quick", action="store_true", help="do not read the images")


def run(chosen: argparse.Namespace) -> int:
    """Check the datasets; `PROBLEMS` if there are problems, 0 if not, whatever the warnings."""
    names = [n for name in chosen.names for n in (OFFICIAL if name == ALL else (name,))]
    catalog.check_names(names)
    data_dir = catalog.data_directory(chosen.data_dir)
    console = printing.console()
    faulty = []
    for name in dict.fromkeys(names):
        findings = doctor.examine(name, data_dir)
        if chosen.quick:
            doctor.compare_paths(findings)
        elif findings.dataset is not None:
            with count_images(doctor.count(findings), name) as advance:
                doctor.decode(findings, advance)
        show(findings, console)
        faulty += [name] if findings.problems else []
    if faulty:
        console.print(cell(f"problems in {', '.join(faulty)}", console), soft_wrap=True)
    return PROBLEMS if faulty else 0


if __name__ == "__main__":
    sys.exit(command_line.main("check", __name__))
