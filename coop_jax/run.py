"""Runs of training: the one driver of commands, sweeps, protocols and `Classifier`.

A run draws nothing and records nothing: it is given a dataset of a few images, makes its method,
prepares it, trains it stage by stage, and goes on where an earlier process stopped.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx

from coop_jax import collapse, optim, states, train
from coop_jax import images as images_module
from coop_jax.chunks import Batches
from coop_jax.data import sampling
from coop_jax.data.examples import Dataset, Examples
from coop_jax.errors import InputError
from coop_jax.frozen import Frozen
from coop_jax.methods import Data, Split, Stage

if TYPE_CHECKING:
    from coop_jax.checkpoint import Checkpoints


MOST_IMAGES = 10**9
"""The largest number of images that the steps of a run may see: their order is kept in memory."""


class Watcher:
    """Is told of a run while it trains; does nothing with it."""

    def begins(self, steps: int, done: int, batches: Batches | None) -> None:
        """A stage begins of so many steps, some of which an earlier process has done.

        A stage of no steps takes one note, unless `done` says that it is over. Without `batches`
        it is one of no steps, or all is done.
        """

    def note(self, progress: train.Progress) -> None:
        """A chunk of steps is done."""


class Losses(Watcher):
    """Keeps the loss of every step.

    Attributes:
        values: float32, those of all stages.
    """

    def __init__(self):
        self.values = np.zeros(0, np.float32)

    def note(self, progress: train.Progress) -> None:
        """Add those of a chunk."""
        if progress.terms:
            self.values = np.concatenate([self.values, progress.losses])


def paper_epochs(shots: int, dataset: str) -> int:
    """Return the CoOp paper's number of epochs (coop_protocol section 0)."""
    return 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200


