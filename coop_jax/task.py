"""One training run of an experiment: train on a few shots, evaluate, record."""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import encoding, fitting, methods, metrics, optim, parallel, prompts, results, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.data import few_shot
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment, Target
from coop_jax.printing import plural
from coop_jax.progress import Tracker


class Task:
    """One training run: its dataset of a few shots, method, batches and optimizer."""

    def __init__(self, experiment: Experiment, shots: int, seed: int, part: str = "all"):
        config, dataset = experiment.config, experiment.dataset
        self.experiment, self.shots, self.seed = experiment, shots, seed
        self.dataset = few_shot.draw(dataset, config["sampling"], shots, seed, part)
        self.examples = self.dataset.train
        if experiment.is_closed_form and not len(self.dataset.val):
            raise InputError(
                f"expected a dataset with validation images, which {experiment.method_name} needs,"
                f" got {dataset.name} without; add a folder or rows of the split val"
            )
        self.epochs = fitting.epochs_for(config, self.dataset, shots)
        self.batches = fitting.batches(config, self.examples, seed=seed, epochs=self.epochs)

    @functools.cached_property
    def method(self) -> Any:
        """The method, as new until it is trained or restored."""
        return self.experiment.create_method(self.dataset, self.seed)

    @property
    def steps(self) -> int:
        """How many training steps the task takes."""
        return 1 if self.experiment.is_closed_form else self.batches.steps

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """What the method is trained with."""
        return optim.create(optim.OptimizerConfig(**self.experiment.config["optimizer"]))

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.experiment.workdir / "checkpoints" / self._name)

    @functools.cached_property
    def _metrics(self) -> metrics.Writer:
        config = {**self.experiment.config, "shots": self.shots, "seed": self.seed}
        return metrics.Writer(self.experiment.workdir, self._name, config["loggers"], config)

    @property
    def _name(self) -> str:
        return f"{self.shots}_shots_seed_{self.seed}"

    def _features(self, requests: Int[np.ndarray, "images 2"]) -> Float[np.ndarray, "images e"]:
        augmentation = dict(self.experiment.config["augmentation"])
        transform = encoding.training_transform(self.experiment.clip, augmentation)
        return self.experiment.encode(
            self.examples, transform, requests, self.seed, described=augmentation
        )

    def save_prompt(self) -> None:
        """Keep what was learned in `prompts/<task>`, unless that is there already."""
        folder = self.experiment.workdir / "prompts" / self._name
        if folder.exists() or not parallel.is_first():
            return
        experiment, dataset = self.experiment, self.dataset
        learned = prompts.of(
            self.method,
            name=experiment.method_name,
            settings=experiment.config["method"],
            clip=experiment.clip,
            backbone=experiment.backbone,
            class_names=dataset.class_names,
            class_ids=dataset.ids,
            training=prompts.training_record(
                experiment.config,
                dataset=dataset,
                shots=self.shots,
                seed=self.seed,
                epochs=None if experiment.is_closed_form else self.epochs,
            ),
        )
        prompts.save(learned, folder)

    def record(self, targets: Sequence[Target], start: float | None) -> Iterator[results.Result]:
        """Evaluate on each target and record; yields the results as they come.

        `start` is what `time.monotonic()` gave when the work began; None if that was in an earlier
        process.
        """
        is_closed = self.experiment.is_closed_form
        searched = self.dataset.val.file_names.tolist() if is_closed else []
        for target in targets:
            result = self.experiment.record(
                self.experiment.move(self.method, self.dataset, target.dataset),
                target,
                name=self.experiment.method_name,
                start=start,
                trained_on=[*self.examples.file_names.tolist(), *searched],
                shots=self.shots,
                seed=self.seed,
                epochs=None if is_closed else self.epochs,
            )
            where = f"{result.dataset}/{result.split}"
            self._metrics.evaluated(self.steps, where, result.accuracy)
            yield result
        self._metrics.close()

    def fit_at_once(self, tracker: Tracker) -> bool:
        """Fit a method in closed form, unless an earlier process has; whether one has."""
        checkpoints = self._checkpoints()
        resumed = checkpoints.latest_step() is not None
        if resumed:
            state = checkpoints.restore(self._initial_state())
            nnx.update(self.method, parallel.fetch(state["learned"]))
        else:
            train_set, val = self.dataset.train, self.dataset.val
            self.method.fit(
                self.experiment.plain_features(train_set),
                train_set.labels,
                self.experiment.plain_features(val),
                val.labels,
            )
            checkpoints.save(self._initial_state() | {"step": jnp.int32(1)}, last=True)
        checkpoints.close()
        tracker.advance(1, self.label)
        return resumed

    def _initial_state(self) -> train.State:
        """What checkpoints hold, before the first step."""
        if self.experiment.is_closed_form:
            return {"learned": nnx.state(self.method, methods.Learned), "step": jnp.int32(0)}
        return train.initial_state(self.method, self.experiment.clip, self.optimizer)

    @contextlib.contextmanager
    def training(self, tracker: Tracker) -> Iterator[tuple[train.Run, bool]]:
        """What `train.fit` is given, and whether it goes on where an earlier process stopped."""
        checkpoints = self._checkpoints()
        finished = checkpoints.latest_step() or 0
        self._metrics.resume(finished)
        tracker.skip(finished)
        run = train.Run(self.method, self.batches, self._features, checkpoints)
        try:
            yield run, finished > 0
        finally:
            checkpoints.close()

    def note(self, progress: train.Progress, tracker: Tracker) -> None:
        """Say how far the training is, and write epoch, learning rate and loss of every step."""
        losses = progress.losses.tolist()
        tracker.advance(len(losses), f"{self.label}, loss {losses[-1]:.3f}")
        first, epoch, rate = progress.done - len(losses), self.batches.epoch, self.batches.rate
        values = [
            {"epoch": int(epoch[step]), "learning_rate": float(rate[step]), "loss": loss}
            for step, loss in enumerate(losses, start=first)
        ]
        self._metrics.write(first, values)

    @property
    def label(self) -> str:
        """What to call the task."""
        name = self.experiment.method_name
        return f"{name}, {plural(self.shots, 'shot')}, seed {self.seed}"

    def restore(self) -> Any:
        """The trained method.

        Raises:
            InputError: the task's last checkpoint is missing.
        """
        checkpoints = self._checkpoints()
        if checkpoints.latest_step() != self.steps:
            raise InputError(
                f"{checkpoints.folder}: expected the checkpoint of step {self.steps}, got"
                f" {checkpoints.latest_step()}; run the task again in another --workdir"
            )
        state = checkpoints.restore(self._initial_state())
        checkpoints.close()
        nnx.update(self.method, parallel.fetch(state["learned"]))
        return self.method


