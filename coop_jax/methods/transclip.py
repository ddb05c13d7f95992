"""TransCLIP: Gaussians of the classes, fitted to unlabelled images together (Zanella et al.)."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, unit
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, text, unlabeled
from coop_jax.methods.base import Data, Fixed, Given, Images, Kept, Stage

NAME = "TransCLIP"
PAPER = "Zanella et al., NeurIPS 2024"

EXACT = precision(jnp.float32)

ROUNDS, INNER = 10, 5
"""The times that Gaussians and assignments are fitted in turn, and the steps of the latter."""

TEMPERATURE = 50.0
"""The divisor of log-likelihoods and neighbours beside the texts; and a factor of all gammas."""

CONFIDENT = 8
"""Images of each class that its first mean is taken of, the surest."""

AT_ONCE = 2048
"""Images whose distances from all others are in memory at a time."""

logger = logging.getLogger(__name__)

LIMITS = {"neighbours": (1, 1024)}


def default_config() -> dict[str, Any]:
    """Return the settings, those of the official code without labelled images.

    Settings:
        template: the hand-crafted prompt, with {} for the class name; the dataset's own if empty.
        few_shot: learn from the labelled images as well.
        neighbours: of each image, whose assignments are drawn to its own.
        gammas: with `few_shot`, weights of the labelled images that are tried; of several, the one
            that is best on validation images.
        as_released: with `few_shot`, do as the official code: every weight goes on from the one
            before, the last counts, and neighbours are taken for those of other images.
    """
    return {
        "template": "",
        "few_shot": False,
        "neighbours": 3,
        "gammas": (0.002, 0.01, 0.02, 0.2),
        "as_released": False,
    }


class Neighbours(NamedTuple):
    """The nearest images of each image, with their cosines."""

    places: Int[Array, "images neighbours"]
    cosines: Float[Array, "images neighbours"]


class Solution(NamedTuple):
    """Assignments of the images to the classes, and the Gaussians that go with them.

    The means are of length one; the variance is that of each dimension, the same for all classes.
    """

    assignments: Float[Array, "images classes"]
    means: Float[Array, "classes embedding"]
    variance: Float[Array, " embedding"]


class Shots(NamedTuple):
    """Labelled images: normalised features and one-hot classes."""

    features: Float[Array, "shots embedding"]
    classes: Float[Array, "shots classes"]


class Method(base.Method):
    """Log-probabilities of hand-crafted texts and of Gaussians, one for each class.

    The Gaussians are fitted to the dataset's unlabelled images together, which neighbours among
    these have a part in (`solve`). A new image is classified on its own, without neighbours.
    Classes that the Gaussians are not of are refused.

    Attributes:
        bank: text features `[classes, embedding]`.
        means: of the classes; the text features until `prepare`.
        variance: of each dimension.
    """

    uses = frozenset({"unlabeled"})

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["few_shot"] and not config["gammas"]:
            raise InputError("gammas: expected at least one, got none; give some")
        self.bank = Fixed(unit(text.hand_crafted_features(given, config["template"])))
        embedding = self.bank.shape[1]
        self.means = Kept(jnp.array(self.bank[...]), per_class=True)
        self.variance = Kept(jnp.full(embedding, 1 / embedding, jnp.float32))
        self.few_shot, self.as_released = config["few_shot"], config["as_released"]
        self.neighbours = config["neighbours"]
        self.gammas = tuple(config["gammas"]) if self.few_shot else (0.0,)
        if len(self.gammas) > 1 and not self.as_released:
            self.uses = frozenset({"unlabeled", "validation"})

    @property
    def text_weight(self) -> float:
        """The weight of the texts, beside the Gaussians."""
        return 0.5 if self.few_shot else 1.0

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage, without steps."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Fit the Gaussians.

        Raises:
            InputError: there are no unlabelled images or, with `few_shot`, a class has none.
        """
        features = unit(jnp.asarray(unlabeled.unlabeled_features(NAME, data)))
        shots = self.shots(data) if self.few_shot else None
        solutions = self.solutions(clip, features, shots)
        chosen = len(solutions) - 1
        if "validation" in self.uses:
            assert data.val is not None
            val = unit(jnp.asarray(data.val.images().features))
            nearest = nearest_of(val, features)
            predicted = [np.argmax(each.assignments, axis=1)[nearest] for each in solutions]
            accuracy = [100 * np.mean(labels == data.val.labels) for labels in predicted]
            chosen = int(np.argmax(accuracy))
            what = "TransCLIP: gamma = %g, few-shot validation accuracy %.1f %%"
            logger.info(what, self.gammas[chosen], accuracy[chosen])
        self.means[...], self.variance[...] = solutions[chosen][1:]
        return data

    def shots(self, data: Data) -> Shots:
        """Return the labelled images, under the test transform.

        Raises:
            InputError: a class has none.
        """
        counts = np.bincount(data.train.labels, minlength=len(self.means))
        if not counts.all():
            raise InputError(
                f"{NAME}: expected training images of every class, got none of class"
                f" {counts.argmin()}; add some, or set few_shot=False"
            )
        classes = jax.nn.one_hot(data.train.labels, len(counts), dtype=jnp.float32)
        return Shots(unit(jnp.asarray(data.train.images().features)), classes)

    def solutions(
        self, clip: CLIP, features: Float[Array, "images embedding"], shots: Shots | None
    ) -> list[Solution]:
        """Return what fits these images, normalised, with each of the weights of the shots."""
        return solve(
            features,
            jax.nn.log_softmax(clip.logits(features, self.bank[...]), axis=-1),
            shots,
            text_weight=self.text_weight,
            gammas=self.gammas,
            neighbours=self.neighbours,
            as_released=self.as_released,
        )

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of the hand-crafted prompt."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the weighted log-probabilities of both."""
        features = jnp.asarray(images.features)
        log = jax.nn.log_softmax(clip.logits(features, texts), axis=-1)
        likelihood = log_likelihood(unit(features), self.means[...], self.variance[...])
        return self.text_weight * log + likelihood / TEMPERATURE


