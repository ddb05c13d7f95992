"""Experimental protocols: lists of train-and-evaluate tasks."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coop_jax import methods, results
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment
from coop_jax.progress import track
from coop_jax.results import Result
from coop_jax.task import Task


def hand_crafted(experiment: Experiment) -> dict[str, Any]:
    """Zero-shot CLIP with every hand-crafted prompt and, if there are several, their ensemble.

    Raises:
        InputError: a template or a class name does not fit.
    """
    templates = experiment.templates
    prompts: dict[str, tuple[str, ...]] = {template: (template,) for template in templates}
    if len(templates) > 1:
        prompts[f"ensemble of {len(templates)}"] = templates
    return {
        prompt: methods.create(
            "zero_shot",
            experiment.clip,
            experiment.tokenizer,
            experiment.dataset.class_names,
            {"templates": chosen},
        )
        for prompt, chosen in prompts.items()
    }


def few_shot(experiment: Experiment) -> list[Result]:
    """Zero-shot CLIP and the method at every number of shots and every seed (paper, Figure 3).

    Tasks whose result is already in `results.jsonl` are skipped.
    """
    path, config = experiment.results_path, experiment.config
    done = results.read(path) if path.exists() else []
    experiment.check_results(done)
    name = config["method"]["name"]
    zero_shot = {
        prompt: method
        for prompt, method in hand_crafted(experiment).items()
        if not results.find(done, method="zero_shot", prompt=prompt)
    }
    experiment.create_method(seed=config["seeds"][0])
    tasks = [
        Task(experiment, shots, seed)
        for shots in config["shots"]
        for seed in config["seeds"]
        if not results.find(done, method=name, shots=shots, seed=seed)
    ]
    experiment.claim_workdir()
    with track(sum(task.steps for task in tasks)) as tracker:
        for prompt, method in zero_shot.items():
            start = time.monotonic()
            row = experiment.record(method, name="zero_shot", prompt=prompt, start=start)
            tracker.say(f"zero-shot CLIP, {prompt!r}: {row.accuracy:.1f} %")
        tracker.start()
        while tasks:
            task = tasks.pop(0)
            row = task.run(tracker)
            tracker.say(f"{task.label}: {row.accuracy:.1f} %")
    return results.read(path)


PROTOCOLS: dict[str, Callable[[Experiment], list[Result]]] = {"few_shot": few_shot}


def run(config: Mapping[str, Any], workdir: Path) -> tuple[Experiment, list[Result]]:
    """Run the protocol that the config names.

    Raises:
        InputError: the config, or what it names, cannot be used; nothing has been written then.
    """
    name = config.get("protocol")
    if name not in PROTOCOLS:
        raise InputError(f"config.protocol: expected one of {', '.join(PROTOCOLS)}, got {name!r}")
    experiment = Experiment(config, workdir)
    return experiment, PROTOCOLS[name](experiment)
