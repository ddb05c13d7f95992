"""TaskRes, CLIP-Adapter, LP++, CLAP and ProLIP on given features (reference methods_heads.md)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.clip import CLIP
from coop_jax.clip.config import CLIPConfig, ResNetConfig, TextConfig, TransformerConfig, ViTConfig
from coop_jax.clip.vision import AttentionPool
from coop_jax.methods import Data, Images, Stage, lp_plus_plus, prolip
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

CLOSE = 1e-5
"""The tolerance of whole trajectories and closed forms, relative to their norm."""

BY_ADAM = 3e-5
"""That of Adam, which divides the smallest gradients by themselves."""


def method_of(case: Case, name: str, **settings: Any) -> Any:
    """Return a method with the case's text features."""
    texts = case["text_features_raw" if "text_features_raw" in case else "text_weights"]
    given = given_case(case, len(texts), texts, case.meta.get("logit_scale", 100.0))
    return methods.create(name, settings=settings, **given)


def stage_of(case: Case, name: str, method: Any) -> Stage:
    """Return the stage of a case, with the optimizer of the method's recipe."""
    optimizer = methods.recipe(name).get("optimizer", {}) | {"learning_rate": case.meta["lr"]}
    config = {
        "epochs": case.meta["epochs"],
        "batch_size": case.meta["batch_size"],
        "optimizer": optimizer,
    }
    (stage,) = method.stages(config)
    return stage


def by_view(case: Case) -> Any:
    """Return what makes features of requests (step, image), of the view of each step."""
    views = case["train_features"]

    def images_of(requests: np.ndarray) -> Images:
        return Images(features=views[case["order_view"][requests[:, 0]], requests[:, 1]])

    return images_of


def images_to_test(case: Case) -> Images:
    """Return the recorded test features."""
    return Images(features=case["test_features"])


@checks("TaskRes")
def taskres(case: Case) -> None:
    """Compare the trajectory and the logits at its end."""
    method = method_of(case, "taskres", scale=float(case.meta["residual_scale"]))
    residual = {"text_feature_residuals": Parameter("residual")}
    stage = stage_of(case, "taskres", method)
    trajectory(case, method, residual, stage, by_view(case), tolerance=BY_ADAM)
    compare_logits(case, method, images_to_test(case))


@checks("CLIP-Adapter")
def clip_adapter(case: Case) -> None:
    """Compare the trajectory and the logits at its end."""
    settings = {"ratio": float(case.meta["ratio"]), "reduction": case.meta["reduction"]}
    method = method_of(case, "clip_adapter", **settings)
    kernels = {
        "fc.0.weight": Parameter("down", transposed=True),
        "fc.2.weight": Parameter("up", transposed=True),
    }
    stage = stage_of(case, "clip_adapter", method)
    trajectory(case, method, kernels, stage, by_view(case), tolerance=CLOSE)
    compare_logits(case, method, images_to_test(case))


@checks("CLAP")
def clap(case: Case) -> None:
    """Compare the multipliers, the trajectory on rows of the pool, and the logits at its end."""
    constraint, views = case.meta["constraint"], case["train_features"]
    adapts, per_epoch = "adaptative" in constraint, len(case["order"]) // case.meta["epochs"]
    settings = {
        "constraint": constraint.partition("-")[0],
        "augmented_passes": len(views),
        "outer_every": per_epoch if adapts else 0,
    }
    method = method_of(case, "clap", **settings)
    train = split(case["train_labels"], Images(features=views[0]), Images(features=views))
    pool = method.prepare(case.clip, 0, Data(train)).train
    if constraint != "none":
        assert relative(method.multipliers[...], case["multipliers_per_epoch"][0]) < CLOSE
    logits = case.clip.logits(views.reshape(-1, views.shape[-1]), method.bank[...])
    assert relative(logits, case["zeroshot_train_logits"]) < CLOSE

    case.arrays["train_labels"] = pool.labels
    stage = stage_of(case, "clap", method)
    images_of = lambda requests: pool.encode(requests, True)  # noqa: E731
    prototypes = {"prototypes": Parameter("prototypes")}
    trajectory(case, method, prototypes, stage, images_of, tolerance=CLOSE)
    compare_logits(case, method, images_to_test(case))


