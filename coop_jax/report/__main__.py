"""Tables and pictures from results.jsonl.

coop_jax report runs/dtd
coop_jax report runs --csv report.csv --png report.png
coop_jax report runs/compare --compare
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coop_jax import command_line, report
from coop_jax import results as results_file
from coop_jax.errors import InputError
from coop_jax.printing import escaped
from coop_jax.report.sheet import csv_text
from coop_jax.terminal import check_name
from coop_jax.writing import said, write_whole


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "paths",
        nargs="+",
        type=command_line.path,
        metavar="PATHS",
        help="workdirs, results files, or folders of workdirs; read together if several",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="one table of all methods: what each learns and uses, intervals, significance",
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    parser.add_argument(
        "--csv", type=command_line.path, metavar="FILE", help="save all numbers, unrounded"
    )
    parser.add_argument(
        "--png", type=command_line.path, metavar="FILE", help="save the picture here"
    )


def run(chosen: argparse.Namespace) -> int:
    """Print the tables, and save them as CSV and the pictures where asked; the exit code."""
    if chosen.png is not None:
        report.check_picture_path(chosen.png)
    results = [result for path in _files(chosen.paths) for result in results_file.read(path)]
    make, draw = report.tables, report.pictures
    if chosen.compare:
        make, draw = report.comparisons, report.pictures_of_comparisons
    _show(make(results), chosen.markdown, chosen.csv)
    if chosen.png is not None:
        drawn = draw(results, chosen.png)
        for path in drawn:
            print(escaped(f"saved {path}"), file=sys.stderr)
        if not drawn:
            print("saved no picture: there is none for these results", file=sys.stderr)
    return 0


def _show(sheets: Sequence[Any], markdown: bool, csv: Path | None) -> None:
    """Print tables, and save their numbers where asked."""
    for sheet in sheets:
        if markdown:
            print(sheet.markdown(), end="\n\n")
        else:
            report.console().print(sheet)
    if csv is not None:
        with said("write a table", csv):
            csv.parent.mkdir(parents=True, exist_ok=True)
            write_whole(csv, csv_text(sheets).encode(errors="backslashreplace"))
        print(escaped(f"saved {csv}"), file=sys.stderr)


def _files(paths: Sequence[Path]) -> list[Path]:
    """The results files that the paths name, each once.

    Raises:
        InputError: a folder has none, nor has a folder below it.
    """
    files: dict[Path, Path] = {}
    for path in paths:
        check_name(path)
        own = path / results_file.FILE_NAME
        below = sorted(path.rglob(own.name)) if path.is_dir() and not own.is_file() else [own]
        if not below:
            raise InputError(
                f"expected a {own.name} in {path} or in a folder below it, got none; run an"
                " evaluation first"
            )
        for file in below if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)
    return list(files.values())


if __name__ == "__main__":
    sys.exit(command_line.main("report", __name__))
