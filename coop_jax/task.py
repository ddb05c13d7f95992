"""One training run of an experiment: train on a few shots, evaluate, record."""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import methods, optim, parallel, results, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.clip import preprocess
from coop_jax.data import sampling
from coop_jax.data.examples import Dataset
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment, Target
from coop_jax.progress import Tracker

logger = logging.getLogger(__name__)


def paper_epochs(shots: int, dataset: str) -> int:
    """The CoOp paper's number of epochs (coop_protocol section 0)."""
    return 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200


class Task:
    """One training run: its dataset of a few shots, method, batches and optimizer."""

    def __init__(self, experiment: Experiment, shots: int, seed: int, part: str = "all"):
        config, dataset = experiment.config, experiment.dataset
        self.experiment, self.shots, self.seed = experiment, shots, seed
        if not len(dataset.train):
            raise InputError(
                f"expected a dataset with training images, got {dataset.name}, which has test"
                " images alone; train on another and name it in config.targets"
            )
        choose = sampling.RULES[config["sampling"]]
        chosen_train, chosen_val = choose(dataset.train.labels, dataset.val.labels, shots, seed)
        self.dataset: Dataset = dataclasses.replace(
            dataset, train=dataset.train.subset(chosen_train), val=dataset.val.subset(chosen_val)
        ).half(part)
        self.examples = self.dataset.train
        if experiment.is_closed_form and not len(self.dataset.val):
            raise InputError(
                f"expected a dataset with validation images, which {experiment.method_name} needs,"
                f" got {dataset.name} without; add a folder or rows of the split val"
            )
        self.epochs = config["epochs"] or paper_epochs(shots, dataset.name)
        order, epoch = sampling.batch_order(
            len(self.examples), config["batch_size"], self.epochs, seed
        )
        self.batches = train.Batches(order, epoch, self.examples.labels)

    @functools.cached_property
    def method(self) -> Any:
        """The method, as new until it is trained or restored."""
        return self.experiment.create_method(self.dataset, self.seed)

    @property
    def steps(self) -> int:
        """How many training steps the task takes."""
        return 1 if self.experiment.is_closed_form else len(self.batches.order)

    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        return optim.create(self._optimizer_config, self.epochs, self.steps // self.epochs)

    @property
    def _optimizer_config(self) -> optim.OptimizerConfig:
        return optim.OptimizerConfig(**self.experiment.config["optimizer"])

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.experiment.workdir / "checkpoints" / self._name)

    @property
    def _metrics_path(self) -> Path:
        return self.experiment.workdir / "metrics" / f"{self._name}.jsonl"

    @property
    def _name(self) -> str:
        return f"{self.shots}_shots_seed_{self.seed}"

    def _features(self, requests: Int[np.ndarray, "images 2"]) -> Float[np.ndarray, "images e"]:
        size = self.experiment.image_size
        augmentation = dict(self.experiment.config["augmentation"])

        def transform(image: Any, rng: np.random.Generator) -> np.ndarray:
            return preprocess.augment(image, size, rng, **augmentation)

        return self.experiment.encode(
            self.examples, transform, requests, self.seed, described=augmentation
        )

    def _warn_about_short_classes(self) -> None:
        """Say which classes have fewer images than wanted; few-shot sampling takes them whole."""
        wanted = [("training", self.dataset.train, self.shots)]
        if self.experiment.is_closed_form:
            wanted.append(("validation", self.dataset.val, min(self.shots, 4)))
        names = self.dataset.class_names
        for kind, examples, count in wanted:
            for label, n in sampling.short_classes(examples.labels, count, len(names)).items():
                logger.warning(
                    "class %r has %d %s images, fewer than %d%s: all of them are used",
                    *(names[label], n, kind, count, " shots" * (kind == "training")),
                )

    def run(self, tracker: Tracker, targets: Sequence[Target]) -> Iterator[results.Result]:
        """Train, then evaluate on each target and record; yields the results as they come."""
        start: float | None = time.monotonic()
        self._warn_about_short_classes()
        is_closed = self.experiment.is_closed_form
        resumed = self._fit_at_once(tracker) if is_closed else self._train(tracker)
        searched = self.dataset.val.file_names.tolist() if is_closed else []
        trained_on = [*self.examples.file_names.tolist(), *searched]
        for target in targets:
            yield self.experiment.record(
                self.experiment.move(self.method, self.dataset, target.dataset),
                target,
                name=self.experiment.method_name,
                start=None if resumed else start,
                trained_on=trained_on,
                shots=self.shots,
                seed=self.seed,
                epochs=None if is_closed else self.epochs,
            )

    def _fit_at_once(self, tracker: Tracker) -> bool:
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
        return train.initial_state(self.method, self.experiment.clip, self._optimizer())

    def _train(self, tracker: Tracker) -> bool:
        """Train from the task's latest checkpoint on; whether there was one."""
        checkpoints = self._checkpoints()
        resumed = finished = checkpoints.latest_step() or 0
        self._forget_losses(finished)
        tracker.skip(finished)
        for done, losses in train.fit(
            self.method,
            self.experiment.clip,
            self._optimizer(),
            self.batches,
            self._features,
            self.experiment.mesh,
            checkpoints=checkpoints,
        ):
            tracker.advance(done - finished, f"{self.label}, loss {losses[-1]:.3f}")
            self._write_losses(finished, losses)
            finished = done
        checkpoints.close()
        return bool(resumed)

    @property
    def label(self) -> str:
        """What to call the task."""
        name = self.experiment.method_name
        return f"{name}, {self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}"

    def _forget_losses(self, first: int) -> None:
        """Drop the lines of steps that are to be taken again."""
        if parallel.is_first() and self._metrics_path.exists():
            lines = self._metrics_path.read_text().splitlines(keepends=True)
            self._metrics_path.write_text("".join(lines[:first]))

    def _write_losses(self, first: int, losses: Float[np.ndarray, " steps"]) -> None:
        """Add a line per step to `metrics/<task>.jsonl`: step, epoch, learning rate and loss."""
        if not parallel.is_first():
            return
        rates = optim.epoch_learning_rates(self._optimizer_config, self.epochs)
        self._metrics_path.parent.mkdir(exist_ok=True)
        with self._metrics_path.open("a") as file:
            for step, loss in enumerate(losses.tolist(), start=first):
                epoch = int(self.batches.epoch[step])
                line = {"step": step, "epoch": epoch, "learning_rate": rates[epoch], "loss": loss}
                file.write(json.dumps(line) + "\n")

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
