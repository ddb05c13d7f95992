"""Methods that adapt at test time (reference methods_deep.md, methods_heads.md)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import evaluate, methods
from coop_jax.methods import Images
from coop_jax.methods.tda import Cache
from recorded.case import Case, checks, given_case, relative

CONTEXT = "prompt_learner.ctx"


@checks("tpt")
def tpt(case: Case) -> None:
    """Compare what each image's steps start from, select, lose and end with."""
    meta, args = case.meta, case.meta["args"]
    images = Images(features=case.features("views"))
    settings = {
        "n_ctx": meta["n_ctx"],
        "context_init": meta["ctx_init"] or "",
        "views": images.features.shape[1],
        "confident_share": args["selection_p"],
        "learning_rate": args["lr"],
    }
    method = case.create("tpt", steps=args["tta_steps"], **settings)
    first = case[f"init/{CONTEXT}"]
    assert method.context.shape == first.shape
    if meta["ctx_init"]:
        np.testing.assert_array_equal(method.context[...], first)
    method.context[...] = jnp.asarray(first)

    tuned = jax.jit(method.tune)(case.clip, images.features)
    for name, logits in (("view_logits", tuned.view_logits), ("eval_logits", tuned.logits)):
        bound = 1e-4 if np.abs(case[name]).max() > 50 else 3e-5
        assert relative(logits, case[name]) < bound, name
    np.testing.assert_array_equal(tuned.selected, case["selected"])
    np.testing.assert_allclose(tuned.losses, case["loss"], rtol=1e-4)
    for step, group in ((0, "step1"), (-1, "adapted")):
        # A step is about the rate at every entry; none has a gradient near to zero, so none flips.
        moved, expected = (
            np.asarray(contexts) - first
            for contexts in (tuned.contexts[:, step], case[f"{group}/{CONTEXT}"])
        )
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-5, err_msg=group)


@checks("TDA")
def tda(case: Case) -> None:
    """Compare what is seen of each image of the stream, its logits and the caches at the end."""
    meta, views = case.meta, case.meta["views"] or 1
    parts = {name: meta[name] for name in ("positive", "negative")}
    settings = {
        f"{name}_{ours}": value if ours != "alpha" or part["enabled"] else 0.0
        for name, part in parts.items()
        for ours, value in (
            ("capacity", part["shot_capacity"]),
            ("alpha", part["alpha"]),
            ("beta", part["beta"]),
        )
    }
    ranges = {
        name: tuple(parts["negative"][theirs][end] for end in ("lower", "upper"))
        for name, theirs in (
            ("entropy_range", "entropy_threshold"),
            ("probability_range", "mask_threshold"),
        )
    }
    features = case["views" if meta["views"] else "test_features"][case["order"]]
    texts = case["text_weights"]
    given = given_case(case, len(texts), texts, meta["logit_scale"])
    space = given["clip"]
    method = methods.create("tda", settings={**settings, **ranges, "views": views}, **given)
    images = Images(features=features)

    seen = jax.jit(method.see)(space, method.texts(space, None), images)
    assert relative(seen.feature, case["features"]) < 1e-5
    assert relative(seen.logits, case["clip_logits"]) < 3e-5
    np.testing.assert_allclose(seen.entropy, case["entropy"], rtol=3e-5, atol=1e-6)
    shares = np.asarray(seen.entropy) / math.log2(len(texts))
    np.testing.assert_allclose(shares, case["prop_entropy"], rtol=3e-5, atol=1e-6)
    np.testing.assert_array_equal(np.argmax(seen.logits, axis=1), case["pred"])

    scorer = evaluate.Scorer(method, space, case.mesh)
    assert relative(scorer.logits(images), case["eval_logits"]) < 3e-5
    for name, part in parts.items():
        if part["enabled"]:
            compare_cache(case, getattr(scorer.memory, name), f"final_{name[:3]}_cache")


def compare_cache(case: Case, cache: Cache, group: str) -> None:
    """Compare a cache's rows, which are recorded class by class, the lowest entropy first."""
    entropy = np.asarray(cache.entropy)
    is_filled = np.isfinite(entropy)
    np.testing.assert_array_equal(np.nonzero(is_filled)[0], case[f"{group}/class"])
    np.testing.assert_allclose(entropy[is_filled], case[f"{group}/entropy"], rtol=3e-5, atol=1e-6)
    assert relative(np.asarray(cache.keys)[is_filled], case[f"{group}/keys"]) < 1e-5
    if cache.classes is not None:
        low, high = case.meta["negative"]["mask_threshold"].values()
        recorded = case[f"{group}/prob"]
        expected = (low < recorded) & (recorded < high)
        np.testing.assert_array_equal(np.asarray(cache.classes)[is_filled], expected)
