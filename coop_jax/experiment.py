"""What the tasks of a protocol share: the frozen CLIP, the data, the record of results."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import evaluate, features, methods, parallel, results
from coop_jax.clip import preprocess, source
from coop_jax.data import catalog, pipeline
from coop_jax.data.catalog import Examples
from coop_jax.errors import InputError
from coop_jax.provenance import commit, digest, hash_files, versions

NOT_SETTINGS = ("shots", "seeds", "data_dir", "templates")
"""What may differ between two runs that are points of the same curve."""


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
        if jax.process_count() > 1:
            raise InputError(
                f"expected one process, got {jax.process_count()}: training over several hosts is"
                " not supported yet; start it on one host"
            )
        self.mesh = parallel.create_mesh()
        chosen = config["clip"]
        self.clip, self.tokenizer = clip_package.load(
            chosen["name"],
            dtype=config_module.DTYPES[chosen["dtype"]],
            tokenizer=chosen["tokenizer"] or None,
        )
        nnx.update(self.clip, parallel.put(nnx.state(self.clip), parallel.replicated(self.mesh)))
        self.dataset = catalog.load(config["dataset"], config["data_dir"] or None)
        self.image_size = self.clip.config.vision.image_size
        self.templates = tuple(config["templates"]) or self.dataset.templates

    def create_method(self, seed: int) -> Any:
        """The configured method before training.

        Raises:
            InputError: the classes or settings do not fit, or the method learns nothing.
        """
        settings = dict(self.config["method"])
        name = settings.pop("name")
        method = methods.create(
            name, self.clip, self.tokenizer, self.dataset.class_names, settings, seed=seed
        )
        if not jax.tree.leaves(nnx.state(method, methods.Learned)):
            raise InputError(
                f"method {name} learns nothing: expected one to train; its results come with those"
                " of any other, e.g. coop"
            )
        return method

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
            examples, transform, requests, seed=seed, batch_size=self.config["encode_batch_size"]
        )
        return features.encode(
            self.clip, batches, self.mesh, batch_size=self.config["encode_batch_size"]
        )

    @functools.cached_property
    def test_features(self) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features of the test split under the test transform."""
        examples = self.dataset.test
        requests = np.stack([np.zeros(len(examples), int), np.arange(len(examples))], axis=1)

        def transform(image: Any, _: np.random.Generator) -> np.ndarray:
            return preprocess.resize_and_center_crop(image, self.image_size)

        return self.encode(examples, transform, requests, seed=0)

    def hashes(self, trained_on: Sequence[str] = ()) -> results.Hashes:
        """Digests of what results depend on; `trained_on` are the files of the few-shot set."""
        test, config = self.dataset.test, self.config
        statistics = self.clip.config.mean, self.clip.config.std
        settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
        return results.Hashes(
            data=self._data_hash,
            split=digest([*trained_on, test.file_names.tolist(), test.labels.tolist()]),
            class_names=digest(self.dataset.class_names),
            transform=digest(
                [self.image_size, config["augmentation"], *statistics, preprocess.PILLOW]
            ),
            weights=self._weights_hash,
            config=digest(settings),
        )

    def check_results(self, done: Sequence[results.Result]) -> None:
        """Make sure that earlier results of this workdir are of the same data and weights.

        Raises:
            InputError: the files' names or labels, the classes, the transform, the weights or the
                tokenizer have changed since.
        """
        now = dataclasses.asdict(self.hashes())
        for row in done:
            then = dataclasses.asdict(row.hashes)
            changed = [
                key
                for key in ("data", "class_names", "transform", "weights")
                if now[key] != then[key]
            ]
            if changed:
                raise InputError(
                    f"{self.results_path}: expected results of the same {', '.join(changed)} as"
                    " now, got others; restore the files it was made with or name another --workdir"
                )

    def record(
        self,
        method: Any,
        *,
        name: str,
        start: float | None,
        trained_on: Sequence[str] = (),
        prompt: str | None = None,
        shots: int = 0,
        seed: int = 0,
        epochs: int | None = None,
    ) -> results.Result:
        """Evaluate a method on the test split and add the result to `results.jsonl`.

        `start` is what `time.monotonic()` gave when the work began; None if it began in an
        earlier process, in which case nobody knows how long it took.
        """
        metrics = evaluate.evaluate(
            method, self.clip, self.test_features, self.dataset.test.labels, self.mesh
        )
        settings = {"n_ctx": None, "class_token_position": None, "class_specific": None}
        row = results.Result(
            protocol=self.config["protocol"],
            method=name,
            dataset=self.dataset.name,
            split="test",
            backbone=self.config["clip"]["name"],
            shots=shots,
            seed=seed,
            **{**settings, **method.settings()},
            epochs=epochs,
            **dataclasses.asdict(metrics),
            seconds=None if start is None else time.monotonic() - start,
            commit=commit(),
            hashes=self.hashes(trained_on),
            prompt=prompt,
            trained_on=self.dataset.name if prompt is None else None,
            versions=versions(),
            config=dict(self.config),
        )
        results.append(self.results_path, row)
        return row

    @functools.cached_property
    def _weights_hash(self) -> str:
        chosen = self.config["clip"]
        return hash_files(source.resolve(chosen["name"], chosen["tokenizer"] or None).files())

    @functools.cached_property
    def _data_hash(self) -> str:
        dataset = self.dataset
        splits = (dataset.train, dataset.val, dataset.test)
        return digest([[part.file_names.tolist(), part.labels.tolist()] for part in splits])
