"""The settings of a run: defaults and checks."""

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from coop_jax import images, methods, metrics, optim
from coop_jax.clip import openai, source
from coop_jax.clip.config import DTYPES
from coop_jax.clip.transformer import ACTIVATIONS
from coop_jax.data import sampling
from coop_jax.errors import InputError

PARTS = ("base", "new", "all")


def _is_interval(pair: Sequence[float], lowest: float, highest: float) -> bool:
    return len(pair) == 2 and lowest < pair[0] <= pair[1] <= highest


def _are_texts(values: Sequence[str]) -> bool:
    return not isinstance(values, str) and all(isinstance(value, str) for value in values)


def _are_different(values: Sequence[int], highest: float = math.inf) -> bool:
    whole = all(isinstance(value, int) and 1 <= value <= highest for value in values)
    return whole and 0 < len(values) == len(set(values))


def _is_of_this_machine(folder: str) -> bool:
    return "://" not in folder


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shots": (_are_different, "different positive whole numbers"),
    "seeds": (
        lambda values: _are_different(values, sampling.LAST_SEED),
        f"different whole numbers from 1 to {sampling.LAST_SEED}",
    ),
    "data_dir": (_is_of_this_machine, "a folder that this machine sees"),
    "feature_cache": (_is_of_this_machine, "a folder that this machine sees"),
    "clip.activation": (
        lambda value: value in ("", *ACTIVATIONS),
        f"one of {', '.join(ACTIVATIONS)}, or none (what the checkpoint says)",
    ),
    "clip.heads": (
        lambda value: len(value) == 0 or openai.are_heads(value),
        "two numbers, the heads of the image tower and of the text tower, or none (what the"
        " checkpoint says)",
    ),
    "targets": (_are_texts, "names of datasets"),
    "parts": (
        lambda value: value and set(value) <= set(PARTS) and len(value) == len(set(value)),
        f"some of {', '.join(PARTS)}",
    ),
    "templates": (_are_texts, "texts"),
    "sampling": (lambda value: value in sampling.RULES, f"one of {', '.join(sampling.RULES)}"),
    "epochs": (lambda value: value >= 0, "at least 0 (0 is the paper's)"),
    "batch_size": (lambda value: value >= 1, "at least 1"),
    "encode_batch_size": (lambda value: value >= 1, "at least 1"),
    "runs_at_once": (lambda value: value >= 1, "at least 1"),
    "loggers": (
        lambda value: _are_texts(value) and set(value) <= set(metrics.LOGGERS),
        f"some of {', '.join(metrics.LOGGERS)}, or none",
    ),
    **{
        f"optimizer.{setting}": (
            lambda value, choices=choices: value in choices,
            f"one of {', '.join(choices)}",
        )
        for setting, choices in optim.CHOICES.items()
    },
    "optimizer.learning_rate": (lambda value: value > 0, "more than 0"),
    "optimizer.momentum": (lambda value: 0 <= value < 1, "0 or more, less than 1"),
    "optimizer.betas": (
        lambda values: len(values) == 2 and all(0 <= value < 1 for value in values),
        "two numbers, each 0 or more, less than 1",
    ),
    "optimizer.epsilon": (lambda value: value > 0, "more than 0"),
    "optimizer.weight_decay": (lambda value: value >= 0, "at least 0"),
    "optimizer.half_period": (lambda value: value >= 0, "at least 0 (0 is the whole training)"),
    "optimizer.warmup_epochs": (lambda value: value >= 0, "at least 0"),
    "optimizer.warmup_learning_rate": (lambda value: value >= 0, "at least 0"),
    "optimizer.final_learning_rate": (lambda value: value >= 0, "at least 0"),
    "optimizer.clip_norm": (lambda value: value >= 0, "at least 0 (0 is no clipping)"),
    "augmentation.scale": (
        lambda value: _is_interval(value, 0, 1),
        "the smallest and largest part of an image's area, more than 0 and at most 1",
    ),
    "augmentation.ratio": (
        lambda value: _is_interval(value, 0, math.inf),
        "the smallest and largest aspect ratio, more than 0",
    ),
    "augmentation.flip": (lambda value: 0 <= value <= 1, "a probability"),
}


