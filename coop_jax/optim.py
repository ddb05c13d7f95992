"""SGD as PyTorch has it, the paper's schedule, and the partition that freezes everything else."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """SGD with warm-up and cosine; the defaults are the official ones (coop_protocol section 6).

    Weight decay is an L2 term added to the gradient, before momentum.
    """

    learning_rate: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: int = 1
    warmup_learning_rate: float = 1e-5


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


@functools.cache
def schedule(config: OptimizerConfig, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step; it changes between epochs only."""
    rates = jnp.asarray(epoch_learning_rates(config, epochs), jnp.float32)

    def rate(step: ArrayLike) -> Array:
        return rates[jnp.minimum(jnp.asarray(step) // steps_per_epoch, epochs - 1)]

    return rate


@functools.cache
def create(
    config: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer over the whole parameter tree {"learned": ..., "frozen": ...}.

    Frozen leaves are mapped to `set_to_zero` and get no optimizer memory; instead of their
    gradients None will do, so that none are ever computed.
    """
    learned = optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule(config, epochs, steps_per_epoch), momentum=config.momentum),
    )
    return optax.partition(
        {"learned": learned, "frozen": optax.set_to_zero()},
        {"learned": "learned", "frozen": "frozen"},
    )
