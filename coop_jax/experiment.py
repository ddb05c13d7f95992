"""Everything that the runs of a workdir share: dataset, frozen CLIP, test images, record."""

import dataclasses
import functools
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coop_jax import collapse, evaluate, parallel, results
from coop_jax import config as config_module
from coop_jax import workdir as workdir_module
from coop_jax.clip import source
from coop_jax.data import catalog, few_shot, templates
from coop_jax.data.examples import Dataset, Examples, ImageCache
from coop_jax.errors import InputError
from coop_jax.frozen import Frozen, said_of
from coop_jax.images import orientation_settings, pixel_settings
from coop_jax.methods import ZERO_SHOT, Learned, code_of, files_of, fill, move, saved
from coop_jax.printing import plural
from coop_jax.provenance import commit, digest, versions
from coop_jax.run import TrainingRun
from coop_jax.saved import Saved, files
from coop_jax.saved.use import warn_of_embedded_clip
from coop_jax.writing import unfinished_name

logger = logging.getLogger(__name__)

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
"""Settings that may differ between runs that are points of one curve or rows of one table."""


class Target(NamedTuple):
    """Test images to evaluate on: `part` says which classes of the dataset these are."""

    dataset: Dataset
    part: str

    @property
    def split(self) -> str:
        """Its name in a record."""
        return self.dataset.split_name(self.part)


