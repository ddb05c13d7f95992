"""A matrix that turns image features towards texts: in closed form, then by a ranking (LFA)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax import optim
from coop_jax.clip import unit
from coop_jax.methods import layers

FITTED = 0.8
"""The part of the images that a split of the cross-validation fits."""


class Steps(NamedTuple):
    """The steps of the refinement: a view of some images each, its rate and its random key."""

    view: Int[Array, " steps"]
    images: Int[Array, "steps batch"]
    rate: Float[Array, " steps"]
    key: Array


class Fit(NamedTuple):
    """The matrix after the last step, a moving average of those of all steps, and their losses."""

    matrix: Float[Array, "embedding embedding"]
    average: Float[Array, "embedding embedding"]
    losses: Float[Array, " steps"]


def aligned(
    features: Float[np.ndarray, "rows embedding"],
    texts: Float[np.ndarray, "rows embedding"],
    beta: float,
) -> Float[np.ndarray, "embedding embedding"]:
    """Return the rotation that takes features nearest to their texts, in a mean with the identity.

    Directions that no text has (there are some where classes are fewer than dimensions) are turned
    as little as can be. In float64.

    Args:
        features: of length one.
        texts: the text of each row.
        beta: the weight of the identity.
    """
    left, values, right = np.linalg.svd(np.asarray(features, np.float64).T @ texts)
    size = len(values)
    rank = int(np.sum(values > values[0] * size * np.finfo(np.float64).eps))
    rotation = left[:, :rank] @ right[:rank]
    if rank < size:
        free, onto = left[:, rank:], right[rank:]
        a, _, b = np.linalg.svd(free.T @ onto.T)
        rotation = rotation + free @ (a @ b) @ onto
    return (1 - beta) * rotation + beta * np.eye(size)


def cross_validated(
    features: Float[np.ndarray, "images embedding"],
    labels: Int[np.ndarray, " images"],
    texts: Float[np.ndarray, "classes embedding"],
    orders: Int[np.ndarray, "tries splits images"],
) -> tuple[Float[np.ndarray, " tries"], Float[np.ndarray, " tries"]]:
    """Return every beta with its mean accuracy in percent on what its splits have not fitted.

    Accuracies are rounded to two digits, as in the official code, of which the first best counts.
    """
    betas = np.linspace(0, 1, len(orders), dtype=np.float32)
    count, scores = int(FITTED * len(labels)), np.zeros(len(orders))
    for place, beta in enumerate(betas):
        for order in orders[place]:
            fitted, left = order[:count], order[count:]
            matrix = aligned(features[fitted], texts[labels[fitted]], float(beta))
            predicted = (features[left] @ matrix @ texts.T).argmax(axis=1)
            scores[place] += np.round(100 * np.mean(predicted == labels[left]), 2)
    return betas, scores / orders.shape[1]


def momenta_of(steps: int) -> Float[np.ndarray, " steps"]:
    """Return what each step keeps of the average: from 0.9 to nearly one in half of the steps."""
    half = steps // 2
    done = np.minimum(np.arange(steps), half) / half if half else np.full(steps, np.inf)
    return 0.9 + 0.1 * (1 - np.exp(-5 * done))


def distances(a: Float[Array, "... size"], b: Float[Array, "... size"]) -> Float[Array, "..."]:
    """Return Euclidean distances, whose gradient is zero where both are the same."""
    squares = jnp.sum((a - b) ** 2, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def ranking_loss(
    features: Float[Array, "images embedding"],
    texts: Float[Array, "classes embedding"],
    labels: Int[Array, " images"],
    neighbors: int,
    margin: float,
) -> Float[Array, ""]:
    """Return by how much other texts are too near, over images and over those nearest to each.

    Args:
        features: of any length.
        texts: of length one.
        labels: of the images.
        neighbors: how many texts of each image count, all if there are less.
        margin: times what two texts' cosine lacks to one.
    """
    features, own = unit(features), texts[labels][:, None]
    near = jax.lax.top_k(layers.product(features, texts.T), min(neighbors, len(texts)))[1]
    others, margins = texts[near], margin * (1 - jnp.sum(texts[near] * own, axis=-1))
    far = distances(features[:, None], own) + margins - distances(features[:, None], others)
    return jnp.mean(jnp.maximum(far, 0))


@functools.partial(
    jax.jit, static_argnames=("weight_decay", "neighbors", "margin", "noise", "dropout")
)
def refine(
    start: Float[Array, "embedding embedding"],
    views: Float[Array, "views images embedding"],
    labels: Int[Array, " images"],
    texts: Float[Array, "classes embedding"],
    steps: Steps,
    momenta: Float[Array, " steps"],
    *,
    weight_decay: float,
    neighbors: int,
    margin: float,
    noise: float,
    dropout: float,
) -> Fit:
    """Refine a matrix by AdamW; its average starts as the identity."""
    optimizer = optim.create(optim.OptimizerConfig(name="adamw", weight_decay=weight_decay))

    def loss(matrix: Array, features: Array, own: Array) -> Array:
        turned = layers.product(features, matrix)
        return ranking_loss(turned, texts, own, neighbors, margin)

    def disturbed(features: Array, key: Array) -> Array:
        with jax.threefry_partitionable(True):
            coins, added, dropped = jax.random.split(key, 3)
            noisy, sparse = jax.random.bernoulli(coins, 0.5, (2,))
            drawn = noise * jax.random.normal(added, features.shape)
        features = jnp.where(noisy, features + drawn, features)
        return jnp.where(sparse, layers.dropout(features, dropped, dropout), features)

    def step(carry: Any, inputs: tuple[Steps, Array]) -> tuple[Any, Array]:
        matrix, state, average = carry
        now, momentum = inputs
        features = disturbed(views[now.view, now.images], now.key)
        value, gradient = jax.value_and_grad(loss)(matrix, features, labels[now.images])
        gradients: Any = {"learned": gradient, "frozen": None}
        parameters: Any = {"learned": matrix, "frozen": None}
        updates: Any
        updates, state = optimizer.update(gradients, state, parameters, learning_rate=now.rate)
        matrix = matrix + updates["learned"]
        return (matrix, state, momentum * average + (1 - momentum) * matrix), value

    begun: Any = {"learned": start, "frozen": None}
    carry = start, optimizer.init(begun), jnp.eye(len(start), dtype=jnp.float32)
    (matrix, _, average), losses = jax.lax.scan(step, carry, (steps, momenta))
    return Fit(matrix, average, losses)
