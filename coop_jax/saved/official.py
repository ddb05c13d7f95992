"""Prompts of the official CoOp and CoCoOp code, in and out (`prompt_learner/model.pth.tar-50`).

Such a file is what Dassl's `save_checkpoint` writes: the prompt learner's `state_dict` and the
number of epochs. It says neither which CLIP nor which classes, so whoever reads it has to.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from coop_jax import finite, methods
from coop_jax.classes import Classes, spelled
from coop_jax.clip import CLIP, fingerprint
from coop_jax.clip.torch_archive import TorchArchive, dumps
from coop_jax.errors import InputError
from coop_jax.saved import Saved
from coop_jax.terminal import check_new, write_new
from coop_jax.writing import said


class _Parameter(NamedTuple):
    """A learned variable here, and whether PyTorch stores it transposed."""

    path: str
    transposed: bool


COOP = {"ctx": _Parameter("context", False)}
COCOOP = {
    **COOP,
    "meta_net.linear1.weight": _Parameter("meta_net.kernel1", True),
    "meta_net.linear1.bias": _Parameter("meta_net.bias1", False),
    "meta_net.linear2.weight": _Parameter("meta_net.kernel2", True),
    "meta_net.linear2.bias": _Parameter("meta_net.bias2", False),
}
PARAMETERS = {"coop": COOP, "cocoop": COCOOP}
"""By method, the official names of what it learns."""

PREFIXES = ("module.", "prompt_learner.")
"""Beginnings of names: of a `DataParallel`, or in the whole model's `state_dict`."""


def read(
    path: str | Path,
    *,
    clip: CLIP,
    backbone: str,
    classes: Classes,
    class_token_position: str = "end",
    context_init: str = "",
    dataset: str | None = None,
) -> Saved:
    """Read a prompt that the official code has learned; no code in the file is run.

    Args:
        path: the file, e.g. `prompt_learner/model.pth.tar-50`.
        clip: the CLIP it was learned with.
        backbone: what to call that CLIP, e.g. "ViT-B/16".
        classes: of the dataset it was learned on, in the order of the labels (coop_protocol section
            2.4): a class-specific context has a row for each.
        class_token_position: TRAINER.COOP.CLASS_TOKEN_POSITION of the training.
        context_init: TRAINER.COOP.CTX_INIT or TRAINER.COCOOP.CTX_INIT of the training. It must be
            given: where its words are several tokens each, its last ones stay in the prompt.
        dataset: the name of the dataset, for the record.

    Raises:
        InputError: torch is not installed; no such file, or one that is damaged, names anything to
            run, or holds no prompt that fits the CLIP, the classes and the phrase, or one that is
            not finite.
    """
    path = Path(os.path.expanduser(path))
    checkpoint, learned = _load(path)
    method = "cocoop" if learned.keys() > {"context"} else "coop"
    context = learned["context"]
    _check_shapes(path, learned, clip, backbone)
    _check_context(path, context, len(classes), context_init)
    return Saved(
        method=method,
        settings=_settings(path, method, context, class_token_position, context_init),
        learned=learned,
        backbone=backbone,
        fingerprint=fingerprint(clip),
        classes=classes,
        training=_training(path, checkpoint, dataset),
        per_class=("context",) if context.ndim == 3 else (),
    )


