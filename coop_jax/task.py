"""One training run of an experiment: train on a few shots, evaluate, record."""

import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import optim, results, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.clip import preprocess
from coop_jax.data import sampling
from coop_jax.errors import InputError
from coop_jax.experiment import Experiment
from coop_jax.progress import Tracker

logger = logging.getLogger(__name__)


def paper_epochs(shots: int) -> int:
    """Epochs by number of shots, ImageNet apart (coop_protocol section 0)."""
    return 50 if shots == 1 else 100 if shots <= 4 else 200


class Task:
    """One training run of an experiment: its method, examples, batches and optimizer."""

    def __init__(self, experiment: Experiment, shots: int, seed: int):
        config, dataset = experiment.config, experiment.dataset
        self.experiment, self.shots, self.seed = experiment, shots, seed
        chosen, _ = sampling.few_shot(dataset.train.labels, dataset.val.labels, shots, seed)
        self.examples = dataset.train.subset(chosen)
        self.epochs = config["epochs"] or paper_epochs(shots)
        order, epoch = sampling.batch_order(
            len(self.examples), config["batch_size"], self.epochs, seed
        )
        self.batches = train.Batches(order, epoch, self.examples.labels)

    @functools.cached_property
    def method(self) -> Any:
        """The method, as new until it is trained or restored."""
        return self.experiment.create_method(self.seed)

    @property
    def steps(self) -> int:
        """How many training steps the task takes."""
        return len(self.batches.order)

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

        return self.experiment.encode(self.examples, transform, requests, self.seed)

    def _warn_about_short_classes(self) -> None:
        """Say which classes have fewer images than shots; few-shot sampling takes them whole."""
        train_labels = self.experiment.dataset.train.labels
        for label, count in sampling.short_classes(train_labels, self.shots).items():
            logger.warning(
                "class %r has %d training images, fewer than %d shots: all of them are used",
                self.experiment.dataset.class_names[label],
                count,
                self.shots,
            )

    def run(self, tracker: Tracker) -> results.Result:
        """Train from the task's latest checkpoint on, evaluate, and record the result."""
        start = time.monotonic()
        experiment = self.experiment
        self._warn_about_short_classes()
        checkpoints = self._checkpoints()
        resumed = finished = checkpoints.latest_step() or 0
        self._forget_losses(finished)
        tracker.skip(finished)
        for done, losses in train.fit(
            self.method,
            experiment.clip,
            self._optimizer(),
            self.batches,
            self._features,
            experiment.mesh,
            checkpoints=checkpoints,
        ):
            tracker.advance(done - finished, f"{self.label}, loss {losses[-1]:.3f}")
            self._write_losses(finished, losses)
            finished = done
        checkpoints.close()
        return experiment.record(
            self.method,
            name=experiment.config["method"]["name"],
            start=None if resumed else start,
            trained_on=self.examples.file_names.tolist(),
            shots=self.shots,
            seed=self.seed,
            epochs=self.epochs,
        )

    @property
    def label(self) -> str:
        """What to call the task."""
        name = self.experiment.config["method"]["name"]
        return f"{name}, {self.shots} shot{'s' * (self.shots > 1)}, seed {self.seed}"

    def _forget_losses(self, first: int) -> None:
        """Drop the lines of steps that are to be taken again."""
        if self._metrics_path.exists():
            lines = self._metrics_path.read_text().splitlines(keepends=True)
            self._metrics_path.write_text("".join(lines[:first]))

    def _write_losses(self, first: int, losses: Float[np.ndarray, " steps"]) -> None:
        """Add a line per step to `metrics/<task>.jsonl`: step, epoch, learning rate and loss."""
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
        state = checkpoints.restore(
            train.initial_state(self.method, self.experiment.clip, self._optimizer())
        )
        checkpoints.close()
        nnx.update(self.method, jax.tree.map(jnp.asarray, state["learned"]))
        return self.method
