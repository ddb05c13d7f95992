"""Views of a test image: how sure the classifier is of them, and which ones count."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from coop_jax.errors import InputError


def entropy(logits: Float[Array, "*views classes"]) -> Float[Array, "*views"]:
    """Return the entropy of the softmax, in nats."""
    logs = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.sum(jnp.exp(logs) * logs, axis=-1)


def marginal_entropy(logits: Float[Array, "views classes"]) -> Float[Array, ""]:
    """Return the entropy of the softmax's mean over views, in nats, computed from logarithms."""
    logs = jax.nn.log_softmax(logits, axis=-1)
    mean = jax.nn.logsumexp(logs, axis=0) - jnp.log(len(logs))
    return -jnp.sum(jnp.exp(mean) * mean)


def most_confident(logits: Float[Array, "views classes"], count: int) -> Int[Array, " count"]:
    """Return the places of the views of lowest entropy, the lowest first."""
    return jnp.argsort(entropy(logits))[:count]


def confident_count(views: int, share: float) -> int:
    """Return how many views are the share that counts, rounded down.

    Raises:
        InputError: there is no view among them, or the share is more than all.
    """
    count = int(views * share)
    if not 1 <= count <= views:
        raise InputError(
            f"confident_share: expected a share that is from 1 to all of {views} views, got"
            f" {share:g}, which is {count}; choose more views or another share"
        )
    return count
