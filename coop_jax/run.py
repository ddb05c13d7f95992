"""Runs of training: the one driver of commands, sweeps, protocols and `Classifier`.

A run draws nothing and records nothing: it is given a dataset of a few images, makes its method,
prepares it, trains it stage by stage, and goes on where an earlier process stopped.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from coop_jax import images as images_module
from coop_jax import optim, parallel, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.chunks import Batches
from coop_jax.clip import CLIP, FeatureSpace, Tokenizer, source
from coop_jax.clip.config import DTYPES
from coop_jax.data import sampling
from coop_jax.data.examples import Dataset, Examples
from coop_jax.errors import InputError
from coop_jax.feature_cache import Cache
from coop_jax.methods import Data, Images, Method, Split, Stage, create
from coop_jax.provenance import hash_files


class Watcher:
    """Is told of a run while it trains; does nothing with it."""

    def begins(self, steps: int, done: int, batches: Batches | None) -> None:
        """A stage begins of so many steps, some of which an earlier process has done.

        Without `batches` it is one of no steps, which counts as one, or all is done.
        """

    def note(self, progress: train.Progress) -> None:
        """A chunk of steps is done."""


class Frozen:
    """A frozen CLIP on all devices, with the settings of a run: what its methods share.

    Attributes:
        config: as `coop_jax.config.default`.
        mesh: the devices.
        clip: the CLIP; a `FeatureSpace` where the dataset gives features.
        tokenizer: its tokenizer; None where the dataset gives features.
    """

    def __init__(self, config: Mapping[str, Any], dataset: Dataset):
        """`dataset` says whether a CLIP is needed.

        Raises:
            InputError: there is no such CLIP, or its files cannot be used.
        """
        self.config, self.mesh = config, parallel.create_mesh()
        if dataset.texts is not None:
            space = FeatureSpace(dataset.texts.shape[-1], dataset.logit_scale)
            self.clip: Any = space
            self.tokenizer: Tokenizer | None = None
        else:
            self.clip, self.tokenizer = load_clip(**config["clip"])

    def create(
        self,
        dataset: Dataset,
        seed: int = 0,
        *,
        method: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the configured method (or another, with its settings) for a dataset's classes.

        Raises:
            InputError: the classes or the settings do not fit.
        """
        settings = dict(self.config["method"] if method is None else method)
        return create(
            settings.pop("name"),
            self.clip,
            self.tokenizer,
            dataset.classes,
            settings,
            seed=seed,
            template=dataset.templates[0],
            texts=dataset.texts,
            shards=self.mesh.size,
        )

    def encoder(self, method: Method, tell: Callable[[int], None] | None = None) -> Any:
        """Return what makes of images what a method takes; `tell` is told how many it has made."""
        folder = self.config["feature_cache"]
        return images_module.encoder_for(
            method,
            self.clip,
            self.mesh,
            batch_size=self.config["encode_batch_size"],
            augmentation=dict(self.config["augmentation"]),
            cache=Cache(folder) if folder else None,
            weights=(self.weights_hash, self.config["clip"]["dtype"]) if folder else (),
            **({} if tell is None else {"tell": tell}),
        )

    def images_of(self, method: Method, examples: Examples) -> Callable[[np.ndarray], Images]:
        """Return a function from places among test images to what a method takes of them."""
        encoder = self.encoder(method)

        def of_places(places: np.ndarray) -> Images:
            requests = np.stack([np.zeros_like(places), places], axis=1)
            views = method.views.test
            return encoder.images(examples, requests, seed=0, augmented=False, views=views)

        return of_places

    @functools.cached_property
    def weights_hash(self) -> str:
        """A hash of the files of the CLIP and its tokenizer; of none where features are given."""
        if self.tokenizer is None:
            return hash_files([])
        chosen = self.config["clip"]
        return hash_files(source.resolve(chosen["name"], chosen["tokenizer"] or None).files())


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


