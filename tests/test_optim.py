"""Optimizers and schedules against their definitions, and against PyTorch's numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from coop_jax import config as config_module
from coop_jax import optim
from coop_jax.errors import InputError
from coop_jax.methods import Learned
from coop_jax.optim import OptimizerConfig


@pytest.mark.parametrize(
    ("epochs", "last"), [(10, 1.9098e-4), (50, 7.8853e-6), (100, 1.9733e-6), (200, 4.9344e-7)]
)
def test_learning_rates_of_the_paper(epochs, last):
    rates = optim.learning_rates(OptimizerConfig(), epochs, 1)
    assert len(rates) == epochs and rates.dtype == np.float64
    assert rates[0] == 1e-5 and rates[1] == 0.002
    assert rates[-1] == pytest.approx(last, rel=1e-4)


def test_learning_rates_of_a_public_log():
    rates = optim.learning_rates(OptimizerConfig(), 50, 1)
    logged = [1.0000e-05, 2.0000e-03, 1.9980e-03, 1.9921e-03, 1.9823e-03, 1.9686e-03, 1.9511e-03]
    np.testing.assert_allclose(rates[:7], logged, rtol=3e-5)
    assert rates[-2] == pytest.approx(1.7713e-05, rel=1e-4)


@pytest.mark.parametrize("epochs", [1, 2])
def test_runs_no_longer_than_the_warm_up(epochs):
    config = OptimizerConfig(warmup_epochs=2)
    np.testing.assert_array_equal(optim.learning_rates(config, epochs, 1), [1e-5] * epochs)


def test_cosine_by_step_is_pytorchs():
    config = OptimizerConfig(
        learning_rate=0.1, schedule_by="step", warmup_epochs=0, final_learning_rate=0.01
    )
    rates = optim.learning_rates(config, 3, 4)
    times = np.arange(12)
    np.testing.assert_allclose(
        rates, 0.01 + 0.09 * (1 + np.cos(np.pi * times / 12)) / 2, rtol=1e-15
    )


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_linear_warm_up(schedule):
    config = OptimizerConfig(
        learning_rate=0.1, schedule=schedule, schedule_by="step", warmup_epochs=4, warmup="linear"
    )
    rates = optim.learning_rates(config, 2, 5)
    np.testing.assert_allclose(rates[:5], [1e-5, 0.025, 0.05, 0.075, 0.1], rtol=1e-15)
    assert (rates[5:] < 0.1).all() if schedule == "cosine" else (rates[5:] == 0.1).all()


def test_restarts_are_twice_as_long_each_time():
    config = OptimizerConfig(schedule="cosine_restarts", half_period=2, warmup_epochs=0)
    rates = optim.learning_rates(config, 14, 1) / config.learning_rate
    np.testing.assert_array_equal(np.flatnonzero(rates == 1), [0, 2, 6])
    assert (np.diff(rates[6:]) < 0).all()


@given(
    st.sampled_from(("cosine", "constant")),
    st.sampled_from(("constant", "linear")),
    st.integers(0, 5),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_steps_of_one_per_epoch_are_epochs(schedule, warmup, warmup_epochs, epochs, steps):
    config = OptimizerConfig(schedule=schedule, warmup=warmup, warmup_epochs=warmup_epochs)
    rates = optim.learning_rates(config, epochs, steps)
    by_step = dataclasses.replace(config, schedule_by="step")
    np.testing.assert_array_equal(rates[::steps], optim.learning_rates(by_step, epochs, 1))
    np.testing.assert_array_equal(rates, np.repeat(rates[::steps], steps))
    assert ((rates >= 0) & (rates <= config.learning_rate)).all()


STEPS = 50


def problem():
    """Eight values, and gradients that reach from 1e-4 to 10."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=8).astype(np.float32)
    sizes = rng.normal(size=(STEPS, 8))
    gradients = (sizes * 10.0 ** rng.integers(-4, 2, (STEPS, 8))).astype(np.float32)
    return value, gradients, [0.01 * 0.97**step for step in range(STEPS)]