def solve(
    features: Float[Array, "images embedding"],
    predictions: Float[Array, "images classes"],
    shots: Shots | None = None,
    *,
    text_weight: float = 1.0,
    gammas: Sequence[float] = (0.0,),
    neighbours: int = 3,
    rounds: int = ROUNDS,
    as_released: bool = False,
    overwrites: bool = False,
) -> list[Solution]:
    """Assign images to classes together: TransCLIP's own, transductive problem.

    Assignments are near to predictions, to the Gaussians that they make, and to those of the
    neighbours. It stands on top of any method: predictions may come from elsewhere.

    Args:
        features: of the images, normalised.
        predictions: log-probabilities of the classes.
        shots: labelled images beside them.
        text_weight: of the predictions.
        gammas: weights of the shots; each is solved for on its own.
        neighbours: of each image.
        rounds: of Gaussians and assignments.
        as_released: with shots, as the setting of that name.
        overwrites: take the last assignments for the predictions, at every step; so does the
            official code where predictions are given, and there are no shots.

    Returns:
        A solution for each gamma.
    """
    first = initial(features, predictions, shots)
    near = nearest(features, None if shots is None else shots.features, neighbours, as_released)
    solutions: list[Solution] = []
    for gamma in gammas:
        begin = solutions[-1] if as_released and solutions else first
        weights = jnp.float32(text_weight), jnp.float32(gamma)
        solutions.append(
            _fit(begin, features, predictions, shots, near, weights, rounds, overwrites)
        )
    return solutions


def initial(
    features: Float[Array, "images embedding"],
    predictions: Float[Array, "images classes"],
    shots: Shots | None,
) -> Solution:
    """Return the predictions with means of the surest images, or of the shots."""
    assignments = jnp.exp(predictions)
    if shots is None:
        surest, places = jax.lax.top_k(assignments.T, min(CONFIDENT, len(features)))
        means = jnp.einsum("ck,cke->ce", surest, features[places], precision=EXACT)
    else:
        means = jnp.dot(shots.classes.T, shots.features, precision=EXACT)
    embedding = features.shape[1]
    return Solution(assignments, unit(means), jnp.full(embedding, 1 / embedding, jnp.float32))


def log_likelihood(
    features: Float[Array, "images embedding"],
    means: Float[Array, "classes embedding"],
    variance: Float[Array, " embedding"],
) -> Float[Array, "images classes"]:
    """Return minus half the squared distances, each dimension's over its variance."""
    # Seen from the middle, what is subtracted below is not large beside what is left.
    middle = means.mean(axis=0)
    features, means = features - middle, means - middle
    crossed = jnp.dot(features / variance, means.T, precision=EXACT)
    own = jnp.sum(features**2 / variance, axis=1, keepdims=True)
    return crossed - (own + jnp.sum(means**2 / variance, axis=1)) / 2


