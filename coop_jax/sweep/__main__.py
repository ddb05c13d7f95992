"""python -m coop_jax.sweep CONFIG[:ARGUMENT] ... --workdir=DIR; see --help."""

import argparse
import datetime
import logging
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coop_jax import results, sweep
from coop_jax.errors import InputError
from coop_jax.sweep.execute import Outcome, in_this_process, on_ray
from coop_jax.sweep.groups import GROUPS, Group, open_inputs, plan
from coop_jax.terminal import command

logger = logging.getLogger(sweep.__name__)

FAILURES = 1
"""Exit code when a group failed."""


class Collection:
    """The results of all groups below a sweep's workdir, those of an earlier command included."""

    def __init__(self, workdir: Path):
        self.path = workdir / results.FILE_NAME
        self._lines: dict[str, list[bytes]] = {}
        for folder in sorted((workdir / GROUPS).glob("*")):
            self.read(folder)

    def read(self, folder: Path) -> int:
        """Read the results of a group's workdir anew; how many there are."""
        path = folder / results.FILE_NAME
        if not path.is_file():
            return 0
        lines = path.read_bytes().split(b"\n")
        found = {}
        for row, line in zip(results.read(path), lines, strict=False):
            key = row.dataset, row.split, row.method, row.prompt, row.shots, row.seed
            found.setdefault(key, line + b"\n")
        self._lines[folder.name] = list(found.values())
        return len(found)

    def write(self) -> None:
        """Write the one file of them all; it is whole at any time."""
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_bytes(b"".join(line for found in self._lines.values() for line in found))
        unfinished.replace(self.path)


def run(groups: Sequence[Group], outcomes: Iterable[Outcome], workdir: Path) -> list[Outcome]:
    """Follow the groups, and collect their results after each; those that failed.

    Raises:
        InputError: the workdir cannot be written.
    """
    try:
        (workdir / GROUPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"expected a --workdir to write to, got {workdir} ({error.strerror}); name another"
        ) from error
    collection = Collection(workdir)
    failed, began = [], time.monotonic()
    for done, outcome in enumerate(outcomes, start=1):
        group, failure = outcome
        count = collection.read(group.folder)
        collection.write()
        failed += [outcome] if failure else []
        elapsed, left = time.monotonic() - began, len(groups) - done
        logger.info(
            "%s: %s  [%s, %d left, about %s]",
            *(group.name, f"failed: {failure}" if failure else f"{count} results"),
            *(_duration(elapsed), left, _duration(elapsed / done * left)),
        )
    collection.write()
    return failed


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _show(failed: Iterable[Outcome], console: Console) -> None:
    table = Table(title="groups that failed")
    for column in ("config", "why", "log"):
        table.add_column(column, overflow="fold")
    for group, failure in failed:
        table.add_row(*map(escape, (group.chosen, failure or "", str(group.log))))
    console.print(table)


def _amount(text: str) -> float:
    if not (amount := float(text)) >= 0:
        raise ValueError
    return amount


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.rpartition("=")
    if not name:
        raise ValueError
    return name, _amount(amount)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m coop_jax.sweep",
        description=(sweep.__doc__ or "").partition("\n\n")[2],
        epilog="Exit code 0: all groups came to their end; 1: some failed; 2: bad input, found"
        " before anything was started.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="configs/FILE.py or configs/FILE.py:ARGUMENT"
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="folder of the whole sweep"
    )
    parser.add_argument("--config.KEY", metavar="VALUE", help="change a setting of every config")
    ray = parser.add_argument_group("with Ray (pip install -e '.[ray]')")
    ray.add_argument(
        "--ray",
        nargs="?",
        metavar="ADDRESS",
        help="--ray=HOST:PORT: run on that cluster; --ray: on the one that this machine belongs to,"
        " or else on this machine alone; --ray=local: on this machine alone",
    )
    ray.add_argument("--cpus", type=_amount, default=1, help="CPU cores per group; default 1")
    ray.add_argument("--gpus", type=_amount, default=0, help="GPUs per group; default 0")
    ray.add_argument(
        "--resource",
        type=_resource,
        action="append",
        default=[],
        metavar="NAME=AMOUNT",
        help="any other resource per group, e.g. TPU=4; may be repeated",
    )
    ray.add_argument(
        "--retries", type=int, default=3, help="how often a crashed group is tried again; default 3"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the arguments name.

    Returns:
        0 if all is well, `FAILURES` if a group failed, 2 for bad input.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [word for word in words if re.match(r"--config\.[\w.]+=", word)]
    # An optional value would take the config that follows.
    rest = ["--ray=" if word == "--ray" else word for word in words if word not in overrides]
    parser = _parser()
    options = parser.parse_intermixed_args(rest)
    workdir = options.workdir.expanduser().absolute()
    needs = {"CPU": options.cpus, "GPU": options.gpus, **dict(options.resource)}

    def check_and_run() -> int:
        for name in ("cpus", "gpus", "resource", "retries"):
            if options.ray is None and getattr(options, name) != parser.get_default(name):
                raise InputError(f"expected --ray with --{name}, got none; add --ray")
        groups = plan(options.configs, overrides, workdir)
        left = [group for group in groups if not group.is_finished]
        open_inputs(left)
        if len(left) < len(groups):
            logger.info("%d of %d groups are finished", len(groups) - len(left), len(groups))
        if not left or options.ray is None:
            outcomes = in_this_process(left)
        else:
            outcomes = on_ray(left, options.ray, needs, options.retries)
        failed = run(left, outcomes, workdir)
        console = Console() if sys.stdout.isatty() else Console(width=120, no_color=True)
        if failed:
            _show(failed, console)
        console.print(f"results: {workdir / results.FILE_NAME}", soft_wrap=True, markup=False)
        return FAILURES if failed else 0

    return command(check_and_run)


if __name__ == "__main__":
    sys.exit(main())
