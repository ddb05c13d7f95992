"""Heads, caches and closed forms on given features (reference methods_heads.md)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.methods import Data, Images, Stage
from coop_jax.methods.gda import Classifier, estimated, synthesized
from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    given_case,
    relative,
    split,
    trajectory,
)

CLOSED = 1e-5
"""The tolerance of caches and closed forms, relative to their norm."""


def given_data(case: Case) -> Data:
    """Return the recorded training and validation features as `prepare` sees them."""
    views = case["train_features"]
    train = split(case["train_labels"], Images(features=views[0]), Images(features=views))
    return Data(train, split(case["val_labels"], Images(features=case["val_features"])))


def recorded_images(case: Case, suffix: str = "") -> Images:
    """Return the recorded test features."""
    return Images(features=case[f"test_features{suffix}"])


def tip_method(case: Case, name: str, **settings: Any) -> Any:
    """Return one of the Tip-Adapters with the settings of a case."""
    texts, cfg = case["text_weights"], case.meta["cfg"]
    recorded = {
        "augmented_passes": cfg["augment_epoch"],
        "alpha": cfg["init_alpha"],
        "beta": cfg["init_beta"],
        "beta_scale": cfg["search_scale"][0],
        "alpha_scale": cfg["search_scale"][1],
        "beta_steps": cfg["search_step"][0],
        "alpha_steps": cfg["search_step"][1],
        "search": cfg["search_hp"],
    }
    given = given_case(case, len(texts), texts, case.meta["logit_scale"])
    return methods.create(name, settings=recorded | settings, **given)


def compare_search(case: Case, method: Any, data: Data) -> None:
    """Compare the whole grid, and what was chosen of it."""
    grid = method.grid(case.clip, data.val)
    np.testing.assert_allclose(grid.betas, case["beta_list"], rtol=1e-12)
    np.testing.assert_allclose(grid.alphas, case["alpha_list"], rtol=1e-12)
    np.testing.assert_allclose(grid.accuracy, case["grid_val_acc"], rtol=1e-12)
    np.testing.assert_allclose(method.beta[...], case["best_beta"], rtol=1e-6)
    np.testing.assert_allclose(method.alpha[...], case["best_alpha"], rtol=1e-6)


def compare_values(case: Case, method: Any) -> None:
    """Compare the classes of the keys with the recorded one-hot rows."""
    np.testing.assert_array_equal(np.eye(len(method.number))[method.labels[...]], case["values"])


@checks("Tip-Adapter")
def tip_adapter(case: Case) -> None:
    """Compare the cache, the whole search, and logits with and without the cache."""
    method, data = tip_method(case, "tip_adapter"), given_data(case)
    compare_logits(case, method, recorded_images(case), "zeroshot_logits")
    method.prepare(case.clip, 0, data)
    assert relative(method.keys[...], case["keys"]) < CLOSED
    compare_values(case, method)
    compare_search(case, method, data)
    compare_logits(case, method, recorded_images(case))


@checks("Tip-Adapter-F")
def tip_adapter_f(case: Case) -> None:
    """Compare the trajectory, logits at its end, and the search with the keys of the best epoch."""
    method, data, cfg = tip_method(case, "tip_adapter_f"), given_data(case), case.meta["cfg"]
    recipe = methods.recipe("tip_adapter_f")["optimizer"]
    config = {
        "epochs": cfg["train_epoch"],
        "batch_size": case.meta["batch_size"],
        "optimizer": recipe | {"learning_rate": cfg["lr"]},
    }
    stage: Stage = method.stages(config)[0]
    data = method.prepare(case.clip, 0, data)
    assert relative(method.keys[...], case["init/keys"]) < CLOSED
    compare_values(case, method)

    views = case["train_features"]

    def images_of(requests: np.ndarray) -> Images:
        return Images(features=views[case["order_view"][requests[:, 0]], requests[:, 1]])

    keys = {"keys": Parameter("keys")}
    trajectory(case, method, keys, stage, images_of, epochs=cfg["train_epoch"], tolerance=CLOSED)
    compare_logits(case, method, recorded_images(case), "eval_logits_final_init_hp")

    method.keys[...] = jnp.asarray(case["best_keys"])
    compare_logits(case, method, recorded_images(case), "eval_logits_best_init_hp")
    method.prepare(case.clip, 1, data)
    compare_search(case, method, data)
    compare_logits(case, method, recorded_images(case))


def gda_method(case: Case, texts: np.ndarray, classes: Classes, estimator: str) -> Any:
    """Return GDA with the settings of a case, for classes with these text features."""
    cfg = case.meta["cfg"]
    settings = {
        "augmented_passes": cfg["augment_epoch"],
        "estimator": estimator,
        "alphas": tuple(case["alpha_list"].tolist()),
    }
    settings |= {"nearest": cfg["k"]} if "k" in cfg else {}
    settings |= {"text_repeats": cfg["text_repeats"]} if "text_repeats" in cfg else {}
    given = given_case(case, len(texts), texts, case.meta["logit_scale"])
    given["classes"] = classes
    return methods.create("gda", settings=settings, **given)


def numbered(*labels: int) -> Classes:
    """Return classes by number."""
    return Classes(tuple(f"class {label}" for label in labels))


def compare_discriminants(case: Case, classifier: Classifier, suffix: str = "") -> None:
    """Compare what is affine in the image features."""
    assert relative(np.asarray(classifier.weight).T, case[f"W{suffix}"]) < CLOSED
    assert relative(classifier.bias, case[f"b{suffix}"]) < CLOSED


def compare_alphas(case: Case, method: Any, data: Data) -> None:
    """Compare the accuracy at every alpha, and which was chosen."""
    accuracies = method.accuracies(case.clip, data.val)
    np.testing.assert_allclose(accuracies, case["grid_val_acc"], rtol=1e-12)
    np.testing.assert_allclose(method.alpha[...], case["best_alpha"], rtol=1e-6)


def base_estimate(case: Case, *, shrinks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and the precision that are estimated from the recorded features."""
    views = case["train_features"].astype(np.float64)
    views /= np.linalg.norm(views, axis=-1, keepdims=True)
    labels = np.tile(case["train_labels"], len(views))
    flat = views.reshape(-1, views.shape[-1])
    return estimated(flat, labels, len(case["text_weights"]), shrinks=shrinks)


