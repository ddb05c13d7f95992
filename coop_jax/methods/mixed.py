"""Heads that are trained on images and on texts alike: both kinds of cross-modal adaptation."""

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax import optim
from coop_jax.clip import CLIP, unit
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Method, Stage

STARTS = ("texts", "random")

SCHEDULE = {"schedule_by": "step", "warmup": "linear", "warmup_epochs": 50}

logger = logging.getLogger(__name__)

LIMITS = {
    "augmented_passes": (0, 1000),
    "wise": (0, 1),
    "steps": (1, 10**6),
    "every": (1, 10**6),
    "batch_sizes": (2, 10**6),
}


def default_config() -> dict[str, Any]:
    """Return the settings that both kinds have.

    Settings:
        templates: hand-crafted prompts with {} for the class name, each of which is a sample of its
            class; the dataset's own if empty.
        start: of the linear layer, at the "texts", or "random".
        augmented_passes: augmented views of each training image, beside the image itself.
        steps: of training.
        every: after the first step and after so many others it is tried on validation images.
        select: keep the best of all trials on validation images, the first among equals; else the
            last step with the first rate, decay and batch size.
        wise: the weight of the text features in a mean with the linear layer (WiSE-FT).

    Each kind has its own rates, decays and batch sizes, all of which are tried with each other;
    half of a batch are images, half are texts.
    """
    return {
        "templates": (),
        "start": "texts",
        "augmented_passes": 1,
        "steps": 12_800,
        "every": 100,
        "select": True,
        "wise": 0.0,
    }


def recipe() -> dict[str, Any]:
    """Return the official view beside the image itself, its mirror image."""
    return {"augmentation": {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 1.0}}


class Head(NamedTuple):
    """A linear layer, and the bottleneck before it, if there is one."""

    weight: Float[Array, "classes embedding"]
    down: Float[Array, "embedding hidden"] | None = None
    up: Float[Array, "hidden embedding"] | None = None

    def __call__(
        self, features: Float[Array, "rows embedding"], ratio: float
    ) -> Float[Array, "rows classes"]:
        """Return what is not scaled yet, of features of length one."""
        if self.down is not None and self.up is not None:
            features = layers.adapted(features, self.down, self.up, ratio)
        return layers.product(features, self.weight.T)


class Samples(NamedTuple):
    """Features of length one and their labels."""

    features: Float[Array, "samples embedding"]
    labels: Int[Array, " samples"]


class Fit(NamedTuple):
    """The last head, the best, its validation accuracy in percent, and the loss of every step."""

    last: Head
    best: Head
    accuracy: Float[Array, ""]
    losses: Float[Array, " steps"]


