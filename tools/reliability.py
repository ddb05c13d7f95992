"""Disturb runs in every way that machines and people do, and count what is lost.

    python tools/reliability.py --size=ci
    python tools/reliability.py --size=record --record=record.jsonl --write-docs

Every trial is chosen by a seed and can be run alone by its name, which is printed where it fails;
its folder is kept. A record is made in pieces: what it has is not tried again.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trials import disks, kills, outside, process, record, runs, several, torn, workers


class Kind(NamedTuple):
    """A kind of trials: how they are chosen and done, what the table says, and how many there are.

    `plan` takes their number, the seed and the folder of the undisturbed runs. The numbers are
    those of the sizes ci and record.
    """

    plan: Callable[[int, int, Path], list[dict[str, Any]]]
    run: Callable[[dict[str, Any], Path, Path], str | dict[str, Any]]
    called: str
    ci: int
    record: int


KINDS = {
    "kills": Kind(kills.plan, kills.run, "runs killed (SIGKILL) and gone on with", 20, 200),
    "torn": Kind(torn.plan, torn.run, "files damaged between two processes", 28, 200),
    "disks": Kind(disks.plan, disks.run, "disks that fail at a write", 12, 40),
    "signals": Kind(
        several.plan_signals, several.run_signal, "runs stopped by SIGTERM or Ctrl-C", 4, 20
    ),
    "deaths": Kind(several.plan_deaths, several.run_death, "deaths of one of two processes", 1, 10),
    "writers": Kind(
        several.plan_writers, several.run_writers, "second processes on a workdir in use", 2, 10
    ),
    "inputs": Kind(outside.plan_inputs, outside.run_inputs, "bad inputs", 0, 250),
    "fuzz": Kind(outside.plan_fuzz, outside.run_fuzz, "executions of the fuzzer", 20_000, 10**6),
    "soak": Kind(
        outside.plan_soak, outside.run_soak, "epochs and runs in one process, memory flat", 0, 50
    ),
}


def main() -> int:
    """Read the command line and try; the exit code is 1 where something was lost."""
    chosen = _arguments()
    work = Path(chosen.work or tempfile.mkdtemp(prefix="reliability_")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    if chosen.serve:
        workers.serve({name: kind.run for name, kind in KINDS.items()}, work)
        return 0
    path = Path(chosen.record or work / "record.jsonl")
    lost = 0
    if chosen.kinds:
        lost = try_all(chosen, work, path)
    called = {name: kind.called for name, kind in KINDS.items()}
    print(record.table(record.read(path), called))
    if chosen.write_docs:
        record.write_docs(record.read(path), called)
    return 1 if lost else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("ci", "record"), default="ci", help="how much is tried")
    parser.add_argument(
        "--kinds",
        type=lambda text: [kind for kind in text.split(",") if kind],
        default=list(KINDS),
        metavar="KIND,...",
        help=f"of {', '.join(KINDS)}; all by default",
    )
    parser.add_argument(
        "--runs",
        type=lambda text: text.split(","),
        default=list(runs.CONFIGURATIONS),
        metavar="RUN,...",
        help=f"that are disturbed, of {', '.join(runs.CONFIGURATIONS)}; all by default",
    )
    parser.add_argument("--seed", type=int, default=1, help="which trials are chosen")
    parser.add_argument("--only", metavar="TEXT", help="trials whose name has this in it")
    parser.add_argument("--record", metavar="FILE", help="of JSON lines, which results go to")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no trial after these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials at a time")
    parser.add_argument("--work", metavar="FOLDER", help="for trials; a temporary one by default")
    parser.add_argument(
        "--write-docs", action="store_true", help="write the table of docs/reliability.md"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := [kind for kind in chosen.kinds if kind not in KINDS]:
        parser.error(f"expected kinds of {', '.join(KINDS)}, got {', '.join(unknown)}")
    for name in set(runs.CONFIGURATIONS) - {*chosen.runs}:
        del runs.CONFIGURATIONS[name]
    return chosen


def try_all(chosen: argparse.Namespace, work: Path, path: Path) -> int:
    """Try what is not in the record; say what is lost, and how often."""
    began = time.monotonic()
    process.compile_faults(work)
    script = str(Path(__file__).resolve())
    pool = workers.Workers(chosen.jobs, work, [script, "--serve", f"--work={work}"])
    try:
        _make(pool, chosen.kinds, work)
        trials = _planned(chosen, work, {row["name"] for row in record.read(path)})
        lost = 0
        late = lambda: time.monotonic() - began > 60 * chosen.minutes  # noqa: E731
        for trial, answer in pool.do(trials, late):
            record.append(path, trial, answer)
            lost += bool(answer["wrong"])
            if answer["wrong"]:
                folder = work / "trials" / trial["name"]
                print(f"LOST {trial}\n     {answer['wrong']}\n     kept in {folder}", flush=True)
        return lost
    finally:
        pool.close()


def _make(pool: workers.Workers, kinds: list[str], work: Path) -> None:
    """Make the undisturbed runs that these kinds of trials need, and half-finished ones.

    Raises:
        SystemExit: one of them does not end as it must.
    """
    if set(kinds) <= {"inputs", "fuzz", "soak"}:
        return
    every = list(runs.CONFIGURATIONS)
    made = {"undisturbed": every}
    made |= {"half-way": every} if "torn" in kinds else {}
    made |= {"pair": ["coop"]} if "deaths" in kinds else {}
    for what, configurations in made.items():
        asked = [{"kind": what, "configuration": name} for name in configurations]
        for trial, answer in pool.do(asked):
            print(f"{what}, {trial['configuration']}: {answer['seconds']} s", flush=True)
            if answer["wrong"]:
                raise SystemExit(f"expected a run to end, got {answer['wrong']}; see {work}")


def _planned(chosen: argparse.Namespace, work: Path, done: set[str]) -> list[dict[str, Any]]:
    """Return the chosen trials that are not done, evenly mixed: time may end them."""
    trials: list[tuple[float, dict[str, Any]]] = []
    for name in chosen.kinds:
        kind = KINDS[name]
        count = kind.ci if chosen.size == "ci" else kind.record
        planned = kind.plan(count, chosen.seed, runs.states(work)) if count else []
        for number, trial in enumerate(planned, start=1):
            called = f"{name}-{chosen.seed}-{number}-{trial['configuration']}"
            if called not in done and (chosen.only or "") in called:
                trial = {"kind": name, "name": called, "seed": chosen.seed, **trial}
                trials.append((number / len(planned), trial))
    return [trial for _, trial in sorted(trials, key=lambda pair: pair[0])]


if __name__ == "__main__":
    sys.exit(main())