@checks("GDA (few-shot)")
def gda(case: Case) -> None:
    """Compare the Gaussians, the discriminants, the search and the logits."""
    texts, data = case["text_weights"], given_data(case)
    means, precision = base_estimate(case, shrinks=True)
    assert relative(means, case["mus"]) < CLOSED
    assert relative(precision, case["precision"]) < CLOSED

    method = gda_method(case, texts, numbered(*range(len(texts))), "few_shot")
    method.prepare(case.clip, 0, data)
    compare_discriminants(case, method.texts(case.clip, None))
    compare_alphas(case, method, data)
    compare_logits(case, method, recorded_images(case))


@checks("GDA (base-to-new)")
def gda_base_to_new(case: Case) -> None:
    """Compare both estimators and logits, of the base classes and, after the move, of the new."""
    texts, new_texts = case["text_weights"], case["text_weights_new"]
    means, precision = base_estimate(case, shrinks=False)
    assert relative(means, case["mus"]) < CLOSED
    assert relative(np.linalg.inv(precision), case["cov_mean"]) < CLOSED

    base, data = numbered(*range(len(texts))), given_data(case)
    method = gda_method(case, texts, base, "base_to_new")
    method.prepare(case.clip, 0, data)
    compare_discriminants(case, method.texts(case.clip, None))
    compare_alphas(case, method, data)
    compare_logits(case, method, recorded_images(case), "base_eval_logits")

    cfg, new = case.meta["cfg"], numbered(*range(len(texts), len(texts) + len(new_texts)))
    new = new.moved_from(base)
    assert not any(new.seen)
    mu, inverse = synthesized(
        jnp.asarray(new_texts), method.features[...], cfg["k"], cfg["text_repeats"]
    )
    assert relative(mu, case["mu_new"]) < CLOSED
    assert relative(inverse, case["precision_new"]) < CLOSED

    moved = methods.move(method, gda_method(case, new_texts, new, "base_to_new"), base, new)
    compare_discriminants(case, moved.texts(case.clip, None), "_new")
    compare_logits(case, moved, recorded_images(case, "_new"), "eval_logits_new")
