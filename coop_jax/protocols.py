"""Experimental protocols: what is trained on which classes, and evaluated on what."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from coop_jax import parallel, results, workdir
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment, Target
from coop_jax.printing import percent
from coop_jax.progress import track
from coop_jax.results import Result
from coop_jax.task import Task, run_together


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


def execute(experiment: Experiment, plan: Plan) -> list[Result]:
    """Zero-shot CLIP on every target, and the method at every number of shots and every seed.

    What is already in `results.jsonl` is skipped.

    Raises:
        InputError: something does not fit; nothing has been written then.
    """
    path, config = experiment.results_path, experiment.config
    done = results.read(path) if path.exists() else []
    experiment.check_results(done, plan.targets)

    def is_done(target: Target, **keys: object) -> bool:
        where = {"dataset": target.dataset.name, "split": target.split}
        return bool(results.find(done, **where, **keys))

    zero_shot = [
        (target, prompt, method)
        for target in plan.targets
        for prompt, method in experiment.hand_crafted(target.dataset).items()
        if not is_done(target, method="zero_shot", prompt=prompt)
    ]
    tasks = []
    for shots in config["shots"]:
        for seed in config["seeds"]:
            keys = {"method": experiment.method_name, "shots": shots, "seed": seed}
            left = [target for target in plan.targets if not is_done(target, **keys)]
            if left:
                tasks.append((Task(experiment, shots, seed, plan.part), left))
    if tasks:
        first, _ = tasks[0]
        for target in plan.targets:
            experiment.move(first.method, first.dataset, target.dataset)
    experiment.claim_workdir()
    with track(sum(task.steps for task, _ in tasks)) as tracker:
        for target, prompt, method in zero_shot:
            start = time.monotonic()
            row = experiment.record(method, target, name="zero_shot", prompt=prompt, start=start)
            tracker.say(f"zero-shot CLIP, {_place(plan, row)}{prompt!r}: {percent(row.accuracy)}")
        tracker.start()
        at_once = config["runs_at_once"]
        while tasks:
            together, tasks = tasks[:at_once], tasks[at_once:]
            for task, row in run_together(together, tracker):
                tracker.say(f"{task.label}: {_place(plan, row)}{percent(row.accuracy)}")
    parallel.wait("recorded every result")
    return results.read(path)


def _place(plan: Plan, row: Result) -> str:
    """Where a result is from, if there are several targets."""
    if len(plan.targets) == 1:
        return ""
    return f"{row.dataset}, {row.split}: "


def check(config: Mapping[str, Any]) -> None:
    """See that there is the protocol that the config names.

    Raises:
        InputError: there is not.
    """
    name = config.get("protocol")
    if name not in PROTOCOLS:
        raise InputError.of_setting(
            "config.protocol", f"expected one of {', '.join(PROTOCOLS)}, got {name!r:.80}"
        )


def run(config: Mapping[str, Any], folder: Path) -> tuple[Experiment, Plan, list[Result]]:
    """Run the protocol that the config names; all results of the workdir, held meanwhile.

    Raises:
        InputError: the config, or what it names, cannot be used, or another process writes to the
            workdir; nothing has been written then.
    """
    check(config)
    with workdir.held(config, folder):
        experiment = Experiment(config, folder)
        plan = PROTOCOLS[config["protocol"]](experiment)
        return experiment, plan, execute(experiment, plan)
