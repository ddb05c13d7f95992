"""SGD, Adam and AdamW as PyTorch has them, their schedules, and the freezing of all else."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from coop_jax.errors import InputError

CHOICES = {
    "name": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "cosine_restarts", "constant"),
    "schedule_by": ("epoch", "step"),
    "warmup": ("constant", "linear"),
    "dtype": ("float32", "float16"),
}
"""The values that a setting of an optimizer may have."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer of PyTorch and its schedule; the defaults are CoOp's (coop_protocol section 6).

    A Learned variable may have metadata `rate` and `decay`: factors on its learning rate and weight
    decay, as a parameter group of its own has in PyTorch; and `waits`: a step whose gradient of it
    is zero throughout leaves it alone, as PyTorch does where there is none.

    Attributes:
        name: "sgd", "adam" or "adamw".
        learning_rate: the highest.
        momentum: of "sgd".
        betas: of "adam" and "adamw": how much of the first and second moment each step keeps.
        epsilon: of "adam" and "adamw": added to the root of the second moment, after the latter's
            bias correction.
        weight_decay: an L2 term added to the gradient, before momentum or moments; of "adamw" each
            step takes the learning rate times as much of the variables instead.
        schedule: of the learning rate after the warm-up: "cosine", from its full value over half a
            period, a wave if that is shorter than the training; "cosine_restarts", which begins
            anew after half a period, the next of which is twice as long; or "constant".
        schedule_by: whether the rate changes with every "epoch" or every "step".
        half_period: of the cosine, in epochs (steps, with `schedule_by` "step"); 0 for as many as
            the whole training has, the warm-up included, which the cosine then does not end.
        warmup_epochs: epochs (steps, with `schedule_by` "step") of warm-up.
        warmup: "constant" at `warmup_learning_rate`, or "linear": that rate first, then up from 0.
        warmup_learning_rate: that of all variables; their factors do not count, as in Dassl (hence
            if there are factors, no other rate should be the same number).
        final_learning_rate: the cosine's lowest.
        clip_norm: the norm to which gradients are clipped, all variables together, before weight
            decay; 0 for no clipping.
        dtype: "float32" or, with "sgd" alone, "float16", of what is learned, its gradients,
            momentum and updates. With a float16 CLIP, "float16" is the official pure fp16 run
            without loss scaling (coop_protocol section 5), except that normalised features, logits
            and loss are float32 here.

    Raises:
        InputError: there is no such optimizer.
    """

    name: str = "sgd"
    learning_rate: float = 0.002
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    schedule_by: str = "epoch"
    half_period: int = 0
    warmup_epochs: int = 1
    warmup: str = "constant"
    warmup_learning_rate: float = 1e-5
    final_learning_rate: float = 0.0
    clip_norm: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for setting, choices in CHOICES.items():
            value = getattr(self, setting)
            if value not in choices:
                raise InputError.of_setting(
                    f"optimizer.{setting}",
                    f"expected one of {', '.join(choices)}, got {value!r:.80}; choose one",
                )
        if self.schedule == "cosine_restarts" and not self.half_period:
            raise InputError.of_setting(
                "optimizer.half_period",
                "expected at least 1 with schedule cosine_restarts, got 0; give one",
            )
        if self.dtype == "float16" and (self.name != "sgd" or self.clip_norm):
            got = f"clip_norm {self.clip_norm}" if self.name == "sgd" else self.name
            raise InputError.of_setting(
                "optimizer.dtype",
                f"expected float32 with {got}, got float16; use float32, or sgd without clipping",
            )


class HalfOptimizer(optax.GradientTransformationExtraArgs):
    """An optax transformation whose variables are float16."""


def dtype_of(optimizer: optax.GradientTransformation) -> DTypeLike:
    """The dtype that an optimizer's variables must have."""
    return jnp.float16 if isinstance(optimizer, HalfOptimizer) else jnp.float32