def trajectory(config, values, gradients, rates, factors):
    """What variables of these values and factors become, by compiled steps as in training."""
    variables = {name: Learned(jnp.asarray(v), **factors[name]) for name, v in values.items()}
    gradients = {name: variables[name].replace(array) for name, array in gradients.items()}
    frozen = {"weights": jnp.ones((100, 100)), "bias": jnp.ones(7)}
    optimizer = optim.create(config)

    @jax.jit
    def run(learned, gradients, rates):
        def step(carry, inputs):
            (learned, state), (gradient, rate) = carry, inputs
            parameters = {"learned": learned, "frozen": frozen}
            gradients = {"learned": gradient, "frozen": None}
            updates, state = optimizer.update(gradients, state, parameters, learning_rate=rate)
            assert updates["frozen"] is None
            return (optax.apply_updates(learned, updates["learned"]), state), None

        state = optimizer.init({"learned": learned, "frozen": frozen})
        return jax.lax.scan(step, (learned, state), (gradients, rates))[0]

    rates = jnp.asarray(rates, jnp.float32)
    learned, state = run(nnx.State(variables), nnx.State(gradients), rates)
    assert all(leaf.size < 100 for leaf in jax.tree.leaves(state))  # nothing of what is frozen
    return {name: np.asarray(learned[name][...]) for name in learned}


# What torch.optim makes of `problem` in 50 steps (PyTorch 2.14.1, CPU, foreach=False), alone and
# after torch.nn.utils.clip_grad_norm_(..., 1.0).
CONFIGS = {
    "sgd": OptimizerConfig(momentum=0.9, weight_decay=0.01),
    "adam": OptimizerConfig(name="adam", betas=(0.9, 0.99), epsilon=1e-4, weight_decay=0.01),
    "adam of Dassl": OptimizerConfig(name="adam"),
    "adamw": OptimizerConfig(name="adamw", weight_decay=0.01),
}
PYTORCH = {
    ("sgd", 0.0): "0883a33eb49585bfdfb64840cf0ac5bff4128ebfb424c33f8ea639402bb2093e",
    ("sgd", 1.0): "7f3a403e99e73ebb8276453f155e3ebd44e320bf4c4dd73e9debaa3f01915d3f",
    ("adam", 0.0): "1d5af13d92f610be0f61263ff811b23c84b90fbf7b72c93e758ca23fbb41683f",
    ("adam", 1.0): "e8e0173eea21aabd0c1c253f710dc13c5c2e11bf27a2c03e2ee5a13f87e0633f",
    ("adam of Dassl", 0.0): "5e96213efc5e11be79af263fd222b23c034b11bfeeb5c93edd1fa53fcf6b713f",
    ("adam of Dassl", 1.0): "ff0c403ef950abbdab21263ff945c23c5abb14bf7d25c23ec351a43f6a7b6e3f",
    ("adamw", 0.0): "badd223e2e0c11be63622b3f3209b13c950b11bfa139c93e9167aa3fa2f8703f",
    ("adamw", 1.0): "f8bf413eded9aabd25df2a3f7546c13c339614bfa5bdc13edd81aa3f4c246e3f",
}


@pytest.mark.parametrize(("name", "clip_norm"), PYTORCH)
def test_fifty_steps_are_pytorchs(name, clip_norm):
    value, gradients, rates = problem()
    config = dataclasses.replace(CONFIGS[name], clip_norm=clip_norm)
    got = trajectory(config, {"v": value}, {"v": gradients}, rates, {"v": {}})["v"]
    expected = np.frombuffer(bytes.fromhex(PYTORCH[name, clip_norm]), np.float32)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def numpy_steps(config, value, gradients, rates, decay):
    """PyTorch's formulas for one parameter group, in float64."""
    value, gradients = value.astype(np.float64), gradients.astype(np.float64)
    buffer = first = second = 0.0
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        if config.name == "adamw":
            value = value * (1 - rate * decay)
        else:
            gradient = gradient + decay * value
        if config.name == "sgd":
            buffer = config.momentum * buffer + gradient
            value = value - rate * buffer
            continue
        first = config.betas[0] * first + (1 - config.betas[0]) * gradient
        second = config.betas[1] * second + (1 - config.betas[1]) * gradient**2
        corrections = [1 - beta**step for beta in config.betas]
        root = np.sqrt(second) / np.sqrt(corrections[1]) + config.epsilon
        value = value - rate / corrections[0] * first / root
    return value


