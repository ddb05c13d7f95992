"""Experimental protocols: lists of train-and-evaluate tasks."""

import time
from collections.abc import Callable, Iterator

from coop_jax import methods, results
from coop_jax.experiment import Experiment, Task
from coop_jax.progress import track
from coop_jax.results import Result


def zero_shot(experiment: Experiment, done: list[Result]) -> Iterator[Result]:
    """Evaluate every hand-crafted prompt and, if there are several, their ensemble."""
    templates = experiment.templates
    prompts: dict[str, tuple[str, ...]] = {template: (template,) for template in templates}
    if len(templates) > 1:
        prompts[f"ensemble of {len(templates)}"] = templates
    for prompt, chosen in prompts.items():
        if results.find(done, method="zero_shot", prompt=prompt):
            continue
        start = time.monotonic()
        method = methods.create(
            "zero_shot",
            experiment.clip,
            experiment.tokenizer,
            experiment.dataset.class_names,
            {"templates": chosen},
        )
        yield experiment.record(
            method,
            seconds=time.monotonic() - start,
            method="zero_shot",
            prompt=prompt,
            shots=0,
            seed=0,
            n_ctx=None,
            class_token_position=None,
            class_specific=None,
            epochs=None,
        )


def few_shot(experiment: Experiment) -> list[Result]:
    """Zero-shot CLIP and the method at every number of shots and every seed (paper, Figure 3).

    Tasks whose result is already in `results.jsonl` are skipped.
    """
    path, config = experiment.results_path, experiment.config
    done = results.read(path) if path.exists() else []
    name = config["method"]["name"]
    tasks = [
        Task(experiment, shots, seed)
        for shots in config["shots"]
        for seed in config["seeds"]
        if not results.find(done, method=name, shots=shots, seed=seed)
    ]
    experiment.claim_workdir()
    with track(sum(task.steps for task in tasks)) as tracker:
        for row in zero_shot(experiment, done):
            tracker.say(f"zero-shot CLIP, {row.prompt!r}: {row.accuracy:.1f} %")
        for task in tasks:
            row = task.run(tracker)
            tracker.say(f"{name}, {row.shots} shots, seed {row.seed}: {row.accuracy:.1f} %")
    return results.read(path)


PROTOCOLS: dict[str, Callable[[Experiment], list[Result]]] = {"few_shot": few_shot}
"""By the name that a config gives."""