def run_together(
    work: Sequence[tuple[Task, Sequence[Target]]], tracker: Tracker
) -> Iterator[tuple[Task, results.Result]]:
    """Train tasks side by side, then evaluate each on its targets; yields the results as they come.

    Tasks of a method in closed form are fitted one after the other.
    """
    start = time.monotonic()
    tasks = [task for task, _ in work]
    is_closed = tasks[0].experiment.is_closed_form
    for task in tasks:
        few_shot.warn_about_short_classes(task.dataset, task.shots, validation=is_closed)
    fitted = (task.fit_at_once(tracker) for task in tasks)
    resumed = fitted if is_closed else _train(tasks, tracker)
    for (task, targets), was_begun in zip(work, resumed, strict=True):
        task.save_prompt()
        for result in task.record(targets, None if was_begun else start):
            yield task, result


def _train(tasks: Sequence[Task], tracker: Tracker) -> list[bool]:
    """Train tasks side by side; whether each had been begun by an earlier process."""
    first, experiment = tasks[0], tasks[0].experiment
    with contextlib.ExitStack() as stack:
        entered = [stack.enter_context(task.training(tracker)) for task in tasks]
        runs, begun = zip(*entered, strict=True)
        for chunk in train.fit(runs, experiment.clip, first.optimizer, experiment.mesh):
            for progress in chunk:
                tasks[progress.run].note(progress, tracker)
    return list(begun)
