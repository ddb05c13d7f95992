"""The contract of a method: what it is given, and what it gives (docs/adding-a-method.md)."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from coop_jax.classes import Classes
from coop_jax.clip import CLIP, Tokenizer
from coop_jax.optim import OptimizerConfig

Terms = dict[str, Float[Array, ""]]
"""The weighted terms of a loss, by name; what is differentiated is their sum."""


class Learned(nnx.Param):
    """A variable that gets gradients and is saved.

    Metadata:
        per_class: it has a row per class along its first axis, which moves with the class.
        unseen: of a per-class variable, what a class that was not trained on gets: "refuse" (the
            default) or "initial", the row that a new method has.
        varying: `prepare` decides how long the first axis is.
        rate, decay: factors on the learning rate and the weight decay.
        waits: a step whose gradient of it is zero throughout changes neither it nor what the
            optimizer remembers of it (but Adam counts that step).
        shard_axis: the axis that devices may share.
    """


class Kept(nnx.Variable):
    """A variable that is saved and gets no gradient: caches, statistics, what a search chose.

    `prepare` and `losses` may set it; each run has its own. It takes the metadata of `Learned`.
    """


class Fixed(nnx.Variable):
    """A function of the classes and the CLIP alone, set at construction; never saved.

    Runs that are trained together share it, so it must not depend on the seed (checked).
    """


USES = (
    "validation",
    "unlabeled",
    "test_images",
    "other_images",
    "sentences",
    "teacher",
    "new_class_names",
)
"""All that a method may learn from besides the labelled training images.

"other_images" are of no split of the dataset.
"""


class Images(NamedTuple):
    """The fields of some images that a method's `takes` names; the others are None.

    With several views per image they lie on a second axis.
    """

    features: Float[Array, "batch *views embedding"] | Any = None
    """Of the frozen tower, unnormalised."""
    unprojected: Float[Array, "batch *views width"] | Any = None
    """The pooled output of the frozen tower, before its projection."""
    tokens: Float[Array, "batch *views tokens width"] | Any = None
    """All outputs of the frozen tower's last block."""
    local: Float[Array, "batch *views patches width"] | Any = None
    """Every patch through the values alone of the frozen tower's last attention (GalLoP)."""
    patches: Float[Array, "batch *views patches embedding"] | Any = None
    """Every patch as the frozen tower leaves it, in the space of features; unnormalised (PLOT)."""
    pixels: UInt8[Array, "batch *views size size 3"] | Any = None
    """As `CLIP.encode_image` takes them."""
    teacher: Float[Array, "batch *views embedding"] | Any = None
    """Of a second frozen CLIP, of the same view; unnormalised."""


class Batch(NamedTuple):
    """The examples of a step.

    A weight of zero leaves out a row that pads the batch. `key` is the step's random key, the same
    on any number of devices.
    """

    images: Images
    labels: Int[Array, " batch"]
    weights: Float[Array, " batch"]
    key: Array


class Views(NamedTuple):
    """Views of an image at training and at test time; with one, `Images` have no axis of views."""

    train: int = 1
    test: int = 1


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of training: `prepare`, then steps.

    Attributes:
        epochs: passes over the images; 0 for none at all, None for the CoOp paper's number.
        steps_per_shot: where given, as many steps for each shot, instead of epochs.
        batch_size: examples per step.
        drop_last: leave out the incomplete last batch of an epoch, if there is another.
        optimizer: with its schedule.
        learns: dotted paths of the Learned variables that move (or of modules of them); all, if
            there are none.
        max_steps: fewer epochs, so that these are not exceeded; 0 for as many as there are. (A run
            sets it, by its config.)
        average: from a number of epochs, the weight of the values after each of them in the
            average that the stage ends with; None for the last values.
    """

    epochs: int | None = None
    steps_per_shot: int | None = None
    batch_size: int = 32
    drop_last: bool = True
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    learns: tuple[str, ...] = ()
    max_steps: int = 0
    average: Callable[[int], Sequence[float]] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], **others: Any) -> "Stage":
        """Return the stage that a run's config describes, with other fields where they are given.

        Args:
            config: its `epochs` (0 is the CoOp paper's number), `batch_size` and `optimizer` count.
            others: fields of the stage.
        """
        settings = {
            "epochs": config["epochs"] or None,
            "batch_size": config["batch_size"],
            "optimizer": OptimizerConfig(**config["optimizer"]),
        }
        return cls(**settings | others)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images of a split as `prepare` sees them.

    Attributes:
        labels: of every image; -1 where it is not known.
        encode: from rows (epoch, place in the split) and whether the images are augmented, to what
            the method takes of them.
        views: how many augmented views there are, where they are given; None for any number.
        per_epoch: how many of the images, drawn anew each time, an epoch takes; None for all.
    """

    labels: Int[np.ndarray, " images"]
    encode: Callable[[Int[np.ndarray, "requests 2"], bool], Images]
    views: int | None = None
    per_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, passes: int = 0) -> Images:
        """Return all images, under the test transform or in augmented passes.

        Args:
            passes: 0 for the test transform; else as many augmented views, those of the first
                epochs, which are a leading axis `[passes, images, ...]`; where views are given, as
                many as there are at most.
        """
        places, passes = np.arange(len(self)), min(passes, self.views or passes)
        if not passes:
            return self.encode(np.stack([np.zeros_like(places), places], axis=1), False)
        seen = [
            self.encode(np.stack([np.full_like(places, epoch), places], axis=1), True)
            for epoch in range(passes)
        ]
        return jax.tree.map(lambda *views: np.stack(views), *seen)

    def with_augmented(self, passes: int) -> Images:
        """Return all images under the test transform, and then in augmented passes.

        They are a leading axis `[1 + passes, images, ...]`; where views are given, the first of
        those, as many as there are at most.
        """
        if self.views is not None:
            return self.images(passes + 1)
        itself = jax.tree.map(lambda array: np.asarray(array)[None], self.images())
        if not passes:
            return itself
        return jax.tree.map(lambda *views: np.concatenate(views), itself, self.images(passes))

    def subset(
        self, places: Int[np.ndarray, " chosen"], labels: Int[np.ndarray, " chosen"] | None = None
    ) -> "Split":
        """Return the images at these places, with other labels where they are given."""

        def encode(requests: Int[np.ndarray, "requests 2"], augmented: bool) -> Images:
            return self.encode(
                np.stack([requests[:, 0], places[requests[:, 1]]], axis=1), augmented
            )

        return Split(self.labels[places] if labels is None else labels, encode, self.views)


