"""Train and evaluate as a config says; the same command again goes on where it stopped.

coop_jax run --config=quickstart --workdir=/tmp/quickstart
coop_jax run --config=coop_few_shot:dtd --config.data_dir=DATA --workdir=runs/dtd
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coop_jax import cluster, command_line, config_files
from coop_jax.errors import InputError
from coop_jax.holding import check_held
from coop_jax.printing import escaped, plural

if TYPE_CHECKING:
    from coop_jax.experiment import Experiment
    from coop_jax.protocols import Plan
    from coop_jax.results import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--config", required=True, metavar="NAME", help=config_files.CHOSEN_HELP)
    command_line.add_settings(parser, 'e.g. --config.clip.name=ViT-B/16 --config.shots="(1,4)"')
    parser.add_argument(
        "--workdir",
        required=True,
        type=command_line.path,
        metavar="FOLDER",
        help="for results and checkpoints",
    )
    several = parser.add_argument_group("one of several processes")
    several.add_argument(
        "--distributed", action="store_true", help="on a TPU pod slice or a cluster"
    )
    several.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="of the first process, where the cluster does not say it",
    )
    several.add_argument(
        "--processes", type=command_line.positive, metavar="N", help="how many there are"
    )
    several.add_argument(
        "--process", type=command_line.whole, metavar="I", help="which one this is, from 0"
    )
    several.add_argument(
        "--timeout",
        type=command_line.positive,
        metavar="SECONDS",
        help=f"in which all have to come (default: {cluster.TIMEOUT})",
    )


def run(chosen: argparse.Namespace) -> int:
    """Run the chosen config, as one of several processes where that is said; show the results.

    Several configs of one file are run as a sweep is.
    """
    several = _several(chosen)
    configs = config_files.load_all(chosen.config, chosen.settings)
    if list(configs) != [""]:
        return _compare(chosen, several)
    config = configs[""]
    if several is not None:
        cluster.join(*several, chosen.timeout or cluster.TIMEOUT)
    from coop_jax import protocols, workdir

    try:
        protocols.check(config)
        with workdir.held(config, chosen.workdir):
            experiment, plan, rows = protocols.run(config, chosen.workdir)
            check_held(chosen.workdir)
            show(experiment, plan, rows)
    except InputError as error:
        raise error.renamed(lambda name: f"--{name}") from None
    return 0


def _compare(chosen: argparse.Namespace, several: Any) -> int:
    """Run all configs of the file as a sweep, and show how their methods compare; the exit code."""
    if several is not None:
        raise InputError(
            f"--config={chosen.config:.80}: expected one config for several processes, got several"
            " configs; run them one by one, or by coop_jax sweep --ray"
        )
    from coop_jax import report, results
    from coop_jax.sweep.__main__ import here, run_all

    code = run_all([chosen.config], chosen.settings, chosen.workdir, here)
    rows = results.read(chosen.workdir / results.FILE_NAME)
    if rows:
        for found in report.comparisons(rows):
            report.console().print(found)
        for picture in report.pictures_of_comparisons(rows, chosen.workdir / "report.png"):
            print(escaped(f"picture: {picture}"))
    return code


def _several(chosen: argparse.Namespace) -> tuple[Any, Any, Any] | None:
    """Return coordinator, processes and process, all or none of which are said; None for one alone.

    Raises:
        InputError: some of them are said alone, or do not fit together.
    """
    names = ("coordinator", "processes", "process")
    said = [f"--{name}" for name in names if getattr(chosen, name) is not None]
    if said and len(said) < len(names):
        missing = [f"--{name}" for name in names if getattr(chosen, name) is None]
        raise InputError(
            f"expected --coordinator, --processes and --process together, got {', '.join(said)}"
            f" without {' and '.join(missing)}; give all three, or --distributed alone where the"
            " cluster says them"
        )
    if chosen.timeout is not None and not said and not chosen.distributed:
        raise InputError(
            f"--timeout: expected it for one of several processes, got {chosen.timeout} for one"
            " alone; leave it out, or say which this is"
        )
    host_and_port = re.fullmatch(r"\S+:(\d{1,5})", chosen.coordinator or "")
    if said and not (host_and_port and 0 < int(host_and_port[1]) < 2**16):
        raise InputError(
            f"--coordinator: expected HOST:PORT, got {chosen.coordinator!r:.80}; name the first"
            " process so"
        )
    if said and chosen.process >= chosen.processes:
        raise InputError(
            f"--process: expected 0 to {chosen.processes - 1} of {chosen.processes} processes, got"
            f" {chosen.process}; correct it"
        )
    return tuple(getattr(chosen, name) for name in names) if said or chosen.distributed else None


def show(experiment: "Experiment", plan: "Plan", rows: "list[Result]") -> None:
    """Print the tables, draw the pictures, and show the words nearest to a learned context."""
    from coop_jax import interpret, parallel, report

    config, workdir = experiment.config, experiment.workdir
    shots, seed = max(experiment.shots), config["seeds"][0]
    learned = experiment.run(shots, seed, plan.part)
    method = experiment.learned(learned)
    if not parallel.is_first():
        return
    console = report.console()
    for sheet in report.tables(rows):
        console.print(sheet)
    pictures = report.pictures(rows, workdir / "report.png")
    title = f"nearest words, {plural(shots, 'shot')}, seed {seed}"
    names = learned.dataset.classes.names
    for words in interpret.of_method(method, experiment.frozen, names, title):
        console.print(words)
    print(escaped(f"results: {experiment.results_path}"))
    print(escaped(f"what was learned: {workdir / 'saved'}"))
    for picture in pictures:
        print(escaped(f"picture: {picture}"))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    return command_line.main("run", __name__, words)


if __name__ == "__main__":
    sys.exit(main())
