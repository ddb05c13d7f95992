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


def test_the_rate_changes_between_epochs_only():
    schedule = optim.schedule(optim.OptimizerConfig(), 5, 3)
    rates = np.asarray(schedule(jnp.arange(15))).reshape(5, 3)
    assert (rates == rates[:, :1]).all()
    np.testing.assert_allclose(
        rates[:, 0], optim.epoch_learning_rates(optim.OptimizerConfig(), 5), rtol=1e-7
    )


def test_updates_are_pytorchs_sgd():
    config = optim.OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = optim.create(config, 3, 2)
    rates = np.repeat(optim.epoch_learning_rates(config, 3), 2)
    rng = np.random.default_rng(0)
    parameter = rng.normal(size=4)
    value = jnp.asarray(parameter, jnp.float32)
    frozen = {"weights": jnp.ones((100, 100)), "bias": jnp.ones(7)}
    state = optimizer.init({"learned": value, "frozen": frozen})
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(4,), ()]  # momentum, step count
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
        )
        assert updates["frozen"] is None
        value = optax.apply_updates(value, updates["learned"])
    np.testing.assert_allclose(value, parameter, rtol=1e-5)


def test_frozen_leaves_with_gradients_do_not_move():
    optimizer = optim.create(optim.OptimizerConfig(learning_rate=1.0), 3, 1)
    parameters = {"learned": jnp.ones(2), "frozen": jnp.ones(3)}
    state = optimizer.init(parameters)
    updates, _ = optimizer.update(parameters, state, parameters)
    assert (updates["learned"] != 0).all() and (updates["frozen"] == 0).all()
