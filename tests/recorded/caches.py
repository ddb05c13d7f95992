"""APE, APE-T, ProKeR, cross-modal adaptation and LFA on given features (methods_heads.md)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import methods, optim
from coop_jax.methods import Data, Images, alignment, ape, ape_t, channels, lfa, mixed, proker
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
from recorded.heads import CLOSED, compare_search, given_data, numbered, recorded_images
from recorded.linear_heads import BY_ADAM

TRAINED = 1e-4
"""That of heads without normalisation, whose logits are multiplied by 100."""


def ape_method(case: Case, name: str, **settings: Any) -> Any:
    """Return APE or APE-T with the settings of a case."""
    texts, cfg = case["text_weights"], case.meta["cfg"]
    weights = cfg["w_training_free" if name == "ape" else "w_training"]
    recorded = {
        "augmented_passes": len(case["train_features"]),
        "alpha": float(cfg["init_alpha"]),
        "beta": float(cfg["init_beta"]),
        "beta_scale": float(cfg["search_scale"][0]),
        "alpha_scale": float(cfg["search_scale"][1]),
        "beta_steps": cfg["search_step"][0],
        "alpha_steps": cfg["search_step"][1],
        "channels": cfg["training_free_feat_num" if name == "ape" else "training_feat_num"],
        "similarity_weight": weights[0],
        "variance_weight": weights[1],
    }
    given = given_case(case, len(texts), texts, case.meta["logit_scale"])
    return methods.create(name, settings=recorded | settings, **given)


@checks("APE")
def ape_case(case: Case) -> None:
    """Compare keys, channels, weights of keys, the whole search, and logits."""
    cfg, data = case.meta["cfg"], given_data(case)
    gammas = {
        "gamma": cfg["init_gamma"],
        "gamma_scale": float(cfg["search_scale"][2]),
        "gamma_steps": cfg["search_step"][2],
    }
    method: ape.Method = ape_method(case, "ape", **gammas)
    method.build(data)
    assert relative(method.keys[...], case["keys"]) < CLOSED
    found = channels.scores(
        np.asarray(method.classifier[...]),
        np.asarray(method.keys[...]),
        data.train.labels,
        method.parts,
    )
    assert relative(found.similarity, case["sim"]) < CLOSED
    assert relative(found.criterion, case["criterion"]) < CLOSED
    np.testing.assert_array_equal(method.channels[...], case["indices"])
    assert relative(method.divergence[...], case["cache_div"]) < CLOSED

    grid = method.whole_grid(case.clip, data.val)
    np.testing.assert_allclose(grid.betas, case["beta_list"], rtol=1e-12)
    np.testing.assert_allclose(grid.alphas, case["alpha_list"], rtol=1e-12)
    np.testing.assert_allclose(grid.gammas, case["gamma_list"], rtol=1e-12)
    np.testing.assert_allclose(grid.accuracy, case["grid_val_acc"], rtol=1e-12)
    method.prepare(case.clip, 0, data)
    for name in ("alpha", "beta", "gamma"):
        np.testing.assert_allclose(getattr(method, name)[...], case[f"best_{name}"], rtol=1e-6)
    compare_logits(case, method, recorded_images(case))


@checks("APE-T")
def ape_t_case(case: Case) -> None:
    """Compare channels, the trajectory, and the search with what the best epoch learned."""
    method: ape_t.Method = ape_method(case, "ape_t")
    data, cfg = given_data(case), case.meta["cfg"]
    optimizer = {"learning_rate": cfg["lr"], "epsilon": cfg["eps"]}
    config = {
        "epochs": cfg["train_epoch"],
        "batch_size": case.meta["batch_size"],
        "optimizer": methods.recipe("ape_t")["optimizer"] | optimizer,
    }
    stage = method.stages(config)[0]
    method.prepare(case.clip, 0, data)
    texts = np.asarray(method.classifier[...])
    found = channels.scores(texts, texts[:0], data.train.labels[:0], method.parts)
    assert relative(found.similarity, case["sim_text_only"]) < CLOSED
    assert relative(found.criterion, case["criterion_text_only"]) < CLOSED
    np.testing.assert_array_equal(method.channels[...], case["indices"])

    def images_of(requests: np.ndarray) -> Images:
        views = case["order_view"][requests[:, 0]]
        return Images(features=case["train_features"][views, requests[:, 1]])

    for name in [name for name in case.arrays if name.endswith("/value_weights")]:
        case.arrays[name] = case[name][:, 0]
    places = {"res": Parameter("residual"), "value_weights": Parameter("factors")}
    trajectory(case, method, places, stage, images_of, epochs=cfg["train_epoch"], tolerance=BY_ADAM)
    method.residual[...], method.factors[...] = (
        jnp.asarray(case[f"best/{name}"]) for name in ("res", "value_weights")
    )
    method.prepare(case.clip, 1, data)
    compare_search(case, method, data)
    compare_logits(case, method, recorded_images(case))


@checks("ProKeR")
def proker_case(case: Case) -> None:
    """Compare the kernel, the whole search, what is fitted, and logits."""
    texts, views = case["text_weights"], case["train_features"]
    settings = {"augmented_passes": len(views)}
    for name, recorded in (("beta", "beta"), ("ridge", "lmbda")):
        first, last, steps = case.meta[recorded]
        settings |= {f"{name}s": (float(first), float(last)), f"{name}_steps": steps}
    given = given_case(case, len(texts), texts)
    method: proker.Method = methods.create("proker", settings=settings, **given)
    data = given_data(case)
    method.prepare(case.clip, 0, data)
    np.testing.assert_allclose(method.beta[...], case["best_beta"], rtol=1e-6)
    np.testing.assert_allclose(method.ridge[...], case["best_lmbda"], rtol=1e-6)

    keys, classifier = np.asarray(method.keys[...]), method.texts(case.clip, None)
    labels = np.tile(case["train_labels"], len(views))
    problem = proker.Problem.of(keys, labels, texts)
    own = np.eye(len(texts))[labels]
    assert relative(own - problem.missed, case["text_logits_train"]) < CLOSED
    near = proker.kernel(problem.keys @ problem.keys.T, float(method.beta[...]))
    assert relative(near, case["K_SS"]) < CLOSED
    assert relative(classifier.coefficients.T, case["alpha"]) < CLOSED
    grid = method.grid(problem, data.val)
    np.testing.assert_allclose(grid.betas, case["beta_list"], rtol=1e-6)
    np.testing.assert_allclose(grid.ridges, case["lmbda_list"], rtol=1e-6)
    np.testing.assert_allclose(grid.accuracy, case["grid_val_acc"], rtol=1e-12)
    compare_logits(case, method, recorded_images(case))


@checks("Cross-modal adaptation")
def cross_modal_case(case: Case) -> None:
    """Compare the first layer, every step, what is best on validation images, and the logits."""
    meta, views, labels = case.meta, case["train_features"], case["text_labels"]
    classes = int(labels.max()) + 1
    by_class = np.argsort(labels, kind="stable")
    sentences = case["text_features"][by_class]
    texts = sentences.reshape(classes, -1, views.shape[-1]).swapaxes(0, 1)
    np.testing.assert_array_equal(labels[by_class], np.repeat(np.arange(classes), len(texts)))
    adapts = meta["head"] == "adapter"
    settings: dict[str, Any] = {
        "start": {"zeroshot": "texts", "random": "random"}[meta["init"]],
        "augmented_passes": len(views) - 1,
        "steps": meta["iters"],
        "every": meta["eval_freq"],
        "rates": (float(meta["lr"]),),
        "decays": (float(meta["weight_decay"]),),
        "batch_sizes": (meta["batch_size"],),
    }
    settings |= {"ratio": meta["residual_ratio"]} if adapts else {}
    given = given_case(case, classes, texts[0], np.exp(meta["log_logit_scale"])) | {"texts": texts}
    name = "cross_modal_adapter" if adapts else "cross_modal"
    method, wise = (
        methods.create(name, settings=settings | {"wise": weight}, **given) for weight in (0.0, 0.5)
    )
    set_head(method, case.under("init"))
    assert relative(method.zero_shot(), case["zero_shot_weights"]) < CLOSED

    train = Images(features=views[0])
    data = given_data(case)
    data = data._replace(train=split(data.train.labels, train, Images(features=views[1:])))
    samples, val = method.samples(data), data.val.images().features
    assert relative(samples[0].features, unit_rows(views)) < CLOSED
    val = mixed.Samples(unit_rows(val), data.val.labels)
    orders = case["order_image"], np.argsort(by_class)[case["order_text"]]
    config = optim.OptimizerConfig(learning_rate=meta["lr"], **mixed.SCHEDULE)
    rates = optim.learning_rates(config, meta["iters"], 1)
    np.testing.assert_allclose(rates, case["lr"], rtol=1e-6)

    def fitted(steps: int) -> mixed.Fit:
        some = [order[:steps] for order in orders]
        decay = settings["decays"][0]
        return method.fitted(case.clip, samples, val, some, rates[:steps], decay)

    for group, steps in (("step1", 1), ("mid", meta["iters"] // 2 + 1), ("final", meta["iters"])):
        fit = fitted(steps)
        compare_head(case, fit.last, group)
    most = np.max(case["loss"])
    np.testing.assert_allclose(fit.losses, case["loss"], rtol=TRAINED, atol=most * CLOSED)
    compare_head(case, fit.best, "best")
    np.testing.assert_allclose(fit.accuracy, case["best_val_acc"], rtol=1e-6)
    np.testing.assert_allclose(case["best_val_acc"], case["val_acc_at_eval"].max())
    for made, logits in ((method, "eval_logits"), (wise, "eval_logits_wiseft_0.5")):
        set_head(made, case.under("best"))
        compare_logits(case, made, recorded_images(case), logits)
    zero_shot = case.clip.logits(jnp.asarray(case["test_features"]), method.zero_shot())
    assert relative(zero_shot, case["zeroshot_logits"]) < 1e-4


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Return features at length one, as rows."""
    rows = features.reshape(-1, features.shape[-1])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