class Data(NamedTuple):
    """The splits that a run may learn from; one that it does not `use` is None."""

    train: Split
    val: Split | None = None
    unlabeled: Split | None = None


@dataclasses.dataclass(frozen=True)
class Given:
    """The parts that a method is made of.

    Attributes:
        clip: the frozen CLIP; only read, not kept.
        tokenizer: the CLIP's tokenizer; None where there is no text tower.
        classes: the classes that logits are for.
        rngs: random numbers of the initialisation.
        template: the dataset's own hand-crafted prompt, with {} for the class name.
        learned_template: the own prompt of the dataset that the method learns or has learned from.
        texts: unnormalised text features of hand-crafted prompts `[templates, classes,
            embedding]`, where they are given instead of a text tower.
        teacher: a second frozen CLIP, and its tokenizer, for methods that use one.
        shards: into how many parts `methods.text` cuts the classes, for as many devices.
    """

    clip: CLIP
    tokenizer: Tokenizer | None
    classes: Classes
    rngs: nnx.Rngs
    template: str = "a photo of a {}."
    learned_template: str = ""
    texts: Float[Array, "templates classes embedding"] | None = None
    teacher: tuple[CLIP, Tokenizer] | None = None
    shards: int = 1


class Method(nnx.Module):
    """A method: an NNX module, one final class `Method` per file; all but `__init__` has a default.

    The frozen CLIP is handed in at every call, so that it stays an argument of whatever is
    compiled.

    Beside the class:
        NAME: the method's name in reports.
        PAPER: authors, venue and year.
        default_config(): its settings with their defaults.
        recipe(): what the paper trains with, as settings of a run where they differ from CoOp's.

    Attributes:
        takes: fields of `Images` that it reads.
        views: of every image.
        texts_per_image: every image has texts of its own: devices then share the classes of each
            image instead of the images of a batch.
        uses: some of `USES`; every record of results says so.
    """

    takes: tuple[str, ...] = ("features",)
    views: Views = Views()
    texts_per_image: bool = False
    uses: frozenset[str] = frozenset()

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return the stages of training, of a run with this config; () if nothing is learned."""
        return (Stage.of(config),)

    def settings(self) -> dict[str, Any]:
        """Return settings as they came out where that is not as they were asked for."""
        return {}

    def word_vectors(self) -> dict[str, Float[Array, "*classes vectors width"]]:
        """Return what was learned in the space of token embeddings, by name, to be interpreted."""
        return {}

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Do what comes before the steps of a stage, and return the images that these see.

        Closed forms, caches, pseudo-labels, searches on validation images; not compiled.

        Raises:
            InputError: the method cannot be fitted to these images.
        """
        del clip, stage
        return data

    def adapt(self, clip: CLIP, key: Array | None) -> CLIP:
        """Return the CLIP with what learns inside its towers; it may change what it is given.

        Args:
            clip: a private copy.
            key: of the step; None when nothing is trained.
        """
        del key
        return clip

    def texts(self, clip: CLIP, key: Array | None) -> Any:
        """Return all that needs no image, as a pytree, e.g. text features of the classes."""
        del clip, key
        return ()

    def logits(self, clip: CLIP, texts: Any, images: Images) -> Float[Array, "batch classes"]:
        """Return float32 logits; by default scaled cosine similarities with `texts`."""
        return clip.logits(images.features, texts)

    def losses(self, clip: CLIP, texts: Any, batch: Batch) -> Terms:
        """Return the weighted terms of the loss by name; by default cross-entropy alone."""
        logits = self.logits(clip, texts, batch.images)
        return {"cross_entropy": cross_entropy(logits, batch.labels, batch.weights)}

    def gradient(
        self, terms: Callable[[Any], tuple[Terms, Any]], learned: Any
    ) -> tuple[Terms, Any, Any]:
        """Return the terms, the new Kept variables and the gradient, by default of the terms' sum.

        Args:
            terms: from Learned variables to the terms and the Kept variables after them.
            learned: the Learned variables of the step.
        """

        def total(learned: Any) -> tuple[Array, tuple[Terms, Any]]:
            values, kept = terms(learned)
            return functools.reduce(operator.add, values.values()), (values, kept)

        gradient, (values, kept) = jax.grad(total, has_aux=True)(learned)
        return values, kept, gradient

    def start_stream(self) -> Any:
        """Return what a method that remembers test images starts with; () if it does not."""
        return ()

    def stream(
        self, clip: CLIP, texts: Any, images: Images, memory: Any
    ) -> tuple[Float[Array, "one classes"], Any]:
        """Return the logits of the stream's next image and the memory after it."""
        return self.logits(clip, texts, images), memory


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    weights: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Return the weighted mean cross-entropy."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    return weighted_mean(-picked, weights)


def weighted_mean(
    values: Float[Array, " batch"], weights: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Return the mean over a batch, without the rows whose weight is zero."""
    return jnp.sum(values * weights) / jnp.sum(weights)