@pytest.mark.parametrize("name", CONFIGS)
def test_factors_of_variables_are_pytorchs_parameter_groups(name):
    value, gradients, rates = problem()
    rates[:3] = [1e-5] * 3  # the warm-up, which is that of all groups in Dassl
    config = dataclasses.replace(CONFIGS[name], clip_norm=20.0)
    factors = {"plain": {}, "fast": {"rate": 6.5}, "free": {"rate": 0.1, "decay": 0.0}}
    factors["heavy"] = {"decay": 3.0}
    learned = {key: value * (1 + i) for i, key in enumerate(factors)}
    slopes = {key: gradients * (1 - 0.2 * i) for i, key in enumerate(factors)}
    got = trajectory(config, learned, slopes, rates, factors)
    norms = np.sqrt(sum((slope.astype(np.float64) ** 2).sum(axis=1) for slope in slopes.values()))
    assert (norms > 20).any() and (norms < 20).any()
    shares = np.minimum(20 / (norms + 1e-6), 1)[:, None]
    for key, factor in factors.items():
        own = [*rates[:3], *(factor.get("rate", 1.0) * rate for rate in rates[3:])]
        decay = factor.get("decay", 1.0) * config.weight_decay
        expected = numpy_steps(config, learned[key], shares * slopes[key], own, decay)
        np.testing.assert_allclose(got[key], expected, rtol=2e-6, atol=5e-7, err_msg=key)


def test_without_a_warm_up_the_factor_counts_at_every_rate():
    value, gradients, _ = problem()
    config = OptimizerConfig(warmup_epochs=0, momentum=0.0, weight_decay=0.0)
    got = trajectory(config, {"v": value}, {"v": gradients[:1]}, [1e-5], {"v": {"rate": 1000.0}})
    np.testing.assert_allclose(got["v"], value - 1e-2 * gradients[0], rtol=1e-6)


def test_moments_lie_on_the_devices_as_their_variable():
    parameters = {"learned": nnx.State({"v": Learned(jnp.ones(4), shard_axis=0)}), "frozen": {}}
    state = optim.create(OptimizerConfig(name="adamw")).init(parameters)
    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    moments = [leaf for leaf in jax.tree.leaves(state, is_leaf=is_variable) if is_variable(leaf)]
    assert [leaf.get_metadata()["shard_axis"] for leaf in moments] == [0, 0]


def test_a_variable_that_waits_misses_the_steps_that_do_not_depend_on_it():
    """As one that PyTorch gives no gradient to."""
    value, gradients, rates = problem()
    due = np.flatnonzero(np.arange(STEPS) % 3)
    slopes = np.zeros_like(gradients)
    slopes[due] = gradients[due]
    factors = {"waits": {"waits": True}, "goes": {}}
    both = dict.fromkeys(factors, value), dict.fromkeys(factors, slopes)
    got = trajectory(CONFIGS["sgd"], *both, rates, factors)
    alone = {"v": value}, {"v": gradients[due]}, [rates[step] for step in due]
    expected = trajectory(CONFIGS["sgd"], *alone, {"v": {}})["v"]
    np.testing.assert_array_equal(got["waits"], expected)
    assert np.abs(got["goes"] - expected).max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_last_step_without_a_gradient_leaves_alone_what_waits(name):
    value, gradients, rates = problem()
    gradients[-1] = 0
    factors = {"waits": {"waits": True}, "goes": {}}
    both = dict.fromkeys(factors, value), dict.fromkeys(factors, gradients)
    got = trajectory(CONFIGS[name], *both, rates, factors)
    alone = {"v": value}, {"v": gradients[:-1]}, rates[:-1]
    before = trajectory(CONFIGS[name], *alone, {"v": {}})["v"]
    np.testing.assert_allclose(got["waits"], before, rtol=1e-5)
    assert np.abs(got["goes"] / before - 1).min() > 3e-5