@functools.partial(jax.jit, static_argnames=("rounds", "overwrites"))
def _fit(
    begin: Solution,
    features: Float[Array, "images embedding"],
    predictions: Float[Array, "images classes"],
    shots: Shots | None,
    near: Neighbours,
    weights: tuple[Float[Array, ""], Float[Array, ""]],
    rounds: int,
    overwrites: bool,
) -> Solution:
    """Return the solution after so many rounds, and a last step of the assignments."""
    text_weight, gamma = weights
    fixed = jnp.zeros((0, predictions.shape[1])) if shots is None else shots.classes

    def assign(solution: Solution, predictions: Array) -> tuple[Array, Array]:
        likelihood = log_likelihood(features, solution.means, solution.variance)

        def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            assignments, predictions = carry
            drawn = likelihood + drawn_to(near, assignments, fixed)
            log = jax.nn.log_softmax(text_weight * predictions + drawn / TEMPERATURE, axis=-1)
            return (jnp.exp(log), log if overwrites else predictions), None

        return jax.lax.scan(step, (solution.assignments, predictions), None, INNER)[0]

    def around(carry: tuple[Solution, Array], _: None) -> tuple[tuple[Solution, Array], None]:
        solution, predictions = carry
        assignments, predictions = assign(solution, predictions)
        return (gaussians(features, assignments, shots, gamma, solution), predictions), None

    (solution, predictions), _ = jax.lax.scan(around, (begin, predictions), None, rounds)
    return solution._replace(assignments=assign(solution, predictions)[0])


def drawn_to(
    near: Neighbours,
    assignments: Float[Array, "images classes"],
    fixed: Float[Array, "shots classes"],
) -> Float[Array, "images classes"]:
    """Return what neighbours say: those that an image has, and those that have it."""
    count, rows = len(assignments), jnp.concatenate([assignments, fixed])

    def add(total: Array, neighbour: Neighbours) -> tuple[Array, None]:
        places, cosines = neighbour.places, neighbour.cosines[:, None]
        total = total + cosines[:count] * assignments[places[:count]]
        return total.at[places].add(cosines * rows), None

    turned = Neighbours(near.places.T, near.cosines.T)
    total, _ = jax.lax.scan(add, jnp.zeros_like(assignments), turned)
    return TEMPERATURE / (2 * near.places.shape[1]) * total


def gaussians(
    features: Float[Array, "images embedding"],
    assignments: Float[Array, "images classes"],
    shots: Shots | None,
    gamma: Float[Array, ""],
    before: Solution,
) -> Solution:
    """Return assignments with the Gaussians that fit them; of a class without any, the mean before.

    Shots weigh `TEMPERATURE` times gamma, all together.
    """
    weights, rows = assignments / len(features), features
    if shots is not None:
        share = TEMPERATURE * gamma / len(shots.classes)
        weights = jnp.concatenate([weights, share * shots.classes])
        rows = jnp.concatenate([rows, shots.features])
    # Seen from the middle, what is subtracted below is not large beside what is left.
    middle, total = before.means.mean(axis=0), weights.sum(axis=0)
    rows = rows - middle
    summed = jnp.dot(weights.T, rows, precision=EXACT)
    means = jnp.where(total[:, None] > 0, unit(summed + total[:, None] * middle), before.means)
    squares = jnp.dot(weights.sum(axis=1), rows**2, precision=EXACT)
    apart = means - middle
    deviations = squares + jnp.sum(apart * (total[:, None] * apart - 2 * summed), axis=0)
    return Solution(assignments, means, deviations / total.sum())


def nearest(
    features: Float[Array, "images embedding"],
    support: Float[Array, "shots embedding"] | None,
    count: int,
    as_released: bool,
) -> Neighbours:
    """Return the nearest images of each image, itself excluded, and then of each shot.

    As released, the shots stand in front, and each loses its nearest as if that were itself.
    """
    count = min(count, len(features) - 1)
    if count < 1:
        raise InputError(f"{NAME}: expected at least 2 unlabelled images, got 1; give more")
    itself = np.arange(len(features))
    of_images = _nearest(features, features, itself, count)
    if support is None:
        return of_images
    if not as_released:
        of_shots = _nearest(support, features, np.full(len(support), -1), count)
        return Neighbours(*map(jnp.concatenate, zip(of_images, of_shots, strict=True)))
    of_shots = _nearest(support, features, nearest_of(support, features), count)
    return Neighbours(*map(jnp.concatenate, zip(of_shots, of_images, strict=True)))


def _nearest(
    rows: Float[Array, "rows embedding"],
    features: Float[Array, "images embedding"],
    without: Int[np.ndarray, " rows"],
    count: int,
) -> Neighbours:
    """Return the nearest images of each row without one of them (-1 for none)."""
    found = []
    for start in range(0, len(rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        cosines = jnp.dot(rows[some], features.T, precision=EXACT)
        excluded = jnp.arange(len(features)) == jnp.asarray(without[some])[:, None]
        cosines, places = jax.lax.top_k(jnp.where(excluded, -jnp.inf, cosines), count)
        found.append(Neighbours(places, cosines))
    return Neighbours(*map(jnp.concatenate, zip(*found, strict=True)))


def nearest_of(
    rows: Float[Array, "rows embedding"], features: Float[Array, "images embedding"]
) -> Int[np.ndarray, " rows"]:
    """Return the place of the nearest image of each row."""
    return np.asarray(_nearest(rows, features, np.full(len(rows), -1), 1).places)[:, 0]
