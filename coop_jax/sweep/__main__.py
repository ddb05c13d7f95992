"""Run many configs, on this machine or with Ray.

  coop_jax sweep coop_few_shot:dtd linear_probe:dtd --config.data_dir=DATA --workdir=runs/sweep

A group is one config: its shots and seeds run in one process, on features that are encoded once, in
the workdir DIR/groups/NAME. DIR/results.jsonl has the results of all groups, each once, DIR/logs
what each said. The same command again goes on where it stopped, and more configs may be added.

Without Ray the groups run here, one after the other. With Ray each is a task on some node of the
cluster, which is tried again if it crashes or its node is lost. Then DIR, the datasets and the
files of the CLIP must lie on storage that all nodes see under the same paths, and all nodes need
the same installation.

Exit code 0: all groups came to their end; 1: some failed; 2: wrong input, found before anything was
started.
"""

import argparse
import collections
import functools
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from coop_jax import command_line, config_files, results, sweep, writing
from coop_jax.errors import InputError
from coop_jax.printing import cell, console, escaped, plural
from coop_jax.sweep.execute import Outcome, in_this_process, on_ray
from coop_jax.sweep.groups import GROUPS, Group, open_inputs, plan
from coop_jax.terminal import check_name, times

logger = logging.getLogger(sweep.__name__)

MOST = 10**6
"""The largest amount of a resource, and the most tries."""

FAILURES = 1
"""Exit code when a group failed."""


def collect(workdir: Path) -> collections.Counter[str]:
    """Write one file of the results of all groups below a sweep's workdir, each once.

    Those of an earlier command are among them. The file is whole at any time.

    Returns:
        The number of results by the group's name.

    Raises:
        MachineError: the file cannot be written, or a group's not be read.
    """
    lines: dict[tuple, bytes] = {}
    for path in sorted((workdir / GROUPS).glob(f"*/{results.FILE_NAME}")):
        for row, line in zip(results.read(path), path.read_bytes().split(b"\n"), strict=False):
            key = row.dataset, row.split, row.method, row.prompt, row.shots, row.seed
            lines.setdefault((path.parent.name, *key), line + b"\n")
    file = workdir / results.FILE_NAME
    with writing.said("write results", file):
        writing.write_whole(file, b"".join(lines.values()))
    return collections.Counter(name for name, *_ in lines)


def follow(groups: Sequence[Group], outcomes: Iterable[Outcome], workdir: Path) -> list[Outcome]:
    """Follow the groups, and collect their results after each; those that failed."""
    with writing.said("make a folder", workdir / GROUPS):
        (workdir / GROUPS).mkdir(exist_ok=True)
    failed, began = [], time.monotonic()
    for done, outcome in enumerate(outcomes, start=1):
        group, failure = outcome
        count = collect(workdir)[group.name]
        failed += [outcome] if failure else []
        elapsed, left = time.monotonic() - began, len(groups) - done
        logger.info(
            "%s: %s  [%s left; %s]",
            *(group.name, f"failed: {failure}" if failure else plural(count, "result")),
            *(plural(left, "group"), times(elapsed, elapsed / done * left)),
        )
    collect(workdir)
    return failed


def _show(failed: Iterable[Outcome], out: Console) -> None:
    table = Table(title="groups that failed")
    for column in ("config", "why", "log"):
        table.add_column(column, overflow="fold")
    for group, failure in failed:
        words = group.chosen, failure or "", str(group.log)
        table.add_row(*(cell(word, out) for word in words))
    out.print(table)


def _amount(text: str) -> float:
    if not 0 <= (amount := command_line.number(text)) <= MOST:
        raise argparse.ArgumentTypeError(f"expected 0 to {MOST}, got {text!r:.80}")
    return amount


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"expected NAME=AMOUNT, got {text!r:.80}")
    return name, _amount(amount)


RAY_OPTIONS = {
    "cpus": (_amount, 1, "CPU cores per group"),
    "gpus": (_amount, 0, "GPUs per group"),
    "retries": (
        lambda text: command_line.whole(text, highest=MOST),
        3,
        "how often a crashed group is tried again",
    ),
}
"""Options that Ray needs: how each is read, its default, and what it is."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help=config_files.CHOSEN_HELP)
    parser.add_argument(
        "--workdir",
        type=command_line.path,
        required=True,
        metavar="DIR",
        help="folder of the whole sweep",
    )
    command_line.add_settings(parser, "change a setting of every config")
    ray = parser.add_argument_group("with Ray (pip install 'coop_jax[ray]')")
    ray.add_argument(
        "--ray",
        nargs="?",
        metavar="ADDRESS",
        help="--ray=HOST:PORT: run on that cluster; --ray: on the one that this machine belongs to,"
        " or else on this machine alone; --ray=local: on this machine alone",
    )
    for name, (kind, value, text) in RAY_OPTIONS.items():
        ray.add_argument(f"--{name}", type=kind, metavar="N", help=f"{text}; default {value}")
    ray.add_argument(
        "--resource",
        type=_resource,
        action="append",
        metavar="NAME=AMOUNT",
        help="any other resource per group, e.g. TPU=4; may be repeated",
    )


def run(chosen: argparse.Namespace) -> int:
    """Run the groups that are left; 0 if all is well, `FAILURES` if a group failed."""
    for name in (*RAY_OPTIONS, "resource"):
        if chosen.ray is None and getattr(chosen, name) is not None:
            raise InputError(f"expected --ray with --{name}, got none; add --ray")
    start = here if chosen.ray is None else functools.partial(_on_ray, chosen)
    return run_all(chosen.configs, chosen.settings, chosen.workdir, start)


def run_all(
    configs: Sequence[str],
    settings: Sequence[str],
    workdir: Path,
    start: Callable[[Sequence[Group]], Iterable[Outcome]],
) -> int:
    """Run the groups that are left of these configs; 0 if all is well, `FAILURES` if one failed.

    Args:
        configs: as the command takes them.
        settings: "KEY=VALUE" each, of every config.
        workdir: of the whole sweep.
        start: runs some groups.

    Raises:
        InputError: a config cannot run, or the workdir is in use.
    """
    from coop_jax import workdir as workdir_module

    check_name(workdir)
    folder = workdir.absolute()
    with workdir_module.locked(folder):
        groups = plan(configs, settings, folder)
        left = [group for group in groups if not group.is_finished]
        open_inputs(left)
        if len(left) < len(groups):
            logger.info("%d of %d groups are finished", len(groups) - len(left), len(groups))
        failed = follow(left, start(left) if left else (), folder)
        if failed:
            _show(failed, console())
        print(escaped(f"results: {folder / results.FILE_NAME}"))
        return FAILURES if failed else 0


def here(groups: Sequence[Group]) -> Iterable[Outcome]:
    """Run groups in this process, one after the other."""
    from coop_jax import parallel

    parallel.devices()
    return in_this_process(groups)


def _on_ray(chosen: argparse.Namespace, groups: Sequence[Group]) -> Iterable[Outcome]:
    numbers = {
        name: value if getattr(chosen, name) is None else getattr(chosen, name)
        for name, (_, value, _) in RAY_OPTIONS.items()
    }
    needs = {"CPU": numbers["cpus"], "GPU": numbers["gpus"], **dict(chosen.resource or ())}
    return on_ray(groups, chosen.ray, needs, numbers["retries"])


if __name__ == "__main__":
    sys.exit(command_line.main("sweep", __name__))