def write(learned: Saved, path: str | Path) -> None:
    """Write a prompt so that the official code loads it.

    The official code looks for `FOLDER/prompt_learner/model.pth.tar-EPOCHS` and has to be called
    with `--model-dir FOLDER --load-epoch EPOCHS`, the same backbone and the settings that `options`
    gives.

    Args:
        learned: by coop or cocoop.
        path: a new file.

    Raises:
        InputError: another method, torch is not installed, or a file is there.
        MachineError: the file cannot be written.
    """
    path = Path(os.path.expanduser(path))
    parameters = _parameters(learned)
    state = {
        name: learned.learned[parameter.path].T
        if parameter.transposed
        else learned.learned[parameter.path]
        for name, parameter in parameters.items()
    }
    epochs = learned.training.get("epochs")
    content = dumps(path, state, {"epoch": epochs if type(epochs) is int else 0})
    check_new([path], makes_folders=True)
    with said("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_new({path: content})


def options(learned: Saved) -> list[str]:
    """The settings, as `KEY`, `VALUE`, ..., with which the official code uses the prompt.

    Raises:
        InputError: neither coop nor cocoop.
    """
    _parameters(learned)
    context, settings = learned.learned["context"], learned.settings
    trainer = f"TRAINER.{learned.method.upper()}"
    found = {"N_CTX": context.shape[-2], "CTX_INIT": settings["context_init"]}
    if learned.method == "coop":
        found["CSC"] = context.ndim == 3
        found["CLASS_TOKEN_POSITION"] = settings["class_token_position"]
    return [text for key, value in found.items() for text in (f"{trainer}.{key}", str(value))]


def _parameters(learned: Saved) -> Mapping[str, _Parameter]:
    if learned.method not in PARAMETERS:
        raise InputError(
            f"expected a prompt of {' or '.join(PARAMETERS)}, which the official code has, got one"
            f" of {learned.method}; keep its own folder"
        )
    return PARAMETERS[learned.method]


def _load(path: Path) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """The checkpoint as it is, and what was learned, under the names it has here."""
    archive = TorchArchive(path)
    names = {_in_prompt_learner(name): name for name in archive.names()}
    has_meta_net = any(name.startswith("meta_net.") for name in names)
    parameters = COCOOP if has_meta_net else COOP
    missing = [name for name in parameters if name not in names]
    if missing:
        raise InputError(
            f"{path}: expected the prompt learner of CoOp or CoCoOp, got a file without"
            f" {', '.join(missing)}; name the file prompt_learner/model.pth.tar-EPOCHS"
        )
    learned = {}
    for name, parameter in parameters.items():
        array = archive.read(names[name])
        learned[parameter.path] = np.array(array.T if parameter.transposed else array, order="C")
    finite.check(learned, f"in {path}", "; learn it again, e.g. in float32")
    return archive.checkpoint, learned


def _in_prompt_learner(name: str) -> str:
    """The name that a tensor has in the prompt learner."""
    for prefix in (*PREFIXES, *PREFIXES):
        name = name.removeprefix(prefix)
    return name


def _training(path: Path, checkpoint: Mapping[str, Any], dataset: str | None) -> dict[str, Any]:
    training: dict[str, Any] = {"source": "official code", "file": path.name}
    training |= {"dataset": dataset} if dataset else {}
    for key, name in (("epoch", "epochs"), ("val_result", "val_result")):
        value = checkpoint.get(key)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            training[name] = value
    return training


def _check_shapes(path: Path, learned: Mapping[str, np.ndarray], clip: CLIP, backbone: str) -> None:
    width, embedding = clip.config.text.transformer.width, clip.config.embedding
    context = learned["context"]
    expected = {"context": (*context.shape[:-1], width)}
    if len(learned) > 1:
        hidden = learned["meta_net.bias1"].shape[0] if learned["meta_net.bias1"].ndim else 0
        expected |= {
            "meta_net.kernel1": (embedding, hidden),
            "meta_net.bias1": (hidden,),
            "meta_net.kernel2": (hidden, width),
            "meta_net.bias2": (width,),
        }
    got = {name: array.shape for name, array in learned.items()}
    wrong = [name for name, shape in expected.items() if got[name] != shape]
    if wrong or context.ndim not in (2, 3) or (len(learned) > 1 and context.ndim == 3):
        shapes = {name: list(got[name]) for name in wrong or ["context"]}
        raise InputError(
            f"{path}: expected context vectors of {width} numbers and features of {embedding}, as"
            f" {backbone} has them, got {shapes}; name the CLIP that it was learned with"
        )


def _check_context(path: Path, context: np.ndarray, classes: int, context_init: str) -> None:
    words = len(spelled([context_init])[0].split())
    if context_init and (context.ndim == 3 or context.shape[0] != words):
        raise InputError(
            f"{path}: expected a context of {words} vectors for the phrase {context_init!r}, got"
            f" {list(context.shape)}; give the phrase that it was trained from, or none"
        )
    if context.ndim == 3 and context.shape[0] != classes:
        raise InputError(
            f"{path}: expected a class-specific context of {classes} classes, as many as there are"
            f" names, got {context.shape[0]}; name the classes that it was learned on"
        )


def _settings(
    path: Path, method: str, context: np.ndarray, position: str, context_init: str
) -> dict[str, Any]:
    if method == "cocoop" and position != "end":
        raise InputError(
            f"{path}: expected the class token of CoCoOp at the end, got {position!r};"
            " leave class_token_position out"
        )
    given = {"n_ctx": context.shape[-2], "context_init": context_init}
    if method == "coop":
        given |= {"class_token_position": position, "class_specific": context.ndim == 3}
    return {**methods.default_config(method), **given}
