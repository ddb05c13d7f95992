"""Experimental protocols: what is trained on which classes, and evaluated on what."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coop_jax import parallel, results, workdir
from coop_jax.data.listing import some
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment, Target
from coop_jax.methods import saved
from coop_jax.printing import percent
from coop_jax.progress import Tracker, track
from coop_jax.results import Result
from coop_jax.run import TrainingRun, learn
from coop_jax.run_log import Log

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A protocol's answer: train on the part's classes, evaluate on the targets."""

    part: str
    targets: tuple[Target, ...]


def few_shot(experiment: Experiment) -> Plan:
    """Train and test on all classes of one dataset (CoOp paper, Figure 3)."""
    return Plan("all", (Target(experiment.dataset, "test"),))


def base_to_new(experiment: Experiment) -> Plan:
    """Train on the first half of the classes, test on each half (CoCoOp paper, Table 1).

    The few-shot images are chosen from all classes before the half is taken (protocol 2.2).
    """
    dataset = experiment.dataset
    parts = experiment.config["parts"]
    return Plan("base", tuple(Target(dataset.half(part), part) for part in parts))


def transfer(experiment: Experiment) -> Plan:
    """Train on all classes of one dataset, test on it and on others (CoCoOp paper, Tables 2, 3).

    Raises:
        InputError: there are no targets, or two of these datasets have one name.
    """
    source = experiment.dataset
    datasets = [source, *map(experiment.load_dataset, experiment.config["targets"])]
    names = [dataset.name for dataset in datasets]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or len(datasets) < 2:
        raise InputError.of_setting(
            "config.targets",
            f"expected datasets to evaluate on besides {source.name}, each with a name of its own,"
            f" got {', '.join(repeated) or 'none'}{' twice' * bool(repeated)}; name others, e.g."
            " --config.targets=\"('dtd',)\", or rename a folder or file",
        )
    return Plan("all", tuple(Target(dataset, "test") for dataset in datasets))


PROTOCOLS: dict[str, Callable[[Experiment], Plan]] = {
    "few_shot": few_shot,
    "base_to_new": base_to_new,
    "cross_dataset": transfer,
    "domain_generalization": transfer,
}


def run(config: Mapping[str, Any], folder: Path) -> tuple[Experiment, Plan, list[Result]]:
    """Run the protocol that the config names; return all results of the workdir, held meanwhile.

    Zero-shot CLIP is evaluated on every target, and the method at every number of shots and every
    seed. What is already in `results.jsonl` is skipped.

    Raises:
        InputError: the config, or what it names, cannot be used, or another process writes to the
            workdir; nothing has been written then.
    """
    check(config)
    with workdir.held(config, folder):
        experiment = Experiment(config, folder)
        plan = PROTOCOLS[config["protocol"]](experiment)
        done = _done(experiment.results_path)
        experiment.check_results(done, plan.targets)
        zero_shot, work = _left(experiment, plan, done)
        for run, _ in work[:1]:
            for target in plan.targets:
                experiment.move(run.method, run.dataset, target.dataset)
        experiment.claim_workdir()
        with track(sum(run.steps for run, _ in work)) as tracker:
            for target, prompt, method in zero_shot:
                row = experiment.record(method, target, prompt=prompt, start=time.monotonic())
                what = f"zero-shot CLIP, {_place(plan, row)}{prompt!r}"
                tracker.say(f"{what}: {percent(row.accuracy)}")
            tracker.start()
            for group in _side_by_side(experiment, plan, work):
                for run, row in _train(experiment, group, tracker):
                    what = f"{experiment.label(run)}: {_place(plan, row)}"
                    tracker.say(f"{what}{percent(row.accuracy)}")
        parallel.wait("recorded every result")
        return experiment, plan, _done(experiment.results_path)


Work = list[tuple[TrainingRun, list[Target]]]
"""Runs, each with the targets that it has not been evaluated on.

There are none where only what was learned is not in its place any more.
"""