@checks("LP++")
def lp_plus_plus_case(case: Case) -> None:
    """Compare what the descent starts from, its step sizes, every step, and what is kept."""
    steps, texts = case.meta["epochs"], jnp.asarray(case["text_weights"])
    method = method_of(case, "lp_plus_plus", steps=steps, accumulate=True)
    method.bias[...] = jnp.asarray(case["init/bias"])
    train = Images(features=case["train_features"][0])
    data = Data(
        split(case["train_labels"], train, Images(features=case["train_features"])),
        split(case["val_labels"], Images(features=case["val_features"])),
    )
    pairs = [
        (clip_package.unit(jnp.asarray(part.images().features)), np.asarray(part.labels))
        for part in (data.train, data.val)
    ]
    start = lp_plus_plus.first(*pairs[0], texts, method.bias[...])
    rates = lp_plus_plus.step_sizes(pairs[0][0], texts)
    compare_probe(case, start, "init")
    np.testing.assert_allclose(rates, [case["lr_w"], case["lr_alpha"]], rtol=CLOSE)
    np.testing.assert_allclose(rates.probe, case["lr"], rtol=CLOSE)
    for group, count in (("step1", 1), ("mid", steps // 2 + 1), ("final", steps)):
        fit = lp_plus_plus.descend(start, rates, *pairs, texts, steps=count, accumulate=True)
        compare_probe(case, fit.last, group)
    np.testing.assert_allclose(fit.losses, case["loss"], rtol=CLOSE)
    assert relative([*fit.alphas, fit.last.alpha], case["alpha_used"]) < CLOSE
    compare_probe(case, fit.best, "best")

    method.prepare(case.clip, 0, data)
    kept = lp_plus_plus.Probe(method.weight[...], method.bias[...], method.alpha[...])
    compare_probe(case, kept, "best")
    compare_logits(case, method, images_to_test(case))
    method.weight[...], method.bias[...], method.alpha[...] = fit.last
    compare_logits(case, method, images_to_test(case), "eval_logits_final")


def compare_probe(case: Case, probe: lp_plus_plus.Probe, group: str) -> None:
    """Compare weight, bias and alpha with a recorded group."""
    for name, value in probe._asdict().items():
        if f"{group}/{name}" in case:
            assert relative(value, case[f"{group}/{name}"]) < CLOSE, (group, name)


def with_projection(kernel: np.ndarray, bias: np.ndarray | None, scale: float) -> CLIP:
    """Return a CLIP whose image tower ends with this projection: a ResNet where it has a bias."""
    (width, embedding), small = kernel.shape, TransformerConfig(8, 1, 1, 8)
    tower = (
        ViTConfig(32, 16, dataclasses.replace(small, width=width))
        if bias is None
        else ResNetConfig(32, 8, (1, 1, 1, 1), 1)
    )
    config, rngs = CLIPConfig(embedding, tower, TextConfig(8, 8, small)), nnx.Rngs(0)
    clip = CLIP(config, rngs=rngs)
    clip.logit_scale[...] = jnp.log(jnp.float32(scale))
    vision: Any = clip.vision
    if bias is None:
        vision.projection[...] = jnp.asarray(kernel)
    else:
        vision.pool = AttentionPool(1, width, 1, embedding, jnp.float32, rngs=rngs)
        vision.pool.output.kernel[...] = jnp.asarray(kernel)
        vision.pool.output.bias[...] = jnp.asarray(bias)
    return clip


@checks("ProLIP")
def prolip_case(case: Case) -> None:
    """Compare the trajectory or, where rate and weight are searched, the search; and the logits."""
    cfg, views = case.meta["cfg"], case["train_features"]
    is_vit, texts = "proj" in case, case["text_weights"]
    start = case["proj"] if is_vit else case["proj_weight"].T
    bias = None if is_vit else case["proj_bias"]
    clip = with_projection(start, bias, case.meta["logit_scale"])
    case.stands_for_clip(clip)
    rules = {"lambda_funct_1_N": "inverse", "lambda_funct_1_N2": "inverse_square"}
    rule = next((rules[key] for key in rules if cfg[key]), "constant")
    settings = {
        "weight_rule": rule,
        "weight": float(cfg["lambda_v"]),
        "search": cfg["search_lr"],
        "search_steps": cfg["train_epoch"],
        "search_views": cfg["aug_views"],
    }
    names = tuple(f"class {label}" for label in range(len(texts)))
    method = methods.create("prolip", clip, None, names, settings, texts=texts[None])
    np.testing.assert_array_equal(method.kernel[...], start)

    # The official loop begins with the second view.
    augmented = Images(unprojected=np.roll(views, -1, axis=0))
    data = Data(
        split(case["train_labels"], Images(unprojected=views[0]), augmented),
        split(case["val_labels"], Images(unprojected=case["val_features"])),
    )
    if cfg["search_lr"]:
        compare_search(case, method, data)
    method.prepare(clip, 0, data)
    np.testing.assert_allclose(method.weight[...], case["lambda_v"], rtol=1e-6)
    if cfg["search_lr"]:
        final = case["final/proj"] if is_vit else case["final/weight"].T
        assert relative(method.kernel[...], final) < BY_ADAM
        moved = np.asarray(method.kernel[...]) - start
        assert relative(moved, final - start) < 10 * BY_ADAM
    else:
        follow(case, method, views)
    compare_logits(case, method, Images(unprojected=case["test_features"]))


def compare_search(case: Case, method: Any, data: Data) -> None:
    """Compare the grid and what it is tried on."""
    np.testing.assert_allclose(method.rates, case["lr_list"], rtol=1e-12)
    np.testing.assert_allclose(method.weights, case["lambda_list"], rtol=1e-12)
    accuracy = method.search(case.clip, data).accuracy
    np.testing.assert_allclose(accuracy, case["grid_val_acc"], rtol=1e-12)


def follow(case: Case, method: prolip.Method, views: np.ndarray) -> None:
    """Compare the trajectory, every step of which sees another view of all images."""
    steps, count = case.meta["cfg"]["train_epoch"], views.shape[1]
    config = methods.recipe("prolip") | {"epochs": steps}
    config["optimizer"] |= {"learning_rate": float(case["lr_v"])}
    (stage,) = method.stages(config)
    assert stage.batch_size >= count
    for name in [name for name in case.arrays if name.endswith("/bias")]:
        np.testing.assert_array_equal(case.arrays.pop(name), case["proj_bias"])
    case.arrays["order"] = np.broadcast_to(np.arange(count), (steps, count))

    def images_of(requests: np.ndarray) -> Images:
        return Images(unprojected=views[case["view_order"][requests[:, 0]], requests[:, 1]])

    kernel = {"proj": Parameter("kernel"), "weight": Parameter("kernel", transposed=True)}
    trajectory(case, method, kernel, stage, images_of, epochs=steps, tolerance=BY_ADAM)
