"""TFUP and TFUP-T on given features of unlabelled images (reference methods_heads.md)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax import methods, optim
from coop_jax.clip import unit
from coop_jax.methods import Data, Images, unlabeled
from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    given_case,
    relative,
    set_value,
    split,
    trajectory,
)

CLOSE = 1e-5
"""The tolerance of caches and trajectories, relative to their norm."""

BY_ADAM = 3e-5
"""That of Adam, which divides the smallest gradients by themselves."""


def method_of(case: Case, name: str, **settings: Any) -> Any:
    """Return one of the methods with the settings of a case."""
    texts, cfg = case["text_features"], case.meta["cfg"]["TRAINER"]["TFUP"]
    recorded = {
        "cache_shots": case.meta["cache_shots"],
        "alpha": float(cfg["alpha"]),
        "beta": float(cfg["beta"]),
    }
    given = given_case(case, len(texts), texts, float(case.meta["logit_scale"]))
    return methods.create(name, settings=recorded | settings, **given)


def data_of(case: Case) -> Data:
    """Return the test images as unlabelled ones, with their augmented views if there are any."""
    plain, none = Images(features=case["test_features"]), -np.ones(len(case["test_features"]))
    views = Images(features=case["train_views"]) if "train_views" in case else None
    return Data(split(np.zeros(0), plain), unlabeled=split(none, plain, views))


def compare_cache(case: Case, method: Any) -> None:
    """Compare which images are in the cache, in which order, and their classes."""
    features, shots = case["test_features"], case.meta["cache_shots"]
    chosen = unlabeled.representative(features, method.bank[...], shots)
    np.testing.assert_array_equal(chosen.places, case["cache_indices"])
    np.testing.assert_array_equal(method.labels[...], case["cache_labels"])
    keys = unit(jnp.asarray(features[case["cache_indices"]]))
    assert relative(method.keys[...], keys) < CLOSE


@checks("TFUP")
def tfup(case: Case) -> None:
    """Compare the cache, what the warm-up of TFUP-T would see, and logits with and without."""
    method, images = method_of(case, "tfup"), Images(features=case["test_features"])
    compare_logits(case, method, images, "zeroshot_logits")
    method.prepare(case.clip, 0, data_of(case))
    compare_cache(case, method)
    features, bank = jnp.asarray(images.features), method.bank[...]
    similar = unlabeled.alike(features, method.keys[...], bank)
    assert relative(similar, case["sim"]) < CLOSE
    cached = method.with_cache(case.clip, features, bank) - case.clip.logits(features, bank)
    assert relative(cached, method.alpha * case["cache_logits"]) < 1e-4
    compare_logits(case, method, images)

    trained = method_of(case, "tfup_t", training_shots=case.meta["training_shots"])
    trained.build("TFUP-T", data_of(case))
    chosen = trained.of_warm_up(case.clip, case["test_features"])
    np.testing.assert_array_equal(chosen.places, case["refine_indices"])
    np.testing.assert_array_equal(chosen.labels, case["refine_pseudo_labels"])


LEARNED = {
    "text_res": Parameter("residual"),
    "fc.0.weight": Parameter("down", transposed=True),
    "fc.2.weight": Parameter("up", transposed=True),
}


@checks("TFUP-T")
def tfup_t(case: Case) -> None:
    """Compare the trajectory of both stages, and the logits at its end.

    The official optimizer and its cosine go through both stages without a break.
    """
    meta, cfg = case.meta, case.meta["cfg"]["TRAINER"]["TFUP"]
    count, warm = len(case["test_features"]), int(case["warmup_steps"])
    method = method_of(
        case,
        "tfup_t",
        training_shots=meta["training_shots"],
        warm_up=meta["cfg"]["OPTIM"]["WARMUP_EPOCH"],
        text_ratio=float(cfg["ratio_beta"]),
        image_ratio=float(cfg["ratio_alpha"]),
        confidence=meta["confidence"],
        marginal=meta["marginal_weight"],
        reduction=case["test_features"].shape[1] // case["init/fc.0.weight"].shape[0],
    )
    data = data_of(case)
    pool = method.prepare(case.clip, 0, data).train
    compare_cache(case, method)
    rest = method.prepare(case.clip, 1, data).train
    chosen = method.of_warm_up(case.clip, case["test_features"])

    # The images of the warm-up stand in front of all others, which have no labels.
    first = dict(zip(chosen.places.tolist(), range(len(pool)), strict=True))
    order = np.array(case["order"])
    inside = np.vectorize(lambda place: first.get(place, 0))(order[:warm])
    used = order[:warm] >= 0
    pseudo = case["batch_pseudo_labels"][:warm]
    np.testing.assert_array_equal(pool.labels[inside][used], pseudo[used])
    order[:warm] = np.where(used, inside, -1)
    order[warm:] = np.where(order[warm:] >= 0, order[warm:] + len(pool), -1)
    case.arrays |= {"order": order, "train_labels": np.append(pool.labels, rest.labels)}

    def images_of(requests: np.ndarray) -> Images:
        steps, places = requests.T
        plain = chosen.places[np.minimum(places, len(pool) - 1)]
        plain = np.where(places < len(pool), plain, places - len(pool))
        wanted = np.stack([case["order_view"][steps], plain], axis=1)
        made = rest.encode(wanted, True).features
        assert made.shape == (len(places), 2, case["test_features"].shape[1])
        return Images(features=made)

    assert len(rest) == count
    recipe = methods.recipe("tfup_t")
    optimizer = recipe["optimizer"] | {"learning_rate": meta["cfg"]["OPTIM"]["LR"]}
    _, stage = method.stages(recipe | {"optimizer": optimizer})
    per_epoch = warm // meta["cfg"]["OPTIM"]["WARMUP_EPOCH"]
    half_period = meta["cfg"]["OPTIM"]["MAX_EPOCH"] * per_epoch
    wave = dataclasses.replace(stage.optimizer, half_period=half_period)
    rates = optim.learning_rates(wave, len(order), 1)
    np.testing.assert_allclose(rates, case["lr"], rtol=1e-6)
    trajectory(
        case, method, LEARNED, stage, images_of, epochs=len(order), rates=rates, tolerance=BY_ADAM
    )
    images = Images(features=case["test_features"])
    compare_logits(case, method, images)
    texts = method.texts(case.clip, None)
    adapted = method.adapted(case["test_features"])
    cached = method.with_cache(case.clip, adapted, texts)
    assert relative(cached, case["eval_logits_with_cache"]) < 1e-4
    for name, best in case.under("best").items():
        set_value(method, LEARNED[name], best)
    logits = method.logits(case.clip, method.texts(case.clip, None), images)
    right = np.argmax(logits, axis=1) == case["test_labels"]
    np.testing.assert_allclose(100 * right.mean(), case["best_acc"], rtol=1e-6)
