"""TIP-X of SuS-X on given features (reference methods_more.md)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax import methods
from coop_jax.methods import Data, Images, tip_x
from recorded.case import Case, checks, given_case, relative, split

BLOCK = 100
"""The official code leaves the divergences of images behind the last whole block zero."""

TIED = 1e-3
"""The share of cells that may differ by an image, which is as near to two classes."""


def released(compared: tip_x.Compared) -> tip_x.Compared:
    """Return divergences as they were released, zero behind the last whole block."""
    whole = len(compared.divergences) // BLOCK * BLOCK
    return compared._replace(divergences=compared.divergences.at[whole:].set(0))


@checks("susx_tipx")
def check_tip_x(case: Case) -> None:
    """Compare divergences, the whole grid, what is chosen, and the logits of the test images.

    The official code stretches the divergences of test images from the span of these, to the span
    of the validation images' cosines.
    """
    texts = case["text_weights"]
    settings: dict[str, Any] = {"temperature": case.meta["args"]["temperature"]}
    given = given_case(case, len(texts), texts)
    method = methods.create("tip_x", settings=settings, **given)
    train = split(case["support_labels"], Images(features=case["support_features"]))
    val = split(case["val_labels"], Images(features=case["val_features"]))
    method.prepare(case.clip, 0, Data(train, val))
    bank, test = method.bank[...], jnp.asarray(case["test_features"])
    of_val, of_test = (
        released(method.compared(case.clip, bank, jnp.asarray(features)))
        for features in (case["val_features"], test)
    )
    # Computed in float64 they are 8e-6 from the recorded ones, which are of small differences.
    assert relative(of_val.divergences, case["kl_val"]) < 3e-5
    assert relative(of_test.divergences, case["kl_test"]) < 3e-5
    assert relative(of_test.zero_shot, case["zeroshot_logits"]) < 3e-5

    values = (jnp.asarray(each, jnp.float32) for each in method.values)
    labels = jnp.asarray(case["val_labels"], jnp.int32)
    correct = np.asarray(tip_x.count_right(of_val, method.one_hot(), labels, *values))
    recorded = case["grid_val_correct"]
    apart = np.abs(correct - recorded)
    assert apart.max() <= 1 and np.mean(apart > 0) < TIED
    place = np.unravel_index(np.argmax(recorded), recorded.shape)
    chosen = [each[at] for each, at in zip(method.values, place, strict=True)]
    expected = [case[f"best_{name}"] for name in ("alpha", "beta", "gamma")]
    np.testing.assert_allclose(chosen, expected, rtol=1e-6)
    assert np.unravel_index(np.argmax(correct), correct.shape) == place
    if len(val) % BLOCK == 0:
        np.testing.assert_allclose(method.weights[...], expected, rtol=1e-6)

    spans = jnp.append(tip_x.spans_of(of_test)[:2], tip_x.spans_of(of_val)[2:])
    weights = jnp.asarray(chosen, jnp.float32)
    logits = tip_x.combined(of_test, method.one_hot(), spans, weights)
    assert relative(logits, case["eval_logits"]) < 3e-5
    right = np.argmax(logits, axis=1) == case["test_labels"]
    assert right.sum() == case["test_correct"]

    method.spans[...], method.weights[...] = spans, weights
    whole = len(test) // BLOCK * BLOCK
    own = method.logits(case.clip, bank, Images(features=test[:whole]))
    assert relative(own, case["eval_logits"][:whole]) < 3e-5
