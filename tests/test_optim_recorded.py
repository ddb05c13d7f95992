"""Every learning rate and first step that the methods' official code recorded.

What is expected is read from a case's own settings, so that cases with others are compared too.
"""

import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from reference import cases

from coop_jax import optim
from coop_jax.methods import Learned
from coop_jax.optim import OptimizerConfig


def text(meta):
    """What a case says about its optimizer and its schedule."""
    return f"{meta.get('optimizer', '')}; {meta.get('schedule', '')}"


def number(meta, pattern, default=None):
    """The first number that the case gives after a pattern."""
    found = re.search(pattern + r"\s*([\d.]+(?:e-?\d+)?)", text(meta))
    assert found or default is not None, (pattern, text(meta))
    return float(found[1].rstrip(".")) if found else default


def base_rate(meta):
    """The highest learning rate."""
    places = [meta, meta.get("cfg", {}), meta.get("args", {})]
    named = [place[key] for place in places for key in ("lr", "learning_rate") if key in place]
    return named[0] if named else number(meta, r"\blr[= ]")


def dassl(meta, arrays, name="sgd", **settings):
    """The schedule of Dassl's trainers: constant in warm-up epochs, then a cosine by epoch."""
    warmup = meta.get("warmup_epochs", 0 if re.search("warm-up none|no warm-up", text(meta)) else 1)
    config = OptimizerConfig(
        name=name,
        learning_rate=base_rate(meta),
        weight_decay=number(meta, "weight_decay[= ]", 5e-4),
        warmup_epochs=warmup,
        **settings,
    )
    return [(config, meta["epochs"], len(arrays["lr"]) // meta["epochs"])]


def protext(meta, arrays):
    """AdamW by Dassl's schedule."""
    return dassl(meta, arrays, "adamw", betas=(0.9, 0.98))


def spg(meta, arrays):
    """Dassl's schedule with a linear warm-up."""
    warmup = int(number(meta, "linear warm-up of", 0))
    return dassl(meta | {"warmup_epochs": warmup}, arrays, "adamw", warmup="linear")


def plotpp(meta, arrays):
    """Two stages by Dassl's schedule."""
    per_epoch = len(arrays["lr"]) // sum(meta["epochs"])
    config = OptimizerConfig(learning_rate=base_rate(meta))
    return [(config, epochs, per_epoch) for epochs in meta["epochs"]]


def tcp(meta, arrays):
    """Adam with another epsilon."""
    return dassl(meta, arrays, "adam", epsilon=number(meta, "eps="))


def mocoop(meta, arrays):
    """SGD on clipped gradients."""
    return dassl(meta, arrays, clip_norm=1.0)


def adamw(meta, **settings):
    """AdamW without a warm-up."""
    decay = number(meta, "(?:weight_decay|wd)[= ]", 0.01)
    return OptimizerConfig(name="adamw", weight_decay=decay, warmup_epochs=0, **settings)


def by_step(meta, arrays, rate=None, lowest=None, **settings):
    """A cosine over all steps."""
    lowest = number(meta, "(?:eta_min|cosine(?: per step)? to)", 0) if lowest is None else lowest
    rate = base_rate(meta) if rate is None else rate
    by_step = {"schedule_by": "step", "learning_rate": rate, "final_learning_rate": lowest}
    return [(adamw(meta, **by_step | settings), 1, len(arrays["lr"]))]


def clip_svd(meta, arrays):
    """On all classes a cosine over the steps; else a wave whose half period are the epochs."""
    is_wave = meta["args"].get("fn") == "run_other_training"
    return by_step(meta, arrays, half_period=meta["epochs"] if is_wave else 0)


def two_stages(meta, arrays):
    """A cosine by step for each of two stages."""
    first = by_step(meta, {"lr": arrays["lr"][: meta["stage1_iters"]]})
    return first + by_step(meta, {"lr": arrays["lr"][meta["stage1_iters"] :]})


def tfup(meta, arrays):
    """A cosine by step, of fewer steps than there are."""
    settings = meta["cfg"]["OPTIM"]
    per_epoch = int(arrays["warmup_steps"]) // settings["WARMUP_EPOCH"]
    half_period = settings["MAX_EPOCH"] * per_epoch
    return by_step(meta, arrays, rate=settings["LR"], half_period=half_period)


def cross_modal(meta, arrays):
    """A cosine by step after a linear warm-up by step."""
    settings = {"warmup": "linear", "warmup_epochs": meta["warmup_iter"]}
    config = OptimizerConfig(name="adamw", learning_rate=meta["lr"], schedule_by="step", **settings)
    return [(config, meta["iters"], 1)]


def adclip(meta, arrays):
    """Dassl's schedule by step, a wave whose half period are the epochs."""
    config = OptimizerConfig(
        name="adam",
        learning_rate=base_rate(meta),
        schedule_by="step",
        half_period=meta["max_epoch"],
    )
    return [(config, 1, len(arrays["lr"]))]


def prolip(meta, arrays):
    """A cosine over epochs of one step."""
    config = OptimizerConfig(
        name="adam", learning_rate=float(arrays["lr_v"]), epsilon=1e-4, warmup_epochs=0
    )
    return [(config, meta["cfg"]["train_epoch"], 1)]


def constant(meta, arrays, name="adamw", **settings):
    """One rate for all steps."""
    config = OptimizerConfig(
        name=name,
        learning_rate=settings.pop("rate", None) or base_rate(meta),
        weight_decay=number(meta, "(?:weight_decay|decay|wd)[= ]", 0.01),
        schedule="constant",
        warmup_epochs=0,
        **settings,
    )
    return [(config, 1, len(arrays["lr"]))]


def lp_plus_plus(meta, arrays):
    """SGD at a rate that follows from the data."""
    return constant(meta, arrays, "sgd", rate=float(arrays["lr_w"]))


def adaptclipzs(meta, arrays):
    """A cosine by epoch that restarts."""
    config = adamw(
        meta,
        learning_rate=number(meta, "main lr"),
        schedule="cosine_restarts",
        half_period=int(number(meta, "T_0=")),
    )
    return [(config, meta["epochs"], len(arrays["lr"]) // meta["epochs"])]


DASSL = (
    "ivlp maple promptsrc mma kgcoop prograd upl gallop plot pre vpt rpo clipfit coprompt promptkd"
    " restore mvlpt_upt kdpl_coop kdpl_cocoop kdpl_maple kdpl_promptsrc kdpl_vpt gopro dept_coop"
    " prometar CLAP CLIP-Adapter"
)
EXPECTED = {
    **dict.fromkeys(DASSL.split(), dassl),
    **dict.fromkeys(("mmrl", "mmrlpp"), functools.partial(dassl, name="adamw")),
    "TaskRes": functools.partial(dassl, name="adam"),
    "protext": protext,
    "tcp": tcp,
    "spg": spg,
    "mocoop": mocoop,
    "plotpp": plotpp,
    **dict.fromkeys(("clip_lora", "Tip-Adapter-F", "LFA", "dmn"), by_step),
    "clip_svd": clip_svd,
    "2sfs": two_stages,
    "APE-T": by_step,
    "TFUP-T": tfup,
    "Cross-modal adaptation": cross_modal,
    "adclip": adclip,
    "ProLIP": prolip,
    "csp": functools.partial(constant, name="adam"),
    **dict.fromkeys(("lafter", "vificlip", "xclip"), constant),
    "LP++": lp_plus_plus,
    "adaptclipzs": adaptclipzs,
}
"""By `meta["method"]`, a function from settings and arrays to the stages of training: of each the
optimizer, the epochs and the steps of an epoch."""


def read(case):
    """The arrays and settings of a case."""
    with np.load(case) as file:
        arrays = {name: file[name] for name in file.files if name != "meta"}
        return arrays, json.loads(str(file["meta"]))


@cases("methods/*.npz")
def test_recorded_rates(case):
    arrays, meta = read(case)
    if "lr" not in arrays:
        pytest.skip("no learning rates")
    recorded = arrays.get("lr_groups", arrays["lr"]).reshape(len(arrays["lr"]), -1)
    stages = EXPECTED[meta["method"]](meta, arrays)
    rates = np.concatenate([optim.learning_rates(*stage) for stage in stages])
    main = arrays["lr"].reshape(recorded.shape[0], -1)[:, 0]
    np.testing.assert_allclose(rates, main, rtol=1e-6, atol=1e-12)
    config = stages[0][0]
    is_warm = (rates == config.warmup_learning_rate) & (config.warmup_epochs > 0)
    for of_group in recorded.T:
        scaled = np.where(is_warm, rates, of_group[-1] / rates[-1] * rates) if rates[-1] else rates
        np.testing.assert_allclose(of_group, scaled, rtol=1e-6, atol=1e-12)


def factor(method, name, meta):
    """The factor on the learning rate of a variable."""
    if method == "dept_coop":
        return 1.0 if name.endswith("ctx") else meta["lr_exp"]
    return 0.1 if method == "mocoop" and name.startswith("image_encoder") else 1.0


@cases("methods/*.npz")
def test_first_step_of_recorded_gradients(case):
    arrays, meta = read(case)
    start = "grad0/"
    names = [name.removeprefix(start) for name in arrays if name.startswith(start)]
    if not names or any(f"init/{name}" not in arrays for name in names):
        pytest.skip("no first gradients or variables")
    config, epochs, per_epoch = EXPECTED[meta["method"]](meta, arrays)[0]
    rate = optim.learning_rates(config, epochs, per_epoch)[0]

    def tree(group):
        return nnx.State(
            {
                name: Learned(
                    jnp.asarray(arrays[f"{group}/{name}"]), rate=factor(meta["method"], name, meta)
                )
                for name in names
            }
        )

    learned, optimizer = tree("init"), optim.create(config)
    parameters = {"learned": learned, "frozen": None}
    gradients = {"learned": tree("grad0"), "frozen": None}
    state = optimizer.init(parameters)
    updates, _ = optimizer.update(gradients, state, parameters, learning_rate=rate)
    stepped = optax.apply_updates(learned, updates["learned"])
    for name in names:
        first = arrays[f"init/{name}"]
        moved = np.asarray(stepped[name][...]) - first
        expected = arrays[f"step1/{name}"] - first
        rounding = 2e-7 * np.abs(first).max(initial=0)
        np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=rounding, err_msg=name)
