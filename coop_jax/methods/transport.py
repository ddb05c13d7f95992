"""Optimal transport between the features of an image and those of a class's prompts (PLOT)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from coop_jax.clip import unit
from coop_jax.clip.transformer import precision

EXACT = precision(jnp.float32)

REGULARISATION = 0.1
"""Of the entropy: a similarity counts as exp((similarity - 1) / REGULARISATION)."""

MOST_STEPS = 100
"""Of Sinkhorn's iteration."""

ENOUGH = 0.01
"""The mean change of the rows' factors in a step, below which it was the last."""


def plans(
    similarities: Float[Array, "images classes rows columns"], *, stop_together: bool
) -> Float[Array, "images classes rows columns"]:
    """Return entropic transport plans between rows and columns, all of the same weight.

    Each sums to one. The columns' sums are even, the rows' nearly so, as the iteration stops early.

    Args:
        similarities: from -1 to 1; the cost is one minus these.
        stop_together: as in the official code, stop when the mean change over all images is small,
            so that the plans of an image depend on those beside it; else over those of each image.
    """
    kernel = jnp.exp((similarities - 1) / REGULARISATION)
    rows, columns = kernel.shape[-2:]

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        of_rows, of_columns, ended, count = state
        through = jnp.einsum("...rc,...c->...r", kernel, of_columns, precision=EXACT)
        new_rows = 1 / (rows * through)
        back = jnp.einsum("...rc,...r->...c", kernel, new_rows, precision=EXACT)
        new_columns = 1 / (columns * back)
        change = jnp.mean(jnp.abs(new_rows - of_rows), axis=(1, 2))
        if stop_together:
            change = jnp.broadcast_to(jnp.mean(change), change.shape)
        stays = ended[:, None, None]
        return (
            jnp.where(stays, of_rows, new_rows),
            jnp.where(stays, of_columns, new_columns),
            ended | (change < ENOUGH),
            count + 1,
        )

    def goes_on(state: tuple[Array, Array, Array, Array]) -> Array:
        return (state[3] < MOST_STEPS) & ~jnp.all(state[2])

    start = (
        jnp.ones(kernel.shape[:-1], jnp.float32),
        jnp.ones((*kernel.shape[:-2], columns), jnp.float32),
        jnp.zeros(kernel.shape[:1], bool),
        jnp.int32(0),
    )
    of_rows, of_columns, _, _ = jax.lax.while_loop(goes_on, step, start)
    return of_rows[..., None] * kernel * of_columns[..., None, :]


def similarity(
    images: Float[Array, "images rows embedding"],
    texts: Float[Array, "prompts classes embedding"],
    *,
    stop_together: bool = False,
) -> Float[Array, "images classes"]:
    """Return the mean cosine similarity of each image and class under their transport plan.

    No gradient goes through the plan.

    Args:
        images: several features of each image; of any length.
        texts: those of each class; of any length.
        stop_together: as `plans` takes it.
    """
    cosines = jnp.einsum("bre,nce->bcrn", unit(images), unit(texts), precision=EXACT)
    plan = plans(jax.lax.stop_gradient(cosines), stop_together=stop_together)
    return jnp.sum(plan * cosines, axis=(-2, -1))
