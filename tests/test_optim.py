"""SGD and the schedule against their definitions (coop_protocol section 6)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from coop_jax import optim


@pytest.mark.parametrize(
    ("epochs", "last"), [(10, 1.9098e-4), (50, 7.8853e-6), (100, 1.9733e-6), (200, 4.9344e-7)]
)
def test_learning_rates_of_the_paper(epochs, last):
    rates = optim.epoch_learning_rates(optim.OptimizerConfig(), epochs)
    assert len(rates) == epochs
    assert rates[0] == 1e-5 and rates[1] == 0.002
    assert rates[-1] == pytest.approx(last, rel=1e-4)


def test_learning_rates_of_a_public_log():
    rates = optim.epoch_learning_rates(optim.OptimizerConfig(), 50)
    logged = [1.0000e-05, 2.0000e-03, 1.9980e-03, 1.9921e-03, 1.9823e-03, 1.9686e-03, 1.9511e-03]
    np.testing.assert_allclose(rates[:7], logged, rtol=3e-5)
    assert rates[-2] == pytest.approx(1.7713e-05, rel=1e-4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_runs_no_longer_than_the_warm_up(epochs):
    config = optim.OptimizerConfig(warmup_epochs=2)
    np.testing.assert_array_equal(optim.epoch_learning_rates(config, epochs), [1e-5] * epochs)


def test_updates_are_pytorchs_sgd():
    config = optim.OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = optim.create(config)
    rates = np.repeat(optim.epoch_learning_rates(config, 3), 2)
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=4)
    value = jnp.asarray(parameter, jnp.float32)
    frozen = {"weights": jnp.ones((100, 100)), "bias": jnp.ones(7)}
    state = optimizer.init({"learned": value, "frozen": frozen})
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(4,)]  # momentum
    buffer = np.zeros(4)
    for rate in rates:
        gradient = rng.normal(size=4)
        total = gradient + 0.01 * parameter
        buffer = 0.9 * buffer + total
        parameter = parameter - rate * buffer
        updates, state = optimizer.update(
            {"learned": jnp.asarray(gradient, jnp.float32), "frozen": None},
            state,
            {"learned": value, "frozen": frozen},
            learning_rate=rate,
        )
        assert updates["frozen"] is None
        value = optax.apply_updates(value, updates["learned"])
    np.testing.assert_allclose(value, parameter, rtol=1e-5)


def test_frozen_leaves_with_gradients_do_not_move():
    optimizer = optim.create(optim.OptimizerConfig())
    parameters = {"learned": jnp.ones(2), "frozen": jnp.ones(3)}
    state = optimizer.init(parameters)
    updates, _ = optimizer.update(parameters, state, parameters, learning_rate=1.0)
    assert (updates["learned"] != 0).all() and (updates["frozen"] == 0).all()


def half_problem(count):
    """Context-like float16 values, and six gradients that reach from 1e-7 to 10."""
    rng = np.random.default_rng(0)
    value = (0.02 * rng.normal(size=count)).astype(np.float16)
    gradients = [rng.normal(size=count) * 10.0 ** rng.integers(-6, 1, count) for _ in range(6)]
    return value, np.asarray(gradients).astype(np.float16)


def half_trajectory(config, value, gradients):
    """The values and momentum after every step, compiled as in training: epochs of three steps."""
    optimizer = optim.create(config)
    rates = np.repeat(optim.epoch_learning_rates(config, len(gradients) // 3), 3)
    assert optim.dtype_of(optimizer) == jnp.float16

    @jax.jit
    def run(value, gradients):
        def step(carry, inputs):
            (value, state), (gradient, rate) = carry, inputs
            gradients = {"learned": gradient, "frozen": None}
            parameters = {"learned": value, "frozen": value}
            updates, state = optimizer.update(gradients, state, parameters, learning_rate=rate)
            value = optax.apply_updates(value, updates["learned"])
            buffer = state.inner_states["learned"].inner_state[0].trace["learned"]
            return (value, state), (value, buffer)

        state = optimizer.init({"learned": value, "frozen": value})
        return jax.lax.scan(step, (value, state), (gradients, jnp.asarray(rates, jnp.float32)))[1]

    values, buffers = run(jnp.asarray(value), jnp.asarray(gradients))
    assert values.dtype == buffers.dtype == jnp.float16
    return np.asarray(values), np.asarray(buffers)


def numpy_half_sgd(config, value, gradients, wide):
    """PyTorch's SGD on half tensors: every kernel computes in float32 and rounds what it stores.

    Products and sums are fused into one operation where `wide` is float64, not if it is float32.
    """

    def half(x):
        return x.astype(np.float32).astype(np.float16).astype(wide)

    rates = np.repeat(optim.epoch_learning_rates(config, len(gradients) // 3), 3)
    constants = np.asarray([*rates, config.weight_decay, config.momentum], np.float32).astype(wide)
    *rates, decay, momentum = constants
    values, buffers = [], []
    value, buffer = value.astype(wide), None
    for rate, gradient in zip(rates, gradients.astype(wide), strict=True):
        decayed = half(gradient + decay * value)
        buffer = decayed if buffer is None else half(half(momentum * buffer) + decayed)
        value = half(value - rate * buffer)
        values.append(value)
        buffers.append(buffer)
    return np.asarray(values), np.asarray(buffers)


def test_float16_rounds_where_pytorch_does():
    config = optim.OptimizerConfig(dtype="float16")
    value, gradients = half_problem(200)
    expected = np.asarray(numpy_half_sgd(config, value, gradients, np.float32))
    # Compilers may fuse or not: leave out the few numbers for which that matters.
    fused = numpy_half_sgd(config, value, gradients, np.float64)
    same = (expected == fused).all(axis=(0, 1))
    assert same.mean() > 0.9
    got = np.asarray(half_trajectory(config, value, gradients))
    np.testing.assert_array_equal(got[..., same], expected[..., same])
    sizes = np.abs(expected[..., same])
    assert ((sizes > 0) & (sizes < 2.0**-14)).any()


def test_float16_has_pytorchs_bits():
    # The values and the momentum buffer after six steps of torch.optim.SGD (PyTorch 2.13.0+cpu,
    # weight decay and momentum set, no foreach) on a half tensor of `half_problem(32)`. The CPU's
    # kernels round rate and decay to half where CUDA's keep them in float32, so they are half
    # values here. 32 numbers fill a vector register; what does not is rounded once more there.
    value_bits = (
        "f319169c9825591c1da0b01e9826842231a4f2a761a4dd97f1a9aaa184a69fa5"
        "69a1c29d56999a260a1b5b283ca31e1fb424f78b9da31ca1a2a02c1f4ba6399d"
    )
    buffer_bits = (
        "6cabbf3412bedabc4bb6b22e292a1a3b1635cc3ac639253683a8fa3b8a2b543c"
        "44b0b5ae194073b927bbfdbb9438ca24bab95f3aa3870bbd05a42ab652396c38"
    )

    def half(x):
        return float(np.float16(x))

    config = optim.OptimizerConfig(
        learning_rate=half(0.002),
        weight_decay=half(5e-4),
        warmup_learning_rate=half(1e-5),
        dtype="float16",
    )
    values, buffers = half_trajectory(config, *half_problem(32))
    assert values[-1].tobytes().hex() == value_bits
    assert buffers[-1].tobytes().hex() == buffer_bits


def test_the_last_epochs_round_to_nothing_in_float16():
    config = optim.OptimizerConfig(warmup_epochs=2, warmup_learning_rate=5e-7, dtype="float16")
    value = np.full(4, 0.02, np.float16)
    gradients = np.full((6, 4), 0.1, np.float16)
    values, buffers = half_trajectory(config, value, gradients)
    np.testing.assert_array_equal(values, np.broadcast_to(value, values.shape))
    assert (np.diff(buffers, axis=0) > 0).all()


def test_float32_variables_are_the_default():
    assert optim.dtype_of(optim.create(optim.OptimizerConfig())) == jnp.float32
