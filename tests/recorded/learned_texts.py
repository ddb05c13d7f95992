"""PRE, TCP, DePT (reference methods_text.md)."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.methods import Images, Stage
from coop_jax.optim import OptimizerConfig
from recorded.case import (
    Case,
    Parameter,
    checks,
    compare_logits,
    relative,
    set_value,
    trajectory,
)
from recorded.texts import (
    CONTEXT,
    check_first_gradient,
    check_tokens,
    frozen_images,
    gradients,
    optimizer,
    start,
)


def compare_training(
    case: Case,
    method: Any,
    parameters: Mapping[str, Parameter],
    stage: Stage,
    images: Images,
    **options: Any,
) -> None:
    """Compare the first gradient, the trajectory, and the last logits."""
    for name, first in case.under("init").items():
        set_value(method, parameters[name], first)
    check_first_gradient(case, method, dict(parameters), gradients(case, method, images)[0])
    images_of = lambda wanted: jax.tree.map(lambda array: array[wanted[:, 1]], images)  # noqa: E731
    trajectory(case, method, parameters, stage, images_of, **options)
    compare_logits(case, method, images)


def moved(case: Case, name: str, method: Any, **settings: Any) -> Any:
    """Return what a method has learned, made for the case's new classes."""
    trained = Classes(tuple(case.meta["classnames"]))
    wanted = Classes(tuple(case.meta["new_classnames"])).moved_from(trained)
    fresh = case.create(name, wanted, **settings)
    return methods.move(method, fresh, trained, wanted)


def check_new_tokens(case: Case, method: Any) -> None:
    """Compare the tokens of the prompts of new classes."""
    there = case.arrays["tokenized_prompts"]
    case.arrays["tokenized_prompts"] = case["new_tokenized_prompts"]
    check_tokens(case, method)
    case.arrays["tokenized_prompts"] = there


def pre_parameters(case: Case) -> dict[str, Parameter]:
    """Return where what PRE learns is here."""
    found = dict(CONTEXT)
    for name in set(case.under("init")) - {"ctx"}:
        _, owner, *rest = name.split(".")
        if owner == "lstm_head":
            kind, side = rest[0].split("_")[:2]
            direction = "backward" if name.endswith("_reverse") else "forward"
            path = f"{direction}.{'input' if side == 'ih' else 'state'}"
            path += "_kernel" if kind == "weight" else "_bias"
        else:
            number, kind = rest
            path = {"weight": "kernel", "bias": "bias"}[kind] + {"0": "1", "2": "2"}[number]
        found[name] = Parameter(f"encoder.{path}", transposed="weight" in name)
    return found


@checks("pre")
def check_pre(case: Case) -> None:
    """Compare a case of PRE, with what the encoder makes of the context in the end."""
    meta = case.meta
    method = case.create(
        "pre",
        n_ctx=meta["n_ctx"],
        class_token_position=meta["class_token_position"],
        class_specific=meta["csc"] and not meta["ctx_init"],
        context_init=meta["ctx_init"],
        encoder={"LSTM1": "lstm", "MLP1": "mlp"}[meta["encoder"]],
        residual=meta["residual"],
    )
    images, parameters = frozen_images(case), pre_parameters(case)
    start(case, method)
    check_tokens(case, method)
    compare_training(case, method, parameters, Stage(optimizer=optimizer(case)), images)
    assert relative(method.encoded(), case["final_encoded_ctx"]) < 1e-5


TCP = {
    "ctx": Parameter("context"),
    "meta_net.linear1.weight": Parameter("meta_net.kernel1", transposed=True),
    "meta_net.linear1.bias": Parameter("meta_net.bias1"),
    "meta_net.linear2.weight": Parameter("meta_net.kernel2", transposed=True),
    "meta_net.linear2.bias": Parameter("meta_net.bias2"),
}


