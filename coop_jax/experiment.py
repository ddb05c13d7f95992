"""What the tasks of a protocol share: the frozen CLIP, the data, the record of results."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import encoding, evaluate, features, fitting, methods, parallel, results
from coop_jax import workdir as workdir_module
from coop_jax.clip import source
from coop_jax.data import catalog, pipeline, templates
from coop_jax.data.examples import Dataset, Examples, ImageCache
from coop_jax.errors import InputError
from coop_jax.prompts.use import warn_of_embedded_clip
from coop_jax.provenance import commit, digest, hash_files, versions

NOT_SETTINGS = (
    "protocol",
    "dataset",
    "class_names",
    "data_dir",
    "targets",
    "parts",
    "templates",
    "shots",
    "seeds",
    "encode_batch_size",
    "feature_cache",
    "runs_at_once",
    "loggers",
)
"""What may differ between two runs that are points of the same curve or rows of one table."""


class Target(NamedTuple):
    """Test images to evaluate on: `part` says which classes of the dataset these are."""

    dataset: Dataset
    part: str

    @property
    def split(self) -> str:
        """What a record calls it."""
        return self.dataset.split_name(self.part)


class Experiment:
    """The frozen CLIP, the dataset to train on, the mesh and the test features of one workdir.

    Raises:
        InputError: the config cannot run, or the workdir belongs to another.
    """

    def __init__(self, config: Mapping[str, Any], workdir: str | Path):
        config_module.check(config)
        self.config = config
        self.workdir = Path(workdir)
        workdir_module.check(config, self.workdir)
        self.mesh = parallel.create_mesh()
        self.dataset = self.load_dataset(config["dataset"], config["class_names"])
        chosen = config["clip"]
        self.clip, self.tokenizer = clip_package.load(
            chosen["name"],
            dtype=config_module.DTYPES[chosen["dtype"]],
            tokenizer=chosen["tokenizer"] or None,
        )
        nnx.update(self.clip, parallel.put(nnx.state(self.clip), parallel.replicated(self.mesh)))
        self.image_size = self.clip.config.vision.image_size
        self._features: dict[tuple[str, str], np.ndarray] = {}

    def load_dataset(self, name: str, class_names: str = "") -> Dataset:
        """Open a dataset from where the config says that datasets lie."""
        dataset = catalog.load(name, self.config["data_dir"] or None, class_names or None)
        warn_of_embedded_clip(self.config["clip"]["name"], dataset.name)
        return dataset

    @property
    def backbone(self) -> str:
        """What records call the CLIP; its weights have a hash besides."""
        return source.backbone(self.config["clip"]["name"])

    @property
    def method_name(self) -> str:
        """The name of the configured method."""
        return self.config["method"]["name"]

    def create_method(self, dataset: Dataset, seed: int) -> Any:
        """The configured method for a dataset's classes, before training.

        Raises:
            InputError: the classes or settings do not fit, or the method learns nothing.
        """
        method = fitting.create(self.config, dataset, self.clip, self.tokenizer, seed)
        if not jax.tree.leaves(nnx.state(method, methods.Learned)):
            raise InputError(
                f"method {self.method_name} learns nothing: expected one to train; its results come"
                " with those of any other, e.g. coop"
            )
        return method

    @property
    def is_closed_form(self) -> bool:
        """Whether the configured method is fitted at once instead of trained by steps."""
        return methods.is_closed_form(self.method_name)

    def move(self, method: Any, trained: Dataset, other: Dataset) -> Any:
        """The method as it is for another dataset's classes, with what it learned on the first's.

        Raises:
            InputError: what it learned belongs to classes that the other has not.
        """
        if trained.ids == other.ids and trained.class_names == other.class_names:
            return method
        fresh = self.create_method(other, seed=0)
        return methods.move(method, fresh, trained.ids, other.ids)

    def hand_crafted(self, dataset: Dataset) -> dict[str, Any]:
        """Zero-shot CLIP with the configured prompts, by prompt.

        Raises:
            InputError: a template or a class name does not fit.
        """
        prompts = templates.prompt_sets(
            self.config["templates"], dataset.templates[0], dataset.name
        )
        return {
            prompt: methods.create(
                "zero_shot",
                self.clip,
                self.tokenizer,
                dataset.class_names,
                {"templates": chosen},
                repeated=dataset.repeated,
                shards=self.mesh.size,
            )
            for prompt, chosen in prompts.items()
        }

    def claim_workdir(self) -> None:
        """Make the workdir this experiment's, once everything about it has been found in order."""
        if parallel.is_first():
            workdir_module.claim(self.config, self.workdir)
        parallel.wait("claimed the workdir")

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
        described: Any,
    ) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features of the requested (epoch, example) pairs.

        `described` tells the transform from others, for the cache of features.
        """
        folder = self.config["feature_cache"]
        return encoding.encode(
            self.clip,
            examples,
            transform,
            requests,
            self.mesh,
            seed=seed,
            batch_size=self.config["encode_batch_size"],
            cache=features.Cache(folder) if folder else None,
            weights=(self._weights_hash, self.config["clip"]["dtype"]) if folder else (),
            described=described,
        )

    def plain_features(self, examples: Examples) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features under the test transform."""
        transform, requests = encoding.test_transform(self.clip), encoding.once(len(examples))
        return self.encode(examples, transform, requests, seed=0, described="test")

    def test_features(self, target: Target) -> Float[np.ndarray, "images embedding"]:
        """Unnormalised features of a target's test images, encoded once."""
        key = target.dataset.name, target.part
        if key not in self._features:
            read_once = dataclasses.replace(target.dataset.test, cache=ImageCache(0))
            self._features[key] = self.plain_features(read_once)
        return self._features[key]

    def hashes(self, target: Target, trained_on: Sequence[str] = ()) -> results.Hashes:
        """Digests of what results depend on; `trained_on` are the files of the few-shot set."""
        config, tested = self.config, [target.dataset.pixels_from, *_listed(target.dataset.test)]
        settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
        settings["clip"] = {"name": self.backbone, "dtype": config["clip"]["dtype"]}
        turned = encoding.orientation_settings(self.dataset.train, target.dataset.test)
        transform = [config["augmentation"], *encoding.pixel_settings(self.clip), *turned]
        return results.Hashes(
            data=digest([self._data_hash, *tested]),
            split=digest([*trained_on, *tested]),
            class_names=digest(target.dataset.class_names),
            transform=digest(transform),
            weights=self._weights_hash,
            config=digest(settings),
        )

    def check_results(self, done: Sequence[results.Result], targets: Sequence[Target]) -> None:
        """Make sure that earlier results of this workdir are of the same data and weights.

        Raises:
            InputError: the files' names or labels, the classes, the transform, the weights or the
                tokenizer have changed since.
        """
        now = {
            (target.dataset.name, target.split): dataclasses.asdict(self.hashes(target))
            for target in targets
        }
        for row in done:
            then, expected = dataclasses.asdict(row.hashes), now.get((row.dataset, row.split), {})
            changed = [
                key
                for key in ("data", "class_names", "transform", "weights")
                if expected.get(key) != then[key]
            ]
            if changed:
                raise InputError(
                    f"{self.results_path}: expected results of the same {', '.join(changed)} as"
                    " now, got others; restore the files it was made with or name another --workdir"
                )

    def record(
        self,
        method: Any,
        target: Target,
        *,
        name: str,
        start: float | None,
        trained_on: Sequence[str] = (),
        prompt: str | None = None,
        shots: int = 0,
        seed: int = 0,
        epochs: int | None = None,
    ) -> results.Result:
        """Evaluate a method on a target and add the result to `results.jsonl`.

        `start` is what `time.monotonic()` gave when the work began; None if it began in an
        earlier process, in which case nobody knows how long it took.
        """
        metrics = evaluate.evaluate(
            method, self.clip, self.test_features(target), target.dataset.test.labels, self.mesh
        )
        settings = {"n_ctx": None, "class_token_position": None, "class_specific": None}
        row = results.Result(
            protocol=self.config["protocol"],
            method=name,
            dataset=target.dataset.name,
            split=target.split,
            backbone=self.backbone,
            shots=shots,
            seed=seed,
            **{**settings, **method.settings()},
            epochs=epochs,
            **dataclasses.asdict(metrics),
            seconds=None if start is None else time.monotonic() - start,
            commit=commit(),
            hashes=self.hashes(target, trained_on),
            prompt=prompt,
            trained_on=self.dataset.full_name if prompt is None else None,
            versions=versions(),
            config=dict(self.config),
        )
        if parallel.is_first():
            results.append(self.results_path, row)
        return row

    @functools.cached_property
    def _weights_hash(self) -> str:
        chosen = self.config["clip"]
        return hash_files(source.resolve(chosen["name"], chosen["tokenizer"] or None).files())

    @functools.cached_property
    def _data_hash(self) -> str:
        dataset = self.dataset
        parts = dataset.train, dataset.val, dataset.test
        return digest([dataset.pixels_from, *map(_listed, parts)])


def _listed(examples: Examples) -> list[Any]:
    return [examples.file_names.tolist(), examples.labels.tolist()]
