"""Numbers that are not finite: found, named, and traced to where they come from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from coop_jax.errors import InputError

LARGE = 1e4
"""A magnitude that nothing that is learned has, where all is well."""


class Sizes(NamedTuple):
    """The largest magnitudes of steps; NaN where a number is NaN."""

    before: Float[Any, " steps"]
    """Of what is learned, before the step."""
    gradient: Float[Any, " steps"]
    after: Float[Any, " steps"]
    """Of what is learned, after the step."""


def faulty(tree: Any) -> list[str]:
    """Return the dotted names of the arrays of a tree that are not finite, in order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not _is_finite(leaf)
    ]


def named(names: list[str]) -> str:
    """Return the first of some names, and how many there are besides."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def check(tree: Any, problem: str, advice: str) -> None:
    """Refuse a tree with numbers that are not finite.

    Args:
        tree: of arrays, whose names are shown.
        problem: what the names end, e.g. "after step 3".
        advice: what to do.

    Raises:
        InputError: an array is not finite.
    """
    if names := faulty(tree):
        raise InputError(f"expected finite numbers {problem}, got others in {named(names)}{advice}")


def magnitude(tree: Any) -> Float[jax.Array, ""]:
    """Return the largest magnitude in a tree, float32; NaN where a number is NaN."""
    largest = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree) if leaf.size]
    return jnp.max(jnp.stack([jnp.float32(0), *(each.astype(jnp.float32) for each in largest)]))


def check_steps(
    losses: Float[np.ndarray, " steps"],
    sizes: Sizes,
    *,
    called: Callable[[int], str],
    clip: Any,
    images: Callable[[int], Any],
) -> None:
    """Refuse steps of which a loss, or what is learned after one, is not finite.

    Args:
        losses: of the steps.
        sizes: of the same steps.
        called: from a step's place to its name.
        clip: the frozen CLIP.
        images: from a step's place to what it saw.

    Raises:
        InputError: the line names the first such step, and where in it the first such number is.
    """
    is_sound = np.isfinite(losses) & np.isfinite(sizes.after)
    if is_sound.all():
        return
    step = int(np.argmin(is_sound))
    if not np.isfinite(losses[step]):
        raise InputError(
            f"expected a finite loss, got {losses[step]} in {called(step)}:"
            f" {cause(clip, images(step), {'learned': sizes.before[step]})}"
        )
    if np.isfinite(sizes.gradient[step]):
        why = "the optimizer's step itself; lower the learning rate or the weight decay"
    elif _is_half(clip):
        why = "its gradient, though its loss is finite; use float32"
    else:
        why = f"its gradient, though its loss is finite ({losses[step]:.3g}); lower the learning"
        why += " rate, or look at the method's losses"
    got = f"{sizes.after[step]} after {called(step)}"
    raise InputError(f"expected what is learned to stay finite, got {got}: by {why}")


def cause(clip: Any, images: Any, learned: Any) -> str:
    """Say why what a method computes is not finite, and what to do.

    The arrays are looked at in the order in which the numbers flow.

    Args:
        clip: the frozen CLIP.
        images: what the method took of the images.
        learned: what the method has learned, by name.
    """
    if names := faulty(nnx.state(clip)):
        return f"the CLIP's weights are not finite ({named(names)}); fetch them again"
    if names := faulty(images):
        advice = "use float32, or leave them out" if _is_half(clip) else "leave them out"
        return f"the images' {names[0].strip('.')} are not finite; {advice}"
    if names := faulty(learned):
        return f"what was learned is not finite ({named(names)}); learn it again"
    if (largest := float(magnitude(learned))) > LARGE:
        return f"what is learned is as large as {largest:.2g}; lower the learning rate"
    known = "the CLIP's weights, the images and what is learned are finite"
    return f"{known}; {'use float32' if _is_half(clip) else 'look at what the method computes'}"


def _is_finite(array: Any) -> bool:
    array = np.asarray(array)
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(np.isfinite(array).all())


def _is_half(clip: Any) -> bool:
    kinds = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip))}
    return any(jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4 for kind in kinds)