@checks("tcp")
def check_tcp(case: Case) -> None:
    """Compare a case of TCP, its class-aware tokens, and the logits of new classes."""
    meta = case.meta
    settings = {
        "n_ctx": meta["n_ctx"],
        "context_init": meta["ctx_init"],
        "prompt": meta["prompt_template"],
        "template": meta["bank_template"],
        "layer": meta["insert_before_text_layer"] + 1,
        "weight": float(meta["kg_weight"]),
    }
    method = case.create("tcp", **settings)
    images = frozen_images(case)
    start(case, method)
    check_tokens(case, method)
    assert relative(method.bank[...], case["text_bank"]) < 1e-5
    epsilon = re.search(r"eps=([\d.]+(?:e-?\d+)?)", meta["optimizer"])
    decay = re.search(r"weight_decay=([\d.]+(?:e-?\d+)?)", meta["optimizer"])
    assert epsilon and decay
    adam = OptimizerConfig(
        name="adam",
        learning_rate=float(case["lr"].max()),
        epsilon=float(epsilon.group(1)),
        weight_decay=float(decay.group(1)),
        warmup_epochs=meta.get("warmup_epochs", 1),
    )
    case.arrays["loss_kg"] = meta["kg_weight"] * case["loss_kg"]
    terms = {"loss_ce": "cross_entropy", "loss_kg": "knowledge"}
    compare_training(case, method, TCP, Stage(optimizer=adam), images, terms=terms)
    assert relative(method.class_tokens(), case["final_class_prompt"]) < 1e-4
    new = moved(case, "tcp", method, **settings)
    check_new_tokens(case, new)
    assert relative(new.bank[...], case["new_text_bank"]) < 1e-5
    compare_logits(case, new, images, "new_logits")


DEPT = {
    "prompt_learner.ctx": Parameter("context"),
    "film_lp_img.scale": Parameter("head.of_images.scale"),
    "film_lp_img.bias": Parameter("head.of_images.bias"),
    "film_lp_text.scale": Parameter("head.of_texts.scale"),
    "film_lp_text.bias": Parameter("head.of_texts.bias"),
    "linear_probe_proj.weight": Parameter("head.weight"),
    "linear_probe_proj.bias": Parameter("head.bias"),
}


@checks("dept_coop")
def check_dept(case: Case) -> None:
    """Compare a case of DePT on CoOp, both kinds of logits, and those of new classes."""
    meta = case.meta
    weight = float(meta["lp_weight"])
    settings = {
        "n_ctx": meta["n_ctx"],
        "class_token_position": meta["class_token_position"],
        "class_specific": meta["csc"] and not meta["ctx_init"],
        "context_init": meta["ctx_init"],
        "weight": weight,
        "rate": float(meta["lr_exp"]),
    }
    method = case.create("dept", **settings)
    images = frozen_images(case)
    case.arrays["init/ctx"] = case["init/prompt_learner.ctx"]
    start(case, method)
    del case.arrays["init/ctx"]
    check_tokens(case, method)
    warm = meta.get("warmup_epochs", 1) * meta["steps_per_epoch"]
    context, head = case["lr_groups"].T
    np.testing.assert_allclose(head[warm:], meta["lr_exp"] * context[warm:], rtol=1e-6)
    stage = Stage(optimizer=dataclasses.replace(optimizer(case), learning_rate=context.max()))
    case.arrays["loss_sim"] = (1 - weight) * case["loss_sim"]
    case.arrays["loss_lp"] = weight * case["loss_lp"]
    terms = {"loss_sim": "cross_entropy", "loss_lp": "linear"}
    compare_training(case, method, DEPT, stage, images, terms=terms)
    assert relative(method.head.linear(images.features), case["eval_logits_linear"]) < 1e-4
    similar = case.clip.logits(images.features, method.texts(case.clip, None))
    assert relative(similar, case["eval_logits_similarity"]) < 1e-4
    new = moved(case, "dept", method, **settings)
    check_new_tokens(case, new)
    compare_logits(case, new, images, "new_logits")