class Experiment:
    """The frozen CLIP, the dataset to train on, the test images and the record of one workdir.

    Raises:
        InputError: the config cannot run, or the workdir belongs to another.
    """

    def __init__(self, config: Mapping[str, Any], workdir: str | Path):
        config_module.check(config)
        self.config = config
        self.workdir = Path(workdir)
        workdir_module.check(config, self.workdir)
        parallel.devices()
        self.dataset = self.load_dataset(config["dataset"], config["class_names"])
        if self.dataset.texts is not None:
            config_module.check_unused(config, self.dataset.name)
        self.frozen = Frozen(config, self.dataset)
        self._images: dict[tuple[Any, ...], evaluate.ImagesOf] = {}

    def load_dataset(self, name: str, class_names: str = "") -> Dataset:
        """Open a dataset from where the config says that datasets lie."""
        dataset = catalog.load(name, self.config["data_dir"] or None, class_names or None)
        warn_of_embedded_clip(dataset.space or self.config["clip"]["name"], dataset.name)
        return dataset

    @property
    def backbone(self) -> str:
        """The CLIP's name in records, whose weights have a hash; or that of given features."""
        return self.dataset.space or source.backbone(self.config["clip"]["name"])

    @property
    def method_name(self) -> str:
        """The name of the configured method."""
        return self.config["method"]["name"]

    @functools.cached_property
    def shots(self) -> Sequence[int]:
        """The numbers of shots to learn from; 0 alone where no labelled image is learned from."""
        method = self.frozen.create(self.dataset)
        return tuple(self.config["shots"]) if method.stages(self.config) else (0,)

    def run(self, shots: int, seed: int, part: str) -> TrainingRun:
        """Return a run on a few images of the dataset; 0 shots are for what learns from none.

        Raises:
            InputError: the classes or settings do not fit, or the method learns nothing.
        """
        few = few_shot.draw(self.dataset, self.config["sampling"], shots or 1, seed, part)
        folder = self.workdir / "checkpoints" / run_name(shots, seed)
        unlabeled = self.dataset.half(part).train
        run = TrainingRun(self.frozen, few, shots or None, seed, folder, unlabeled)
        if not run.stages and not run.method.uses:
            raise InputError(
                f"method {self.method_name} learns nothing: expected one to train; its results come"
                " with those of any other, e.g. coop"
            )
        run.check()
        return run

    def runs(self, part: str) -> Iterator[tuple[str, TrainingRun]]:
        """Yield the name of every run of the config, and the run."""
        for shots in self.shots:
            for seed in self.config["seeds"]:
                yield run_name(shots, seed), self.run(shots, seed, part)

    def label(self, run: TrainingRun) -> str:
        """Return what to call a run."""
        return f"{self.method_name}, {plural(run.shots or 0, 'shot')}, seed {run.seed}"

    def move(self, method: Any, trained: Dataset, other: Dataset) -> Any:
        """Return the method as it is for another dataset's classes, with what it has learned.

        Raises:
            InputError: what it learned belongs to classes that the other has not.
        """
        same = trained.classes == other.classes and trained.templates[0] == other.templates[0]
        if same and trained.texts is other.texts:
            return method
        wanted = other.classes.moved_from(trained.classes)
        fresh = self.frozen.create(
            dataclasses.replace(other, classes=wanted), learned_template=trained.templates[0]
        )
        return move(method, fresh, trained.classes, wanted)

    def hand_crafted(self, dataset: Dataset) -> dict[str, Any]:
        """Return zero-shot CLIP with the configured prompts, by prompt.

        Raises:
            InputError: a template or a class name does not fit.
        """
        prompts = templates.prompt_sets(
            self.config["templates"], dataset.templates[0], dataset.name
        )
        if dataset.texts is not None:
            prompts = {f"given text features ({len(dataset.texts)} per class)": dataset.templates}
        return {
            prompt: self.frozen.create(dataset, method={"name": ZERO_SHOT, "templates": chosen})
            for prompt, chosen in prompts.items()
        }

    def claim_workdir(self) -> None:
        """Make the workdir this experiment's, once everything about it has been found in order."""
        claim = functools.partial(workdir_module.claim, self.config, self.workdir)
        parallel.first_does(claim, "claim the workdir")

    @property
    def results_path(self) -> Path:
        """The file that every evaluation is added to."""
        return self.workdir / results.FILE_NAME

    def test_images(self, method: Any, target: Target) -> evaluate.ImagesOf:
        """Return what a method takes of test images; what takes little memory is encoded once."""
        read_once = dataclasses.replace(target.dataset.test, cache=ImageCache(0))
        images_of = self.frozen.images_of(method, read_once)
        if not self.frozen.encoder(method).is_small:
            return images_of
        key = target.dataset.name, target.part, method.takes, method.views.test
        if key not in self._images:
            self._images[key] = evaluate.in_memory(images_of(np.arange(len(read_once))))
        return self._images[key]

    def hashes(self, target: Target, trained_on: Sequence[str] = ()) -> results.Hashes:
        """Return digests of what results depend on; `trained_on` are the files learned from."""
        config, tested = self.config, _listed(target.dataset, "test")
        settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
        chosen = config["clip"]
        settings["clip"] = {"name": self.backbone, "dtype": chosen["dtype"], **said_of(chosen)}
        settings["method_code"] = code_of(self.method_name)
        if named := files_of(self.method_name, config["method"]):
            settings["method_files"] = named
        turned = orientation_settings(self.dataset.train, target.dataset.test)
        transform = [config["augmentation"], *pixel_settings(self.frozen.clip), *turned]
        return results.Hashes(
            data=digest([self._data_hash, *tested]),
            split=digest([*trained_on, *tested]),
            class_names=digest(target.dataset.classes.names),
            transform=digest(transform),
            weights=self.frozen.weights_hash,
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
        start: float | None,
        run: TrainingRun | None = None,
        prompt: str | None = None,
    ) -> results.Result:
        """Evaluate a method on a target and add the result to `results.jsonl`.

        Args:
            method: as it is for the target's classes.
            target: the test images.
            start: what `time.monotonic()` gave when the work began; None if it began in an earlier
                process, in which case nobody knows how long it took.
            run: what the method has learned in; None for a hand-crafted prompt.
            prompt: which hand-crafted prompt that is.
        """
        examples = target.dataset.test
        predicted, classes = evaluate.classify(
            method,
            self.frozen.clip,
            self.test_images(method, target),
            examples.file_names.tolist(),
            self.frozen.mesh,
        )
        metrics = evaluate.measure(predicted, classes, examples.labels)
        if run is not None and parallel.is_first():
            names = target.dataset.classes.names
            collapse.warn_of_one_class(run, predicted, examples.labels, names)
        learned_from = [] if run is None else run.learned_from
        shapes: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        for path, variable in saved(method).items():
            shapes[isinstance(variable, Learned)][path] = list(variable.shape)
        settings = {} if run is None else {**self.config["method"], **method.settings()}
        name = settings.pop("name", ZERO_SHOT)
        row = results.Result(
            protocol=self.config["protocol"],
            method=name,
            dataset=target.dataset.name,
            split=target.split,
            backbone=self.backbone,
            shots=0 if run is None else run.shots or 0,
            seed=0 if run is None else run.seed,
            settings=settings,
            uses=sorted(method.uses),
            learned=shapes[True],
            kept=shapes[False],
            epochs=None if run is None else run.epochs,
            **dataclasses.asdict(metrics),
            correct=results.pack(predicted == examples.labels),
            seconds=None if start is None else time.monotonic() - start,
            commit=commit(),
            hashes=self.hashes(target, [str(n) for e in learned_from for n in e.file_names]),
            prompt=prompt,
            trained_on=None if run is None else self.dataset.full_name,
            versions=versions(),
            config=dict(self.config) | ({} if self.dataset.texts is None else {"clip": {}}),
        )
        append = functools.partial(results.append, self.results_path, row)
        parallel.first_does(append, "record a result")
        return row

    def save(self, run: TrainingRun) -> None:
        """Keep what a run has learned, if anything, in `saved/<run>`.

        What is there already stays, unless another run of this name has learned it.
        """
        if saved(run.method):
            parallel.first_does(lambda: self._save(run), "save what was learned")

    def _saved_in(self, shots: int, seed: int) -> Path:
        return self.workdir.absolute() / files.FOLDER / run_name(shots, seed)

    def holds_saved(self, shots: int, seed: int) -> bool:
        """Tell whether what a run has learned is in its place, as a whole."""
        is_there = lambda: Saved.is_at(self._saved_in(shots, seed))  # noqa: E731
        return parallel.first_says(is_there, "look for what was learned")

    def learned(self, run: TrainingRun) -> Any:
        """Return the method of a finished run with what it has learned, as it was saved."""
        if saved(run.method):
            kept = Saved.load(self._saved_in(run.shots or 0, run.seed))
            return fill(run.method, kept.learned, run.dataset.classes, run.dataset.classes)
        return run.restore()

    def _save(self, run: TrainingRun) -> None:
        folder = self._saved_in(run.shots or 0, run.seed)
        if not folder.exists():
            Saved.of_run(run, self.backbone).save(folder)
        elif not _holds(folder, run.method):
            logger.warning("%s: is damaged, or another run's: it is made again", folder)
            aside = unfinished_name(folder.with_name(f".{folder.name}"))
            folder.rename(aside)
            Saved.of_run(run, self.backbone).save(folder)
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()

    @functools.cached_property
    def _data_hash(self) -> str:
        dataset, splits = self.dataset, ("train", "val", "test")
        return digest([dataset.pixels_from, *(_listed(dataset, split)[1:] for split in splits)])


def run_name(shots: int, seed: int) -> str:
    """Return what the files of a run are called."""
    return f"{shots}_shots_seed_{seed}"


def _holds(folder: Path, method: Any) -> bool:
    """Tell whether what is saved in a folder is what a method has learned."""
    try:
        kept = Saved.load(folder).learned
    except InputError:
        return False
    now = {name: np.asarray(variable[...]) for name, variable in saved(method).items()}
    return kept.keys() == now.keys() and all(np.array_equal(kept[name], now[name]) for name in now)


def _listed(dataset: Dataset, split: str) -> list[Any]:
    """Return all that a split consists of; of images whose, names and labels."""
    examples: Examples = getattr(dataset, split)
    listed = [dataset.pixels_from, examples.file_names.tolist(), examples.labels.tolist()]
    if dataset.texts is None:
        return listed
    texts = hashlib.sha256(np.ascontiguousarray(dataset.texts, "<f4").tobytes()).hexdigest()
    return [*listed, examples.content, texts, dataset.logit_scale]