def _done(path: Path) -> list[Result]:
    """Return the results that are there, as the first process reads them."""

    def read() -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in results.read(path)] if path.exists() else []

    return list(map(results.of_record, parallel.first_says(read, "read results")))


def _left(
    experiment: Experiment, plan: Plan, done: list[Result]
) -> tuple[list[tuple[Target, str, Any]], Work]:
    """Return the hand-crafted prompts and the runs that something is missing of."""

    def is_done(target: Target, **keys: object) -> bool:
        where = {"dataset": target.dataset.name, "split": target.split}
        return bool(results.find(done, **where, **keys))

    zero_shot = [
        (target, prompt, method)
        for target in plan.targets
        for prompt, method in experiment.hand_crafted(target.dataset).items()
        if not is_done(target, prompt=prompt)
    ]
    work: Work = []
    unrecorded = []
    for shots in experiment.shots:
        for seed in experiment.config["seeds"]:
            keys = {"method": experiment.method_name, "shots": shots, "seed": seed}
            left = [target for target in plan.targets if not is_done(target, **keys)]
            is_saved = experiment.holds_saved(shots, seed)
            if not left and is_saved:
                continue
            run = experiment.run(shots, seed, plan.part)
            if left:
                work.append((run, left))
                unrecorded += [experiment.label(run)] * is_saved
            elif saved(run.method):
                what = "%s: what it has learned is missing or damaged: it is made again"
                logger.warning(what, experiment.label(run))
                work.append((run, []))
    if unrecorded:
        what = "%s: has not all results of what has been learned (%s): they are made again"
        logger.warning(what, experiment.results_path, some(unrecorded))
    return zero_shot, work


def _side_by_side(experiment: Experiment, plan: Plan, work: Work) -> list[Work]:
    """Return the runs in the groups that are trained side by side, `runs_at_once` in each.

    What an earlier process has begun side by side goes on so, with runs that have their results
    already where these are needed: a run ends with the same bits in the same company alone.
    """
    at_once = experiment.config["runs_at_once"]
    groups: list[Work] = []
    if at_once > 1 and work:
        all_runs = {name: (run, []) for name, run in experiment.runs(plan.part)}
        all_runs |= {run.name: (run, targets) for run, targets in work}
        wanted = {run.name for run, _ in work}
        for run, _ in all_runs.values():
            beside = parallel.first_says(run.together, "read a checkpoint")
            names = [name for name in beside if name in all_runs]
            if wanted.intersection(names):
                groups.append([all_runs[name] for name in names])
                wanted.difference_update(names)
        work = [(run, targets) for run, targets in work if run.name in wanted]
    return groups + [work[first : first + at_once] for first in range(0, len(work), at_once)]


def _train(
    experiment: Experiment, work: Work, tracker: Tracker
) -> Iterator[tuple[TrainingRun, Result]]:
    """Train runs side by side, evaluate each on its targets; yield the results as they come."""
    start = time.monotonic()
    runs = [run for run, _ in work]
    with contextlib.ExitStack() as stack:
        logs = [Log(experiment, run, tracker) for run in runs]
        for log in logs:
            stack.callback(log.close)
        begun = learn(runs, logs)
        for (run, targets), log, was_begun in zip(work, logs, begun, strict=True):
            experiment.save(run)
            for target in targets:
                method = experiment.move(run.method, run.dataset, target.dataset)
                began = None if was_begun else start
                row = experiment.record(method, target, start=began, run=run)
                log.evaluated(f"{row.dataset}/{row.split}", row.accuracy)
                yield run, row


def _place(plan: Plan, row: Result) -> str:
    """Say where a result is from, if there are several targets."""
    if len(plan.targets) == 1:
        return ""
    return f"{row.dataset}, {row.split}: "


def check(config: Mapping[str, Any]) -> None:
    """See that there is the protocol that the config names.

    Raises:
        InputError: there is not.
    """
    name = config.get("protocol")
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise InputError.of_setting(
            "config.protocol",
            f"expected one of {', '.join(PROTOCOLS)}, got {name!r:.80}; choose one",
        )
