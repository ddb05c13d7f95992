"""Train and evaluate as a config says; the same command again goes on where it stopped.

coop_jax run --config=quickstart --workdir=/tmp/quickstart
coop_jax run --config=coop_few_shot:dtd --config.data_dir=DATA --workdir=runs/dtd
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from coop_jax import command_line, config_files
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


def run(chosen: argparse.Namespace) -> int:
    """Run the chosen config, as one of several processes where that is said; show the results."""
    config = config_files.load(chosen.config, chosen.settings)
    cluster = _cluster(chosen)
    if cluster is not None:
        from coop_jax import parallel

        parallel.join(*cluster)
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


def _cluster(chosen: argparse.Namespace) -> tuple[Any, Any, Any] | None:
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
    if said and not re.fullmatch(r"\S+:\d{1,5}", chosen.coordinator):
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
    shots, seed = max(config["shots"]), config["seeds"][0]
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