HEAD = {"weight": "weight", "adapter.fc.0.weight": "down", "adapter.fc.2.weight": "up"}
"""Recorded names of what a head has here, matrices of the adapter being transposed."""


def of_head(name: str, value: np.ndarray) -> np.ndarray:
    """Return a recorded matrix as it is here."""
    return value if name == "weight" else value.T


def set_head(method: mixed.Method, recorded: dict[str, np.ndarray]) -> None:
    """Set what is kept to a recorded group."""
    for name, value in recorded.items():
        getattr(method, HEAD[name])[...] = jnp.asarray(of_head(name, value))


def compare_head(case: Case, head: mixed.Head, group: str) -> None:
    """Compare a head with a recorded group."""
    for name, value in case.under(group).items():
        assert relative(getattr(head, HEAD[name]), of_head(name, value)) < TRAINED, (group, name)


@checks("LFA")
def lfa_case(case: Case) -> None:
    """Compare the closed form, the cross-validation, every step, and the cosines."""
    cfg, texts = case.meta["cfg"], case["text_weights"]
    views_each = 5 if cfg["five_crop"] else 1
    # Of five rows the last is the image itself, which comes first here.
    rows = case["train_features"].reshape(-1, views_each, texts.shape[1])
    views = np.roll(rows.swapaxes(0, 1), 1, axis=0)
    labels = case["train_labels"][::views_each].astype(np.int32)
    searches = cfg["beta_procrustes"] is None
    settings = {
        "augmented_passes": views_each - 1,
        "cross_validate": searches,
        "beta": float(case["beta"]),
        "steps": cfg["n_iters"],
        "learning_rate": float(cfg["learning_rate"]),
        "weight_decay": float(cfg["weight_decay"]),
        "neighbors": case.meta["knn"],
        "margin": 1 / case.meta["arerank_scale"],
        "noise": case.meta["gaussian_noise"],
        "dropout": case.meta["dropout"],
    }
    given = given_case(case, len(texts), texts, 1.0) | {"classes": numbered(*range(len(texts)))}
    method: lfa.Method = methods.create("lfa", settings=settings, **given)
    train = split(labels, Images(features=views[0]), Images(features=views[1:]))
    seen = method.views_of(Data(train))
    texts = np.asarray(method.bank[...])
    start = compare_start(case, method, seen, labels)

    crops = (case["crop"] + 1) % views_each if cfg["five_crop"] else np.zeros(cfg["n_iters"], int)
    for group, count in (("step1", 1), ("mid", cfg["n_iters"] // 2 + 1), ("final", cfg["n_iters"])):
        steps = method.steps(crops, case["order"])
        np.testing.assert_allclose(steps.rate, case["lr"], rtol=1e-5)
        some = jax.tree.map(lambda each, count=count: each[:count], steps)
        fit = method.refined(start, seen, labels, some)
        assert relative(fit.matrix, case[f"{group}/W"]) < BY_ADAM, group
    assert relative(fit.losses, case["loss"]) < BY_ADAM
    assert relative(fit.average, case["final/ema_W"]) < BY_ADAM
    assert relative(fit.matrix, case["final/W_returned"]) < BY_ADAM

    method.matrix[...], method.average[...] = fit.matrix, fit.average
    compare_logits(case, method, recorded_images(case), "eval_cosine")
    if "text_weights_new" in case:
        compare_new(case, method, settings)


def compare_start(
    case: Case, method: lfa.Method, views: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Compare the first matrix as far as it is determined; return it as recorded."""
    texts, recorded = np.asarray(method.bank[...]), case["init/W"]
    rows, tiled = views.reshape(-1, views.shape[-1]), np.tile(labels, len(views))
    if "procrustes_W_beta0" in case:
        plain = alignment.aligned(rows, texts[tiled], 0.0)
        assert relative(plain, case["procrustes_W_beta0"]) < BY_ADAM
    beta = float(case["beta"])
    if method.beta is None:
        betas, scores = alignment.cross_validated(views[0], labels, texts, case["cv_perms"])
        np.testing.assert_allclose(betas, case["betas"], rtol=1e-6)
        np.testing.assert_allclose(scores.max(), case["cv_best_score"], rtol=1e-6)
        np.testing.assert_allclose(betas[np.argmax(scores)], beta, rtol=1e-6)
        rows, tiled = views[0], labels
    start = alignment.aligned(rows, texts[tiled], beta)
    if "init_unnormalised_logits" in case:
        turned = unit_rows(case["test_features"]) @ start @ texts.T
        assert relative(turned, case["init_unnormalised_logits"]) < CLOSED
    else:
        assert relative(start, recorded) < BY_ADAM
    return recorded


def compare_new(case: Case, method: lfa.Method, settings: dict[str, Any]) -> None:
    """Compare the cosines of classes that were not trained on, with both matrices."""
    texts, new_texts = case["text_weights"], case["text_weights_new"]
    known = numbered(*range(len(texts)))
    new = numbered(*range(len(texts), len(texts) + len(new_texts))).moved_from(known)
    given = given_case(case, len(new_texts), new_texts, 1.0) | {"classes": new}
    fresh = methods.create("lfa", settings=settings, **given)
    moved = methods.move(method, fresh, known, new)
    compare_logits(case, moved, recorded_images(case, "_new"), "eval_cosine_new_ema")
    moved.average[...] = method.matrix[...]
    compare_logits(case, moved, recorded_images(case, "_new"), "eval_cosine_new_refined")
