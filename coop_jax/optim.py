"""SGD as PyTorch has it, the paper's schedule, and the partition that freezes everything else."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD with warm-up and cosine; the defaults are the official ones (coop_protocol section 6).

    Weight decay is an L2 term added to the gradient, before momentum.

    dtype: "float32" or "float16", of what is learned, its gradients, momentum and updates. With a
        float16 CLIP, "float16" is the official pure fp16 run without loss scaling (coop_protocol
        section 5), except that normalised features, logits and loss are float32 here.
    """

    learning_rate: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 1
    warmup_learning_rate: float = 1e-5
    dtype: str = "float32"


class HalfOptimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation whose variables are float16."""


def dtype_of(optimizer: optax.GradientTransformation) -> DTypeLike:
    """The dtype that an optimizer's variables must have."""
    return jnp.float16 if isinstance(optimizer, HalfOptimizer) else jnp.float32


def epoch_learning_rates(config: OptimizerConfig, epochs: int) -> Float[np.ndarray, " epochs"]:
    """The learning rate of each epoch, in float64.

    Constant during warm-up; then a cosine over `epochs` that starts from its own zero, so that the
    first epoch after the warm-up has the full rate and the last does not reach zero.
    """
    rates = [config.warmup_learning_rate] * min(config.warmup_epochs, epochs)
    rates += [
        0.5 * config.learning_rate * (1 + math.cos(math.pi * epoch / epochs))
        for epoch in range(epochs - len(rates))
    ]
    return np.asarray(rates)


def create(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """The optimizer over the whole parameter tree {"learned": ..., "frozen": ...}.

    Its `update` takes each step's `learning_rate`, so that runs of other rates or lengths are the
    same program. Frozen leaves are mapped to `set_to_zero` and get no optimizer memory; instead of
    their gradients None will do, so that none are ever computed. Learned leaves are of `dtype_of`
    it.
    """
    return _create(config.momentum, config.weight_decay, config.dtype)


@functools.cache
def _create(
    momentum: float, weight_decay: float, dtype: str
) -> optax.GradientTransformationExtraArgs:
    half = dtype == "float16"
    learned = (
        (_accumulate_in_half(momentum, weight_decay),)
        if half
        else (optax.add_decayed_weights(weight_decay), optax.trace(momentum))
    )
    partition = optax.partition(
        {"learned": optax.chain(*learned, _descend()), "frozen": optax.set_to_zero()},
        {"learned": "learned", "frozen": "frozen"},
    )
    return HalfOptimizer(*partition) if half else partition


def _descend() -> optax.GradientTransformationExtraArgs:
    """Go down by the `learning_rate` that the update is given."""

    def init(params: optax.Params) -> optax.OptState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        rate = extra_args["learning_rate"]
        return jax.tree.map(lambda update: -rate * update, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _accumulate_in_half(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Weight decay, then momentum, in float16 and rounded where PyTorch's CUDA kernels round.

    Every kernel computes in float32 and rounds what it stores: the decayed gradient, the product
    of momentum and buffer, the new buffer. The updates are the buffer in float32: times the rate,
    `optax.apply_updates` rounds their sum with the variable once, as `add_(buffer, alpha=-rate)`.
    """

    def init(params: optax.Params) -> optax.TraceState:
        return optax.TraceState(jax.tree.map(jnp.zeros_like, _to_half(params)))

    def accumulate(gradient: Array, buffer: Array, value: Array) -> Array:
        gradient, buffer, value = (jnp.asarray(x, jnp.float32) for x in (gradient, buffer, value))
        decayed = _round_to_half(_round_to_half(gradient) + weight_decay * value)
        return _round_to_half(_round_to_half(momentum * buffer) + decayed)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.TraceState]:
        buffers = jax.tree.map(accumulate, updates, state.trace, params)
        return buffers, optax.TraceState(_to_half(buffers))

    return optax.GradientTransformation(init, update)


def _to_half(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), tree)


def _round_to_half(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest float16 value as a float32.

    A conversion there and back will not do: XLA may leave it out and keep the excess precision.
    `reduce_precision` it respects, but that flushes values below 2**-14, where float16 values are
    2**-24 apart, to zero.
    """
    tiny = jnp.round(x * 2.0**24) * 2.0**-24
    return jnp.where(jnp.abs(x) < 2.0**-14, tiny, jax.lax.reduce_precision(x, 5, 10))