def test_an_entry_that_is_zero_is_no_reason_to_wait():
    value, gradients, rates = problem()
    gradients[:, 0] = 0
    alone = {"v": value}, {"v": gradients}
    got = [trajectory(OptimizerConfig(), *alone, rates, {"v": {"waits": w}}) for w in (True, False)]
    np.testing.assert_array_equal(got[0]["v"], got[1]["v"])


@pytest.mark.parametrize("factors", [{}, {"rate": 1.0, "decay": 1.0, "waits": False}])
def test_without_factors_the_steps_are_optaxs(factors):
    config = OptimizerConfig()
    params = nnx.State({"v": Learned(jnp.ones(4), **factors)})
    decay = optax.add_decayed_weights(config.weight_decay)
    plain = optax.chain(decay, optax.trace(config.momentum))

    def expected(gradient, state, params, rate):
        updates, state = plain.update(gradient, state, params)
        return jax.tree.map(lambda update: -rate * update, updates), state

    optimizer = optim.create(config)

    def got(gradient, state, params, rate):
        return optimizer.update(
            {"learned": gradient, "frozen": None},
            state,
            {"learned": params, "frozen": None},
            learning_rate=rate,
        )

    state = optimizer.init({"learned": params, "frozen": None})
    assert str(jax.make_jaxpr(got)(params, state, params, 0.1)) == str(
        jax.make_jaxpr(expected)(params, plain.init(params), params, 0.1)
    )


def test_optimizers_that_differ_in_the_schedule_are_one():
    config = OptimizerConfig()
    others = {"learning_rate": 1.0, "schedule": "constant", "warmup_epochs": 2, "half_period": 3}
    for name, value in others.items():
        assert optim.create(dataclasses.replace(config, **{name: value})) is optim.create(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lion"}, "optimizer.name: expected one of sgd, adam, adamw, got 'lion'"),
        ({"schedule": "step"}, "optimizer.schedule: expected one of cosine"),
        ({"schedule_by": "year"}, "optimizer.schedule_by: expected one of epoch, step"),
        ({"warmup": "cosine"}, "optimizer.warmup: expected one of constant, linear"),
        ({"dtype": "bfloat16"}, "optimizer.dtype: expected one of float32, float16"),
        ({"schedule": "cosine_restarts"}, "optimizer.half_period: expected at least 1"),
        ({"name": "adam", "dtype": "float16"}, "optimizer.dtype: expected float32 with adam"),
        (
            {"clip_norm": 1.0, "dtype": "float16"},
            "optimizer.dtype: expected float32 with clip",
        ),
    ],
)
def test_what_is_no_optimizer_is_refused(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        OptimizerConfig(**changes)
    config = config_module.merged(config_module.default(), {"optimizer": changes})
    with pytest.raises(InputError, match=f"^config.{message.partition(':')[0]}: expected"):
        config_module.check(config)


def test_betas_of_json_are_those_of_python():
    assert OptimizerConfig(betas=[0.9, 0.98]) == OptimizerConfig(betas=(0.9, 0.98))  # type: ignore


def test_frozen_leaves_with_gradients_do_not_move():
    optimizer = optim.create(OptimizerConfig())
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
    rates = optim.learning_rates(config, len(gradients) // 3, 3)
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

    rates = optim.learning_rates(config, len(gradients) // 3, 3)
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
    config = OptimizerConfig(dtype="float16")
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

    config = OptimizerConfig(
        learning_rate=half(0.002),
        weight_decay=half(5e-4),
        warmup_learning_rate=half(1e-5),
        dtype="float16",
    )
    values, buffers = half_trajectory(config, *half_problem(32))
    assert values[-1].tobytes().hex() == value_bits
    assert buffers[-1].tobytes().hex() == buffer_bits


def test_the_last_epochs_round_to_nothing_in_float16():
    config = OptimizerConfig(warmup_epochs=2, warmup_learning_rate=5e-7, dtype="float16")
    value = np.full(4, 0.02, np.float16)
    gradients = np.full((6, 4), 0.1, np.float16)
    values, buffers = half_trajectory(config, value, gradients)
    np.testing.assert_array_equal(values, np.broadcast_to(value, values.shape))
    assert (np.diff(buffers, axis=0) > 0).all()


def test_float32_variables_are_the_default():
    assert optim.dtype_of(optim.create(OptimizerConfig())) == jnp.float32