@functools.lru_cache(maxsize=1)
def load_clip(name: str, dtype: str, tokenizer: str) -> tuple[CLIP, Tokenizer]:
    """Return a CLIP on all devices, and its tokenizer; the last one stays in memory.

    Raises:
        InputError: there is none of that name, or its files cannot be used.
    """
    from coop_jax import clip as clip_package

    whole = parallel.replicated(parallel.create_mesh())
    model, its_tokenizer = clip_package.load(name, dtype=DTYPES[dtype], tokenizer=tokenizer or None)
    nnx.update(model, parallel.put(nnx.state(model), whole))
    return model, its_tokenizer


def paper_epochs(shots: int, dataset: str) -> int:
    """Return the CoOp paper's number of epochs (coop_protocol section 0)."""
    return 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200


def batches(stage: Stage, split: Split, *, seed: int, shots: int, dataset: str) -> Batches:
    """Return which images each step of a stage sees, at which learning rate.

    Args:
        stage: says how many epochs, or how many steps for each shot.
        split: the images.
        seed: of the shuffles.
        shots: images per class.
        dataset: its name, since the CoOp paper's number of epochs is another for ImageNet.
    """
    per_epoch = sampling.steps_per_epoch(len(split), stage.batch_size, stage.drop_last)
    if stage.steps_per_shot is not None:
        steps = stage.steps_per_shot * shots
        epochs = -(-steps // per_epoch)
    else:
        epochs = paper_epochs(shots, dataset) if stage.epochs is None else stage.epochs
        steps = epochs * per_epoch
    order, epoch = sampling.batch_order(
        len(split), stage.batch_size, epochs, seed, drop_last=stage.drop_last
    )
    by_epoch = stage.steps_per_shot is None
    rates = optim.learning_rates(
        stage.optimizer, epochs if by_epoch else steps, per_epoch if by_epoch else 1
    )
    return Batches(order[:steps], epoch[:steps], rates, split.labels)


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
    """

    frozen: Frozen
    dataset: Dataset
    shots: int | None
    seed: int
    folder: Path | None = None
    unlabeled: Examples | None = None
    tell: Callable[[int], None] | None = None

    @functools.cached_property
    def method(self) -> Any:
        """The method, as new until it has learned or is restored."""
        return self.frozen.create(self.dataset, self.seed)

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of its training."""
        return tuple(self.method.stages(self.frozen.config))

    @functools.cached_property
    def encoder(self) -> images_module.Encoder:
        """What makes of images what the method takes."""
        return self.frozen.encoder(self.method, self.tell)

    @functools.cached_property
    def data(self) -> Data:
        """What the method may learn from.

        Raises:
            InputError: it uses images that there are none of.
        """
        uses, views = self.method.uses, self.method.views.train
        split = functools.partial(images_module.split, self.encoder, seed=self.seed, views=views)
        unlabeled = self.dataset.train.subset([]) if self.unlabeled is None else self.unlabeled
        for use, examples in (("validation", self.dataset.val), ("unlabeled", unlabeled)):
            if use in uses and not len(examples):
                name = self.frozen.config["method"]["name"]
                raise InputError(
                    f"expected a dataset with {use} images, which {name} needs, got"
                    f" {self.dataset.name} without; choose another, or another method"
                )
        return Data(
            split(self.dataset.train),
            split(self.dataset.val) if "validation" in uses else None,
            split(unlabeled, labelled=False) if "unlabeled" in uses else None,
        )

    def check(self) -> None:
        """Refuse a dataset without images that the method uses, before anything is made.

        Raises:
            InputError: it is one.
        """
        assert self.data.train is not None

    @property
    def shots_of_largest(self) -> int:
        """The shots, or else the images of the largest class."""
        return self.shots or int(np.bincount(self.dataset.train.labels).max())

    def batches(self, stage: Stage, split: Split | None = None) -> Batches:
        """Return which images each step of a stage sees: of a split, or of the training images."""
        return batches(
            stage,
            split or self.data.train,
            seed=self.seed,
            shots=self.shots_of_largest,
            dataset=self.dataset.name,
        )

    @property
    def steps(self) -> int:
        """How many steps its stages take of the training images; one without any counts as one."""
        return sum(1 if stage.epochs == 0 else self.batches(stage).steps for stage in self.stages)

    @property
    def images(self) -> int:
        """How many images the steps see."""
        return sum(self.batches(stage).order.size for stage in self.stages if stage.epochs != 0)

    @property
    def epochs(self) -> int | None:
        """The epochs of all stages; None where no step is taken."""
        trained = [self.batches(stage).epoch[-1] + 1 for stage in self.stages if stage.epochs != 0]
        return int(sum(trained)) if trained else None

    def checkpoints(self, stage: int) -> contextlib.AbstractContextManager[Checkpoints | None]:
        """Open the checkpoints of a stage, counted from 0."""
        if self.folder is None:
            return contextlib.nullcontext()
        return contextlib.closing(Checkpoints(self.folder / f"stage_{stage + 1}"))

    @property
    def learned_from(self) -> list[Examples]:
        """The images that the method has learned from."""
        if not self.stages:
            return []
        others = {"validation": self.dataset.val, "unlabeled": self.unlabeled}
        used = [e for use, e in others.items() if use in self.method.uses and e is not None]
        return [self.dataset.train, *used]

    def member(self, stage: int, checkpoints: Checkpoints | None) -> train.Run:
        """Prepare a stage, counted from 0, and return what `train.fit` takes."""
        data = self.method.prepare(self.frozen.clip, stage, self.data)
        split, described = data.train, self.stages[stage]
        if described.epochs == 0:
            steps = Batches(np.zeros((0, 1), int), np.zeros(0, int), np.zeros(0), split.labels)
        else:
            steps = self.batches(described, split)
        images_of = lambda requests: split.encode(requests, True)  # noqa: E731
        return train.Run(self.method, steps, images_of, checkpoints, self.seed)

    def restore(self) -> Any:
        """Return the trained method.

        Raises:
            InputError: its last checkpoint is missing.
        """
        last = len(self.stages) - 1
        with self.checkpoints(last) as checkpoints:
            if checkpoints is None or not checkpoints.is_complete:
                raise InputError(
                    f"{self.folder}: expected the checkpoint of a finished run, got none; run it"
                    " again in another --workdir"
                )
            train.restore(self.method, self.frozen.clip, self.stages[last], checkpoints)
        return self.method


def learn(runs: Sequence[TrainingRun], watchers: Sequence[Watcher] = ()) -> list[bool]:
    """Let the methods of several runs learn side by side; return whether each had begun before.

    Every stage is prepared, trained and kept; one that an earlier process has finished is read.

    Args:
        runs: of one method with the same settings on the same classes.
        watchers: of each run.

    Raises:
        InputError: an image cannot be read, or a method cannot be fitted to these.
    """
    watchers = watchers or [Watcher() for _ in runs]
    begun, clip = [False] * len(runs), runs[0].frozen.clip
    for number, stage in enumerate(runs[0].stages):
        with contextlib.ExitStack() as stack:
            members: list[train.Run] = []
            of_members: list[Watcher] = []
            for place, (run, watcher) in enumerate(zip(runs, watchers, strict=True)):
                checkpoints = stack.enter_context(run.checkpoints(number))
                done = None if checkpoints is None else checkpoints.latest_step()
                begun[place] |= done is not None
                if checkpoints is not None and checkpoints.is_complete:
                    train.restore(run.method, clip, stage, checkpoints)
                    watcher.begins(max(done or 0, 1), max(done or 0, 1), None)
                    continue
                member = run.member(number, checkpoints)
                has_steps = member.batches.steps > 0
                watcher.begins(
                    max(member.batches.steps, 1), done or 0, member.batches if has_steps else None
                )
                members.append(member)
                of_members.append(watcher)
            for chunk in _train_stage(members, stage, runs[0]):
                for progress in chunk:
                    of_members[progress.run].note(progress)
    return begun


def _train_stage(
    members: Sequence[train.Run], stage: Stage, first: TrainingRun
) -> Iterator[list[train.Progress]]:
    """Train the runs that are left through a stage; keep those of a stage without steps."""
    clip, mesh = first.frozen.clip, first.frozen.mesh
    if stage.epochs == 0:
        for place, member in enumerate(members):
            if member.checkpoints is not None:
                state = train.initial_state(member.method, clip, stage)
                member.checkpoints.save(state, last=True)
            yield [train.Progress(place, 1, {})]
    elif members:
        at_once = first.encoder.at_once
        yield from train.fit(members, clip, stage, mesh, images_per_chunk=at_once)