def learning_rates(
    config: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> Float[np.ndarray, " steps"]:
    """Return the learning rate of every step, in float64.

    After a warm-up the cosine starts from its own zero: the rate is the full one, and the last does
    not reach `final_learning_rate`. By step it is PyTorch's CosineAnnealingLR in closed form.
    """
    by_epoch = config.schedule_by == "epoch"
    total = epochs if by_epoch else epochs * steps_per_epoch
    rates = np.array([_rate(config, time, total) for time in range(total)], np.float64)
    return np.repeat(rates, steps_per_epoch) if by_epoch else rates


def _rate(config: OptimizerConfig, time: int, total: int) -> float:
    """Return the learning rate of an epoch or a step, of `total`."""
    if time < config.warmup_epochs:
        if config.warmup == "constant" or time == 0:
            return config.warmup_learning_rate
        return config.learning_rate * time / config.warmup_epochs
    if config.schedule == "constant":
        return config.learning_rate
    time, length = time - config.warmup_epochs, config.half_period or total
    while config.schedule == "cosine_restarts" and time >= length:
        time, length = time - length, 2 * length
    lowest = config.final_learning_rate
    return lowest + (config.learning_rate - lowest) * (1 + math.cos(math.pi * time / length)) / 2


def create(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer over the whole parameter tree {"learned": ..., "frozen": ...}.

    Its `update` takes each step's `learning_rate`, so that runs of other rates or lengths are the
    same program. Frozen leaves are mapped to `set_to_zero` and get no optimizer memory; instead of
    their gradients None will do, so that none are ever computed. Learned leaves are of `dtype_of`
    it.
    """
    return _create(
        config.name,
        config.momentum,
        config.betas,
        config.epsilon,
        config.weight_decay,
        config.clip_norm,
        config.warmup_learning_rate if config.warmup_epochs else None,
        config.dtype,
    )


@functools.cache
def _create(
    name: str,
    momentum: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
    warmup_learning_rate: float | None,
    dtype: str,
) -> optax.GradientTransformationExtraArgs:
    decay = _add_decayed_weights(weight_decay)
    if dtype == "float16":
        steps = (_accumulate_in_half(momentum, weight_decay),)
    elif name == "sgd":
        steps = (decay, optax.trace(momentum))
    elif name == "adam":
        steps = (decay, _scale_by_adam(betas, epsilon))
    else:
        steps = (_scale_by_adam(betas, epsilon), decay)
    clip = (_clip(clip_norm),) if clip_norm else ()
    learned = _waiting(optax.chain(*clip, *steps, _descend(warmup_learning_rate)))
    partition = optax.partition(
        {"learned": learned, "frozen": optax.set_to_zero()},
        {"learned": "learned", "frozen": "frozen"},
    )
    return HalfOptimizer(*partition) if dtype == "float16" else partition


def _with_factor(function: Callable[..., Any], name: str, params: Any, *trees: Any) -> Any:
    """Map trees like `params`; the function's first argument is the variable's factor `name`."""

    def of_variable(variable: Any, *leaves: Any) -> Any:
        is_variable = isinstance(variable, nnx.Variable)
        factor = variable.get_metadata().get(name, 1.0) if is_variable else 1.0
        return jax.tree.map(functools.partial(function, factor), *leaves)

    return jax.tree.map(
        of_variable, params, *trees, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def _stateless(
    update: Callable[..., optax.Updates],
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation of an `update(updates, params, **extra_args)`."""

    def with_state(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return update(updates, params, **extra_args), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), with_state)


def _descend(warmup_learning_rate: float | None) -> optax.GradientTransformationExtraArgs:
    """Go down by the `learning_rate` that the update is given, times the variable's factor."""

    def update(updates: optax.Updates, params: Any, *, learning_rate: Any, **_: Any) -> Any:
        def descend(factor: float, update: Array) -> Array:
            rate = learning_rate
            if factor != 1.0:
                rate = factor * rate
                if warmup_learning_rate is not None:
                    warm = learning_rate == jnp.float32(warmup_learning_rate)
                    rate = jnp.where(warm, learning_rate, rate)
            return -rate * update

        return _with_factor(descend, "rate", params, updates)

    return _stateless(update)


def _add_decayed_weights(weight_decay: float) -> optax.GradientTransformationExtraArgs:
    """Do what `optax.add_decayed_weights` does, with the variable's factor."""

    def update(updates: optax.Updates, params: Any, **_: Any) -> Any:
        def add(factor: float, update: Array, value: Array) -> Array:
            decay = weight_decay * factor
            return update + decay * value if decay else update

        return _with_factor(add, "decay", params, updates, params)

    return _stateless(update)


def _waiting(
    inner: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """Leave a variable that `waits`, and the memory of it, alone where its gradient is all zero.

    So does PyTorch with a parameter that a step's loss does not depend on. Where no variable waits
    the program is the same as without.
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        def keep(waits: Any, gradient: Array, new: Array, old: Any = 0) -> Array:
            return jnp.where((gradient == 0).all(), old, new) if waits is True else new

        structure = jax.tree.structure(updates)
        is_memory = lambda node: jax.tree.structure(node) == structure  # noqa: E731

        def remembered(new: Any, old: Any) -> Any:
            if not is_memory(new):
                return new
            return _with_factor(keep, "waits", params, updates, new, old)

        moved, after = inner.update(updates, state, params, **extra_args)
        after = jax.tree.map(remembered, after, state, is_leaf=is_memory)
        return _with_factor(keep, "waits", params, updates, moved), after

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _clip(largest: float) -> optax.GradientTransformationExtraArgs:
    """Clip the norm of all gradients together as PyTorch's `clip_grad_norm_`.

    `optax.clip_by_global_norm` differs in the 1e-6.
    """

    def update(updates: optax.Updates, params: Any, **_: Any) -> Any:
        del params
        share = jnp.minimum(largest / (optax.tree.norm(updates) + 1e-6), 1.0)
        return jax.tree.map(lambda update: share * update, updates)

    return _stateless(update)


def _scale_by_adam(betas: tuple[float, float], epsilon: float) -> optax.GradientTransformation:
    """Do what `optax.scale_by_adam` does, with the bias corrections to the last digits.

    PyTorch computes 1 - beta**count in float64. In float32 that is off by 2e-5 for 0.999**1, while
    -expm1(count * log(beta)) is not.
    """
    logs = [math.log(beta) if beta else -math.inf for beta in betas]

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, betas[0], 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, betas[1], 2)
        count = state.count + 1
        first, second = (-jnp.expm1(count * log) for log in logs)

        def scale(mu: Array, nu: Array) -> Array:
            return mu / first / (jnp.sqrt(nu) / jnp.sqrt(second) + epsilon)

        return jax.tree.map(scale, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _accumulate_in_half(momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Weight decay, then momentum, in float16 and rounded where PyTorch's CUDA kernels round.

    Every kernel computes in float32 and rounds what it stores: the decayed gradient, the product
    of momentum and buffer, the new buffer. The updates are the buffer in float32: times the rate,
    `optax.apply_updates` rounds their sum with the variable once, as `add_(buffer, alpha=-rate)`.
    """

    def init(params: optax.Params) -> optax.TraceState:
        return optax.TraceState(jax.tree.map(jnp.zeros_like, _to_half(params)))

    def accumulate(factor: float, gradient: Array, buffer: Array, value: Array) -> Array:
        gradient, buffer, value = (jnp.asarray(x, jnp.float32) for x in (gradient, buffer, value))
        decayed = _round_to_half(_round_to_half(gradient) + weight_decay * factor * value)
        return _round_to_half(_round_to_half(momentum * buffer) + decayed)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.TraceState]:
        buffers = _with_factor(accumulate, "decay", params, updates, state.trace, params)
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
