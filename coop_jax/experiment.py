"""What the tasks of a protocol share, and one task: train on a few shots, evaluate, record."""

import dataclasses
import functools
import hashlib
import json
import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import evaluate, features, methods, optim, parallel, results, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.clip import preprocess, source
from coop_jax.data import catalog, pipeline, sampling
from coop_jax.data.catalog import Examples
from coop_jax.progress import Tracker

logger = logging.getLogger(__name__)


def paper_epochs(shots: int) -> int:
    """Epochs by number of shots, ImageNet apart (coop_protocol section 0)."""
    return 50 if shots == 1 else 100 if shots <= 4 else 200


class Experiment:
    """The frozen CLIP, the dataset, the mesh and the test features of one workdir.

    Raises:
        InputError: the config cannot run, or the workdir belongs to another.
    """

    def __init__(self, config: Mapping[str, Any], workdir: str | Path):
        config_module.check(config)
        self.config = config
        self.workdir = Path(workdir)
        config_module.check_workdir(config, self.workdir)
        self.mesh = parallel.create_mesh()
        chosen = config["clip"]
        self.clip, self.tokenizer = clip_package.load(
            chosen["name"],
            dtype=config_module.DTYPES[chosen["dtype"]],
            tokenizer=chosen["tokenizer"] or None,
        )
        self.dataset = catalog.load(config["dataset"], config["data_dir"] or None)
        self.image_size = self.clip.config.vision.image_size
        self.templates = tuple(config["templates"]) or self.dataset.templates

    def claim_workdir(self) -> None:
        """Make the workdir this experiment's, once everything about it has been found in order."""
        config_module.claim(self.config, self.workdir)

    @property
    def results_path(self) -> Path:
        """The file that every evaluation is added to."""
        return self.workdir / results.FILE_NAME

    def encode(
        self,
        examples: Examples,
        transform: pipeline.Transform,
        requests: Int[np.ndarray, "images 2"],
        seed: int,
    ) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features of the requested (epoch, example) pairs."""
        batches = pipeline.pixels(
            examples, transform, requests, seed=seed, batch_size=features.BATCH_SIZE
        )
        return features.encode(self.clip, batches, self.mesh)

    @functools.cached_property
    def test_features(self) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features of the test split under the test transform."""
        examples = self.dataset.test
        requests = np.stack([np.zeros(len(examples), int), np.arange(len(examples))], axis=1)

        def transform(image: Any, _: np.random.Generator) -> np.ndarray:
            return preprocess.resize_and_center_crop(image, self.image_size)

        return self.encode(examples, transform, requests, seed=0)

    def record(
        self, method: Any, /, *, seconds: float, trained_on: Sequence[str] = (), **keys: Any
    ) -> results.Result:
        """Evaluate a method on the test split and add the result to `results.jsonl`."""
        metrics = evaluate.evaluate(
            method, self.clip, self.test_features, self.dataset.test.labels, self.mesh
        )
        transform = [
            self.image_size,
            dict(self.config["augmentation"]),
            self.clip.config.mean,
            self.clip.config.std,
        ]
        row = results.Result(
            protocol=self.config["protocol"],
            dataset=self.dataset.name,
            split="test",
            backbone=self.config["clip"]["name"],
            **dataclasses.asdict(metrics),
            seconds=seconds,
            commit=commit(),
            hashes=results.Hashes(
                split=digest([*trained_on, *self.dataset.test.labels.tolist()]),
                class_names=digest(self.dataset.class_names),
                transform=digest(transform),
                weights=self._weights_hash,
            ),
            **keys,
        )
        results.append(self.results_path, row)
        return row

    @functools.cached_property
    def _weights_hash(self) -> str:
        chosen = self.config["clip"]
        sha = hashlib.sha256()
        for path in source.resolve(chosen["name"], chosen["tokenizer"] or None).weights:
            with path.open("rb") as file:
                sha.update(hashlib.file_digest(file, "sha256").digest())
        return sha.hexdigest()


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
        settings = dict(config["method"])
        self.method = methods.create(
            settings.pop("name"),
            experiment.clip,
            experiment.tokenizer,
            dataset.class_names,
            settings,
            seed=seed,
        )

    @property
    def steps(self) -> int:
        """How many training steps the task takes."""
        return len(self.batches.order)

    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        config = optim.OptimizerConfig(**self.experiment.config["optimizer"])
        return optim.create(config, self.epochs, self.steps // self.epochs)

    def _checkpoints(self) -> Checkpoints:
        name = f"{self.shots}_shots_seed_{self.seed}"
        return Checkpoints(self.experiment.workdir / "checkpoints" / name)

    def _features(self, requests: Int[np.ndarray, "images 2"]) -> Float[np.ndarray, "images e"]:
        size = self.experiment.image_size
        augmentation = dict(self.experiment.config["augmentation"])

        def transform(image: Any, rng: np.random.Generator) -> np.ndarray:
            return preprocess.augment(image, size, rng, **augmentation)

        return self.experiment.encode(self.examples, transform, requests, self.seed)

    def warn_about_short_classes(self) -> None:
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
        experiment, settings = self.experiment, self.experiment.config["method"]
        self.warn_about_short_classes()
        checkpoints = self._checkpoints()
        finished = checkpoints.latest_step() or 0
        tracker.skip(finished)
        label = f"{settings['name']}, {self.shots} shots, seed {self.seed}"
        for done, losses in train.fit(
            self.method,
            experiment.clip,
            self._optimizer(),
            self.batches,
            self._features,
            experiment.mesh,
            checkpoints=checkpoints,
        ):
            tracker.advance(done - finished, f"{label}, loss {losses[-1]:.3f}")
            finished = done
        checkpoints.close()
        return experiment.record(
            self.method,
            seconds=time.monotonic() - start,
            trained_on=[self.examples.file_name(index) for index in range(len(self.examples))],
            method=settings["name"],
            shots=self.shots,
            seed=self.seed,
            n_ctx=settings.get("n_ctx"),
            class_token_position=settings.get("class_token_position"),
            class_specific=settings.get("class_specific"),
            epochs=self.epochs,
        )

    def restore(self) -> Any:
        """The method as the task's latest checkpoint has it."""
        checkpoints = self._checkpoints()
        state = checkpoints.restore(train.initial_state(self.method, self._optimizer()))
        checkpoints.close()
        nnx.update(self.method, jax.tree.map(jnp.asarray, state["learned"]))
        return self.method


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON."""
    return hashlib.sha256(json.dumps(value, default=list).encode()).hexdigest()


@functools.cache
def commit() -> str | None:
    """The commit of the checkout this package runs from; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