def default(method: str = methods.DEFAULT) -> dict[str, Any]:
    """Return the settings of a protocol: CoOp's defaults, and over them the method's recipe.

    CoOp's are the official ones (coop_protocol sections 3 to 6).

    Settings:
        protocol: "few_shot", "base_to_new", "cross_dataset" or "domain_generalization".
        dataset: what is trained on: a name of the catalogue or the path of own images.
        class_names: a file that names the classes of own images.
        data_dir: where datasets lie, in CoOp's `$DATA` layout or as TFDS prepared them (empty:
            TFDS's default).
        targets: datasets that cross_dataset and domain_generalization evaluate on, besides.
        parts: which classes base_to_new evaluates on: "base", "new", "all" of them together.
        clip: name, dtype, (where they do not lie beside the weights) tokenizer folder and
            (where no config lies there) activation and heads, as `coop_jax.clip.load` takes them.
        method: its name and its settings.
        templates: hand-crafted prompts for zero-shot CLIP, each with {} for the class name;
            "dataset" is the dataset's own, "imagenet_7" and "imagenet_80" are ensembles (empty:
            the dataset's own).
        shots, seeds: labelled images per class, and seeds; every pair is one training run.
        sampling: "coop" for the images that CoOp's code chooses, "linear_probe" for its linear
            probe's.
        epochs: 0 for the CoOp paper's rule: 50 for 1 shot, 100 for 2 and 4, 200 above; 50 on
            ImageNet. (CoCoOp's paper has 10 epochs of batches of 1.)
        batch_size: of training.
        optimizer: as `coop_jax.optim.OptimizerConfig`.
        encode_batch_size: images that the frozen tower takes at once (lower it where memory is
            short).
        feature_cache: a folder that keeps image features, for runs that share images, seeds and
            CLIP (empty: none are kept).
        runs_at_once: how many of the runs are trained side by side in one program, which saves
            time where one alone does not keep the device busy (results agree to about 1e-5).
        loggers: where the metrics of every step go besides `metrics/*.jsonl`: "tensorboard" for
            event files, "wandb" for Weights & Biases, both, or none.
        augmentation: area and aspect ratio of random crops, probability of a horizontal flip.
    """
    config = {
        "protocol": "few_shot",
        "dataset": "digits",
        "class_names": "",
        "data_dir": "",
        "targets": (),
        "parts": ("base", "new"),
        "clip": {
            "name": source.EMBEDDED,
            "dtype": "float32",
            "tokenizer": "",
            "activation": "",
            "heads": (),
        },
        "method": {"name": method, **methods.default_config(method)},
        "templates": (),
        "shots": (1, 2, 4, 8, 16),
        "seeds": (1, 2, 3),
        "sampling": "coop",
        "epochs": 0,
        "batch_size": 32,
        "encode_batch_size": images.BATCH_SIZE,
        "feature_cache": "",
        "runs_at_once": 1,
        "loggers": ("tensorboard",),
        "optimizer": dataclasses.asdict(optim.OptimizerConfig()),
        "augmentation": {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5},
    }
    return merged(config, methods.recipe(method))


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with changes, which may name some settings of a group alone."""
    result = dict(config)
    for key, value in changes.items():
        is_group = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if is_group else value
    return result


def with_method(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a config for another method: its settings by default, and its recipe.

    Raises:
        InputError: there is no such method.
    """
    settings = {"name": name, **methods.default_config(name)}
    return merged({**config, "method": settings}, methods.recipe(name))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All settings, those of a group with its name in front."""
    found = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def check(config: Mapping[str, Any]) -> None:
    """Refuse a config that cannot run, before anything is loaded.

    Raises:
        InputError: an unknown or missing setting, or a value outside its range.
    """
    expected = default()
    _check_keys(config, expected, "config")
    for group in ("clip", "optimizer", "augmentation"):
        _check_keys(config[group], expected[group], f"config.{group}")
    if config["clip"]["dtype"] not in DTYPES:
        raise InputError.of_setting(
            "config.clip.dtype",
            f"expected one of {', '.join(DTYPES)}, got {config['clip']['dtype']!r:.80}; choose one",
        )
    name = config["method"].get("name")
    settings = {"name": name, **methods.default_config(name)}
    _check_keys(config["method"], settings, "config.method")
    values = flat(config)
    for key, (is_valid, expectation) in RANGES.items():
        try:
            valid = is_valid(values[key])
        except TypeError:
            valid = False
        if not valid:
            raise InputError.of_setting(
                f"config.{key}", f"expected {expectation}, got {values[key]!s:.80}; correct it"
            )
    try:
        optim.OptimizerConfig(**config["optimizer"])
    except InputError as error:
        raise error.renamed(lambda name: f"config.{name}") from None
    metrics.require(config["loggers"])


def _check_keys(given: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    unknown, missing = sorted(set(given) - set(expected)), sorted(set(expected) - set(given))
    if unknown or missing:
        raise InputError(
            f"{where}: unknown settings {unknown}, missing settings {missing};"
            f" expected exactly {', '.join(expected)}"
        )


def whole(name: str, value: Any, lowest: int = 1, highest: int | None = None) -> int:
    """Return a parameter that is a whole number, from `lowest` to `highest`.

    Raises:
        InputError: it is none, or out of these limits.
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = lowest - 1
    if found < lowest or (highest is not None and found > highest):
        limits = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise InputError.of_setting(
            name, f"expected a whole number {limits}, got {value!r:.80}; give one"
        )
    return found


def text(name: str, value: Any) -> str:
    """Return a parameter that is a text or a path, as text.

    Raises:
        InputError: it is neither.
    """
    try:
        return os.fspath(value)
    except TypeError:
        raise InputError(
            f"expected {name} as a text or a path, got {value!r:.80}; give one"
        ) from None


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Return a parameter that has settings by name, none of them for None.

    Raises:
        InputError: it is no mapping.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InputError(
            f"expected {name} as settings by name, got {value!r:.80}; give a mapping, or None"
        )
    return dict(value or {})