def extent(stage: Stage, images: int, *, shots: int, dataset: str) -> tuple[int, int]:
    """Return how many epochs and steps a stage takes of so many images; the last may be cut short.

    Args:
        stage: says how many epochs, or how many steps for each shot.
        images: their number.
        shots: images per class.
        dataset: its name, since the CoOp paper's number of epochs is another for ImageNet.
    """
    per_epoch = sampling.steps_per_epoch(images, stage.batch_size, stage.drop_last)
    if stage.steps_per_shot is not None:
        steps = stage.steps_per_shot * shots
        steps = min(steps, stage.max_steps or steps)
        return -(-steps // per_epoch), steps
    epochs = paper_epochs(shots, dataset) if stage.epochs is None else stage.epochs
    most = stage.max_steps or epochs * per_epoch
    epochs = min(epochs, max(most // per_epoch, 1))
    return epochs, min(epochs * per_epoch, most)


def batches(stage: Stage, split: Split, *, seed: int, shots: int, dataset: str) -> Batches:
    """Return which images each step of a stage sees, at which learning rate.

    Args:
        stage: says how many epochs, or how many steps for each shot.
        split: the images.
        seed: of the shuffles.
        shots: images per class.
        dataset: its name.
    """
    images = split.per_epoch or len(split)
    epochs, steps = extent(stage, images, shots=shots, dataset=dataset)
    per_epoch = sampling.steps_per_epoch(images, stage.batch_size, stage.drop_last)
    order, epoch = sampling.batch_order(
        len(split), stage.batch_size, epochs, seed, drop_last=stage.drop_last, steps=per_epoch
    )
    by_epoch = stage.steps_per_shot is None
    schedule, count = stage.optimizer, epochs if by_epoch else steps
    if stage.max_steps and schedule.warmup_epochs >= count:
        schedule = dataclasses.replace(schedule, warmup_epochs=count - 1)
    rates = optim.learning_rates(schedule, count, per_epoch if by_epoch else 1)
    return Batches(order[:steps], epoch[:steps], rates[:steps], split.labels)


@dataclasses.dataclass
class TrainingRun:
    """A method that learns from a few images.

    Attributes:
        frozen: what it shares with others.
        dataset: of a few shots; all its training images are used.
        shots: images per class; None for all there are.
        seed: of the initialisation, the shuffles and the augmentation.
        folder: for checkpoints; None for none.
        unlabeled: images whose labels nobody may see, for methods that use them.
        tell: told how many images have been made.
        warned: whether it has been said that the run has collapsed.
        begun: what the method learns, by name, as it was before it learned.
    """

    frozen: Frozen
    dataset: Dataset
    shots: int | None
    seed: int
    folder: Path | None = None
    unlabeled: Examples | None = None
    tell: Callable[[int], None] | None = None
    warned: bool = False
    begun: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def method(self) -> Any:
        """The method, as new until it has learned or is restored."""
        return self.frozen.create(self.dataset, self.seed)

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of its training, none of which takes more steps than the config allows."""
        config = self.frozen.config
        stages = self.method.stages(config)
        return tuple(dataclasses.replace(each, max_steps=config["max_steps"]) for each in stages)

    @functools.cached_property
    def encoder(self) -> images_module.Encoder:
        """The encoder of the images that the method takes."""
        return self.frozen.encoder(self.method, self.tell)

    @functools.cached_property
    def data(self) -> Data:
        """The splits that the method may learn from.

        Raises:
            InputError: as `check`.
        """
        self.check()
        views = self.method.views.train
        split = functools.partial(images_module.split, self.encoder, seed=self.seed, views=views)
        val, unlabeled = (self._others.get(use) for use in ("validation", "unlabeled"))
        return Data(
            split(self.dataset.train),
            None if val is None else split(val),
            None if unlabeled is None else split(unlabeled, labelled=False),
        )

    @property
    def _others(self) -> dict[str, Examples | None]:
        """The images that the method uses besides the training images, by its word for them."""
        others = {"validation": self.dataset.val, "unlabeled": self.unlabeled}
        return {use: others[use] for use in others if use in self.method.uses}

    def check(self) -> None:
        """Refuse what cannot be trained, before anything is made.

        Raises:
            InputError: the dataset has not the images that the method uses, or no such outputs of
                the tower can be made as it takes, a stage moves nothing or has too many steps, or
                as `Encoder.check_given`.
        """
        encoder = self.encoder
        if self.images > MOST_IMAGES:
            raise InputError(
                f"expected at most {MOST_IMAGES:g} images in all steps of a run, got"
                f" {self.images:g} ({len(self.dataset.train)} images, {self.shots_of_largest}"
                " shots); lower the epochs or the shots"
            )
        for number, stage in enumerate(self.stages, start=1):
            if stage.epochs != 0 and not nnx.state(self.method, states.moves_in(stage.learns)):
                raise InputError(
                    f"stage {number}: expected Learned variables to move, got none under"
                    f" {', '.join(stage.learns) or 'the whole method'}; correct stages()"
                )
        for use, examples in self._others.items():
            if examples is None or not len(examples):
                name = self.frozen.config["method"]["name"]
                raise InputError(
                    f"expected a dataset with {use} images, which {name} needs, got"
                    f" {self.dataset.name} without; choose another, or another method"
                )
        if self.dataset.texts is not None:
            for examples in (self.dataset.train, *filter(None, self._others.values())):
                encoder.check_given(examples, self.method.views.train)
            if len(self.dataset.test):
                encoder.check_given(self.dataset.test, self.method.views.test)

    @property
    def shots_of_largest(self) -> int:
        """The shots, or else the images of the largest class."""
        return self.shots or int(np.bincount(self.dataset.train.labels).max())

    def batches(self, stage: Stage, split: Split) -> Batches:
        """Return which images of a split each step of a stage sees."""
        shots, name = self.shots_of_largest, self.dataset.name
        return batches(stage, split, seed=self.seed, shots=shots, dataset=name)

    @property
    def _extents(self) -> list[tuple[int, int]]:
        """The epochs and steps of each stage that has some, of the training images."""
        count, shots, name = len(self.dataset.train), self.shots_of_largest, self.dataset.name
        return [
            extent(stage, count, shots=shots, dataset=name)
            for stage in self.stages
            if stage.epochs != 0
        ]

    @property
    def steps(self) -> int:
        """The steps of all stages; one without any counts as one."""
        without = sum(stage.epochs == 0 for stage in self.stages)
        return without + sum(steps for _, steps in self._extents)

    @property
    def images(self) -> int:
        """The number of images that the steps see."""
        count = len(self.dataset.train)
        trained = [stage for stage in self.stages if stage.epochs != 0]
        return sum(
            steps * min(count, stage.batch_size)
            for stage, (_, steps) in zip(trained, self._extents, strict=True)
        )

    @property
    def epochs(self) -> int | None:
        """The epochs of all stages; None where no step is taken."""
        return sum(epochs for epochs, _ in self._extents) or None

    def checkpoints(
        self, stage: int, together: Sequence[str] = ()
    ) -> "contextlib.AbstractContextManager[Checkpoints | None]":
        """Open the checkpoints of a stage, counted from 0, which name the runs trained together."""
        if self.folder is None:
            return contextlib.nullcontext()
        from coop_jax.checkpoint import Checkpoints  # brings orbax, which takes a second

        return Checkpoints(self.folder / f"stage_{stage + 1}", together)

    @property
    def name(self) -> str:
        """The name of its folder; "" without one."""
        return "" if self.folder is None else self.folder.name

    def together(self) -> list[str]:
        """Return the names of the runs that an earlier process trained it beside; [] without."""
        if self.folder is None:
            return []
        from coop_jax.checkpoint import together

        stages = [self.folder / f"stage_{stage + 1}" for stage in range(len(self.stages))]
        return next(filter(None, map(together, reversed(stages))), [])

    @property
    def learned_from(self) -> list[Examples]:
        """The images that the method has learned from."""
        if not self.stages:
            return []
        return [
            self.dataset.train,
            *(other for other in self._others.values() if other is not None),
        ]

    def member(
        self,
        stage: int,
        checkpoints: "Checkpoints | None",
        begins: Callable[[int, Batches | None, int], None] = lambda steps, batches, done: None,
    ) -> train.Run:
        """Prepare a stage, counted from 0, and return what `train.fit` takes.

        Args:
            stage: its number.
            checkpoints: those of the stage.
            begins: told of the steps, their batches (None for a stage without steps) and how many
                are done.
        """
        data = self.method.prepare(self.frozen.clip, stage, self.data)
        split, described = data.train, self.stages[stage]
        if described.epochs == 0:
            steps = Batches(np.zeros((0, 1), int), np.zeros(0, int), np.zeros(0), split.labels)
        else:
            steps = self.batches(described, split)
        images_of = lambda requests: split.encode(requests, True)  # noqa: E731
        batches = steps if steps.steps else None
        told = functools.partial(begins, steps.steps, batches)
        return train.Run(self.method, steps, images_of, checkpoints, self.seed, told)

    def restore(self) -> Any:
        """Return the trained method.

        Raises:
            InputError: its last checkpoint is missing or damaged.
        """
        if self.stages:
            last = len(self.stages) - 1
            with self.checkpoints(last) as saved:
                clip, stage = self.frozen.clip, self.stages[last]
                if not states.ended([self.method], clip, stage, [saved]):
                    raise InputError(
                        f"{self.folder}: expected the checkpoint of a finished run, got none; run"
                        " it again"
                    )
        return self.method


def learn(
    runs: Sequence[TrainingRun],
    watchers: Sequence[Watcher] = (),
    *,
    images_per_chunk: int | None = None,
) -> list[bool]:
    """Let the methods of several runs learn side by side; return whether each had begun before.

    Every stage is prepared, trained and kept; one that an earlier process has finished is read.

    Args:
        runs: of one method with the same settings on the same classes.
        watchers: of each run.
        images_per_chunk: about how many images to make at a time; None for what is quick.

    Raises:
        InputError: an image cannot be read, or a method cannot be fitted to these.
        MachineError: a checkpoint cannot be written or read.
        Stopped: the process was told to end, and what was learned so far is saved.
    """
    watchers = watchers or [Watcher() for _ in runs]
    for run in runs:
        run.begun = collapse.learned(run.method)
    begun = [False] * len(runs)
    clip, mesh = runs[0].frozen.clip, runs[0].frozen.mesh
    names = [run.name for run in runs]
    for number, stage in enumerate(runs[0].stages):
        with contextlib.ExitStack() as stack:
            saved = [stack.enter_context(run.checkpoints(number, names)) for run in runs]
            if states.ended([run.method for run in runs], clip, stage, saved):
                begun = [True] * len(runs)
                for checkpoints, watcher in zip(saved, watchers, strict=True):
                    done = max(checkpoints.steps()[0], 1) if checkpoints else 1
                    watcher.begins(done, done, None)
                continue
            watched = [_Watched(*pair, stage) for pair in zip(runs, watchers, strict=True)]
            members = [
                run.member(number, checkpoints, told.begins)
                for run, checkpoints, told in zip(runs, saved, watched, strict=True)
            ]
            at_once = images_per_chunk or runs[0].encoder.at_once
            for chunk in train.fit(members, clip, stage, mesh, images_per_chunk=at_once):
                for progress in chunk:
                    watched[progress.run].note(progress)
            begun = [before or told.done > 0 for before, told in zip(begun, watched, strict=True)]
    return begun


class _Watched:
    """Tells a watcher of a stage of a run, and looks whether that has collapsed."""

    def __init__(self, run: TrainingRun, watcher: Watcher, stage: Stage):
        self._run, self._watcher, self._stage = run, watcher, stage
        self._watch: collapse.Watch | None = None
        self.done = 0

    def begins(self, steps: int, batches: Batches | None, done: int) -> None:
        """Begin, after so many steps of an earlier process."""
        self.done = done
        self._watcher.begins(steps, done, batches)
        if batches is not None:
            self._watch = collapse.Watch(self._run, self._stage, batches, done)

    def note(self, progress: train.Progress) -> None:
        """A chunk of steps is done."""
        self._watcher.note(progress)
        if self._watch is not None:
            self._watch.note(progress)