class CrossModal(Method):
    """Scaled products of a linear layer, of any length, with image features of length one.

    `prepare` trains it, once for each rate, decay and batch size. The layer serves the classes that
    it was trained for, or some of them.

    Attributes:
        bank: unnormalised text features `[templates, classes, embedding]`.
        weight: `[classes, embedding]`.
        seed: of the order of the samples.
        ratio: as `Head.__call__` takes it.
    """

    ratio: float = 0.0

    def __init__(self, given: Given, config: dict[str, Any]):
        """Start at the texts or at random.

        Raises:
            InputError: no such start, or nothing to try.
        """
        if config["start"] not in STARTS:
            raise InputError(
                f"start: expected one of {', '.join(STARTS)}, got {config['start']!r:.80};"
                " choose one"
            )
        for name in ("rates", "decays", "batch_sizes"):
            if not config[name]:
                raise InputError(f"{name}: expected at least one, got none; give some")
        prompts = text.HandCrafted(given, tuple(config["templates"]) or (given.template,))
        self.bank = Fixed(prompts.encode(given.clip).astype(jnp.float32))
        start = self.zero_shot()
        if config["start"] == "random":
            start = layers.linear_init(given.rngs.params(), start.shape, start.shape[1])
        self.weight = Kept(start, per_class=True)
        self.seed = Kept(jax.random.randint(given.rngs.params(), (), 0, 2**31 - 1, jnp.int32))
        self.rates, self.decays, self.batch_sizes = (
            tuple(config[name]) for name in ("rates", "decays", "batch_sizes")
        )
        self.passes, self.steps, self.every, self.wise = (
            config[name] for name in ("augmented_passes", "steps", "every", "wise")
        )
        self.uses = frozenset({"validation"}) if config["select"] else frozenset()

    def zero_shot(self) -> Float[Array, "classes embedding"]:
        """Return the means of the texts of each class, at length one."""
        return unit(self.bank[...].mean(axis=0))

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps of the frame: `prepare` takes its own."""
        return (Stage(epochs=0),)

    def head(self) -> Head:
        """Return the head as it is kept."""
        return Head(self.weight[...])

    def texts(self, clip: CLIP, key: Array | None) -> Head:
        """Return the head, its layer in a mean with the texts where `wise` says so."""
        head = self.head()
        return head._replace(weight=(1 - self.wise) * head.weight + self.wise * self.zero_shot())

    def logits(self, clip: CLIP, texts: Head, images: Images) -> Float[Array, "batch classes"]:
        """Return scaled outputs of the head."""
        return clip.scaled(texts(unit(jnp.asarray(images.features)), self.ratio))

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Train a head for every rate, decay and batch size, and keep the best."""
        samples = self.samples(data)
        val = Samples(samples[0].features[:0], samples[0].labels[:0])
        if self.uses:
            assert data.val is not None
            val = Samples(
                unit(jnp.asarray(data.val.images().features)), jnp.asarray(data.val.labels)
            )
        best, most, said = self.head(), -1.0, ()
        for rate, decay, size in self.trials(*map(len, (samples[0].labels, samples[1].labels))):
            rates = optim.learning_rates(
                optim.OptimizerConfig(learning_rate=rate, **SCHEDULE), self.steps, 1
            )
            fit = self.fitted(clip, samples, val, self.orders(samples, size), rates, decay)
            if float(fit.accuracy) > most:
                best = fit.best if self.uses else fit.last
                most, said = float(fit.accuracy), (rate, decay, size)
        for name, value in best._asdict().items():
            if value is not None:
                getattr(self, name)[...] = value
        seen = f", few-shot validation accuracy {most:.1f} %" if self.uses else ""
        logger.info(
            "cross-modal adaptation: learning rate %g, weight decay %g, batches of %d%s",
            *said,
            seen,
        )
        return data

    def samples(self, data: Data) -> tuple[Samples, Samples]:
        """Return all views of the images, view by view, and all texts, class by class."""
        views = data.train.with_augmented(self.passes).features
        classes, size = self.bank.shape[1:]
        texts = jnp.swapaxes(self.bank[...], 0, 1).reshape(-1, size)
        images = unit(jnp.asarray(views.reshape(-1, size), jnp.float32))
        return (
            Samples(images, jnp.asarray(np.tile(data.train.labels, len(views)))),
            Samples(unit(texts), jnp.asarray(np.repeat(np.arange(classes), len(self.bank)))),
        )

    def trials(self, images: int, texts: int) -> Iterator[tuple[float, float, int]]:
        """Yield rates, decays and batch sizes; no batch whose halves are not less than all."""
        fitting = [size for size in self.batch_sizes if size // 2 < min(images, texts)]
        for rate in self.rates:
            for decay in self.decays:
                for size in fitting or [min(self.batch_sizes)]:
                    yield rate, decay, size
                    if not self.uses:
                        return

    def orders(self, samples: tuple[Samples, Samples], size: int) -> list[Int[np.ndarray, "..."]]:
        """Return which images and which texts each step sees: half a batch of both, or all."""
        rng = np.random.default_rng(int(self.seed[...]))
        counts = [len(each.labels) for each in samples]
        return [passes(rng, count, min(size // 2, count), self.steps) for count in counts]

    def fitted(
        self,
        clip: CLIP,
        samples: tuple[Samples, Samples],
        val: Samples,
        orders: list[Int[np.ndarray, "steps half"]],
        rates: Float[np.ndarray, " steps"],
        decay: float,
    ) -> Fit:
        """Return a head that is trained from what is kept by AdamW, on these samples in turn."""
        scale = jnp.exp(clip.logit_scale[...])
        given = self.head(), scale, samples, val, tuple(map(jnp.asarray, orders))
        return descend(
            *given, jnp.asarray(rates, jnp.float32), decay=decay, every=self.every, ratio=self.ratio
        )


def passes(
    rng: np.random.Generator, count: int, size: int, steps: int
) -> Int[np.ndarray, "steps size"]:
    """Return batches of passes over so many samples, shuffled, each without its incomplete end."""
    per_pass = count // size
    order = [rng.permutation(count)[: per_pass * size] for _ in range(-(-steps // per_pass))]
    return np.concatenate(order).reshape(-1, size)[:steps]


@functools.partial(jax.jit, static_argnames=("decay", "every", "ratio"))
def descend(
    start: Head,
    scale: Float[Array, ""],
    samples: tuple[Samples, Samples],
    val: Samples,
    orders: tuple[Int[Array, "steps images"], Int[Array, "steps texts"]],
    rates: Float[Array, " steps"],
    *,
    decay: float,
    every: int,
    ratio: float,
) -> Fit:
    """Train on batches of images and texts, and keep the head that is best on others, the first."""
    optimizer = optim.create(optim.OptimizerConfig(name="adamw", weight_decay=decay))

    def loss(head: Head, places: tuple[Array, Array]) -> Array:
        parts = [
            jax.tree.map(lambda a, at=at: a[at], s) for s, at in zip(samples, places, strict=True)
        ]
        features, labels = (jnp.concatenate(pair) for pair in zip(*parts, strict=True))
        everyone = jnp.ones(len(labels), jnp.float32)
        return base.cross_entropy(scale * head(features, ratio), labels, everyone)

    def accuracy(head: Head) -> Array:
        right = jnp.argmax(head(val.features, ratio), axis=-1) == val.labels
        return 100 * jnp.sum(right) / max(len(val.labels), 1)

    def step(carry: Any, inputs: Any) -> tuple[Any, Array]:
        head, state, best, most = carry
        places, rate, number = inputs
        value, gradient = jax.value_and_grad(loss)(head, places)
        gradients: Any = {"learned": gradient, "frozen": None}
        parameters: Any = {"learned": head, "frozen": None}
        updates: Any
        updates, state = optimizer.update(gradients, state, parameters, learning_rate=rate)
        head = jax.tree.map(jnp.add, head, updates["learned"])
        got = jax.lax.cond(number % every == 0, accuracy, lambda _: jnp.float32(-1), head)
        best = jax.lax.cond(got > most, lambda: head, lambda: best)
        return (head, state, best, jnp.maximum(got, most)), value

    begun: Any = {"learned": start, "frozen": None}
    carry = start, optimizer.init(begun), start, jnp.float32(-1)
    inputs = orders, rates, jnp.arange(len(rates))
    (last, _, best, most), losses = jax.lax.scan(step, carry, inputs)
    return Fit(last, best, most, losses)
