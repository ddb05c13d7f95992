"""TransCLIP on given features (reference methods_heads.md)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import methods
from coop_jax.clip import unit
from coop_jax.methods import Data, Images, transclip
from recorded.case import Case, checks, given_case, relative, split

CLOSE = 1e-5
"""The tolerance, relative to the norm."""


def data_of(case: Case) -> Data:
    """Return the test images as unlabelled ones, beside shots and validation images if any."""
    test, none = Images(features=case["test_features"]), -np.ones(len(case["test_features"]))
    unlabelled = split(none, test)
    if "train_features" not in case:
        return Data(unlabelled, unlabeled=unlabelled)
    train = split(case["train_labels"], Images(features=case["train_features"][0]))
    val = split(case["val_labels"], Images(features=case["val_features"]))
    return Data(train, val, unlabelled)


def method_of(case: Case, **settings: Any) -> Any:
    """Return TransCLIP with the settings of a case, in which the shots have the released rows."""
    few_shot = case.meta["few_shot"]
    settings |= {"few_shot": few_shot, "as_released": few_shot}
    settings["neighbours"] = case.meta["neighbours"]
    if few_shot:
        settings["gammas"] = tuple(case["gamma_list"].tolist())
    texts = case["initial_prototypes" if "initial_prototypes" in case else "text_weights"]
    given = given_case(case, len(texts), texts, float(case.meta.get("logit_scale", 100.0)))
    return methods.create("transclip", settings=settings, **given)


def compare(solution: transclip.Solution, case: Case, *names: str) -> None:
    """Compare parts of a solution with what is recorded by these names; "" is not compared."""
    for got, name in zip(solution, names, strict=True):
        if name:
            assert relative(got, case[name]) < CLOSE, name


@checks("TransCLIP")
def check_transclip(case: Case) -> None:
    """Compare the beginning, two rounds, every solution, and what a method keeps of it."""
    method, data = method_of(case), data_of(case)
    features = unit(jnp.asarray(case["test_features"]))
    shots = method.shots(data) if case.meta["few_shot"] else None
    on_top = "initial_predictions" in case
    if on_top:
        predictions = jnp.log(jnp.asarray(case["initial_predictions"]))
    else:
        logits = case.clip.logits(features, method.bank[...])
        predictions = jax.nn.log_softmax(logits, axis=-1)
        assert relative(jnp.exp(predictions), case["init/y_hat"]) < CLOSE
        assert method.text_weight == case["lambda"]
    begin = transclip.initial(features, predictions, shots)
    compare(begin, case, "", "init/mu", "")
    compare_neighbours(case, features, shots)

    def solutions(rounds: int = transclip.ROUNDS) -> list[transclip.Solution]:
        return transclip.solve(
            features,
            predictions,
            shots,
            text_weight=method.text_weight,
            gammas=method.gammas,
            neighbours=method.neighbours,
            rounds=rounds,
            as_released=method.as_released,
            overwrites=on_top,
        )

    compare(solutions(0)[0], case, "z_iter0", "", "")
    first, final = ("mu_iter0", "var_iter0"), ("mu_final", "var_final")
    compare(solutions(1)[0], case, "z_iter1", *(("", "") if on_top else first))
    found = solutions()
    compare(found[-1], case, "eval_z", *(final if on_top else ("", "")))
    if on_top:
        compare(found[-1], case, "y_hat_after_run", "", "")
        return
    for number, solution in enumerate(found):
        for got, name in zip(solution, ("z", "mu", "var"), strict=True):
            assert relative(got, case[f"{name}_per_gamma"][number]) < CLOSE, (name, number)
    method.prepare(case.clip, 0, data)
    np.testing.assert_array_equal(method.means[...], found[-1].means)
    np.testing.assert_array_equal(method.variance[...], found[-1].variance)
    compare_accuracies(case, found)


def compare_neighbours(case: Case, features: jax.Array, shots: Any) -> None:
    """Compare who are neighbours of whom, and how near."""
    if "affinity_rows" not in case:
        return
    support = None if shots is None else shots.features
    near = transclip.nearest(features, support, case.meta["neighbours"], True)
    expected, got = np.zeros((2, len(near.places), len(features)))
    expected[case["affinity_rows"], case["affinity_cols"]] = case["affinity_values"]
    got[np.arange(len(got))[:, None], np.asarray(near.places)] = near.cosines
    np.testing.assert_array_equal(got != 0, expected != 0)
    assert relative(got, expected) < CLOSE


def compare_accuracies(case: Case, found: list[transclip.Solution]) -> None:
    """Compare what is right of test images, and of validation images by their nearest."""
    predicted = [np.argmax(solution.assignments, axis=1) for solution in found]
    right = [100 * np.mean(labels == case["test_labels"]) for labels in predicted]
    if "test_acc" in case:
        np.testing.assert_allclose(right[-1], case["test_acc"], rtol=1e-6)
    if "val_features" not in case:
        return
    np.testing.assert_allclose(right, case["test_acc_per_gamma"], rtol=1e-6)
    val, test = (unit(jnp.asarray(case[f"{name}_features"])) for name in ("val", "test"))
    places = transclip.nearest_of(val, test)
    np.testing.assert_array_equal(places, case["val_nearest_query"])
    of_val = [100 * np.mean(labels[places] == case["val_labels"]) for labels in predicted]
    np.testing.assert_allclose(of_val, case["val_acc_per_gamma"], rtol=1e-6)
    np.testing.assert_allclose(max(of_val), case["best_val_acc"], rtol=1e-6)
