"""The settings of a run: defaults and checks."""

import dataclasses
import numbers
import operator
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from coop_jax import images, methods, metrics, optim
from coop_jax.clip import openai, source
from coop_jax.clip.config import DTYPES
from coop_jax.clip.transformer import ACTIVATIONS
from coop_jax.data import sampling
from coop_jax.errors import InputError

PARTS = ("base", "new", "all")


MOST = 10**6
"""The highest number of anything that is counted, and the highest rate."""

LEAST = 1e-30
"""The lowest positive number: float32, in which it is computed, has none much lower."""

Range = tuple[Callable[[Any], bool], str]
"""Tells whether a value is valid, and says in words which are."""


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _whole(lowest: int, what: str = "", highest: int = MOST) -> Range:
    """Return the range of a whole number; `what` says what the lowest means."""
    said = f"a whole number from {lowest} to {highest}{what}"
    return lambda value: _is_whole(value) and lowest <= value <= highest, said


def _number(what: str = "", *, zero: bool = True, highest: float = MOST) -> Range:
    """Return the range of a positive number, or of 0; `what` says what 0 means."""
    said = f"{'0, or ' * zero}a number from {LEAST:g} to {highest:g}{what}"
    return (
        lambda value: _is_number(value) and (LEAST <= value <= highest or (zero and value == 0)),
        said,
    )


def _choice(choices: Collection[str]) -> Range:
    return lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}"


def _some_of(choices: Collection[str], what: str = "") -> Range:
    """Return the range of different values among the choices; `what` says what none means."""

    def is_valid(values: Any) -> bool:
        known = _are_texts(values) and set(values) <= set(choices)
        return known and len(values) == len(set(values)) and bool(values or what)

    return is_valid, f"some of {', '.join(choices)}{what}"


def _numbers(is_valid: Callable[[Any], bool], what: str) -> Range:
    """Return the range of two numbers."""
    return (
        lambda pair: (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and all(_is_number(value) for value in pair)
            and is_valid(pair)
        ),
        what,
    )


def _are_texts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(value, str) for value in values)


def _different(what: str, highest: int) -> Range:
    def is_valid(values: Any) -> bool:
        whole = isinstance(values, tuple | list) and all(
            _is_whole(value) and 1 <= value <= highest for value in values
        )
        return whole and 0 < len(values) == len(set(values))

    return is_valid, f"different {what} from 1 to {highest}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_of_this_machine(folder: Any) -> bool:
    return _is_text(folder) and "://" not in folder


TEXT: Range = (_is_text, "a text")
NAME: Range = (lambda value: _is_text(value) and bool(value.strip()), "a name or path")
FOLDER: Range = (_is_of_this_machine, "a folder that this machine sees")

RANGES: dict[str, Range] = {
    "dataset": NAME,
    "class_names": TEXT,
    "data_dir": FOLDER,
    "targets": (_are_texts, "names of datasets"),
    "parts": _some_of(PARTS),
    "clip.name": NAME,
    "clip.dtype": _choice(DTYPES),
    "clip.tokenizer": TEXT,
    "clip.activation": (
        lambda value: value in ("", *ACTIVATIONS),
        f"one of {', '.join(ACTIVATIONS)}, or none (what the checkpoint says)",
    ),
    "clip.heads": (
        lambda value: isinstance(value, tuple | list) and (not value or openai.are_heads(value)),
        "two numbers, the heads of the image tower and of the text tower, or none (what the"
        " checkpoint says)",
    ),
    "templates": (_are_texts, "texts"),
    "shots": _different("positive whole numbers", MOST),
    "seeds": _different("whole numbers", sampling.LAST_SEED),
    "sampling": _choice(sampling.RULES),
    "epochs": _whole(0, " (0 is the paper's)"),
    "max_steps": _whole(0, " (0 is no limit)"),
    "batch_size": _whole(1),
    "encode_batch_size": _whole(1, highest=2**16),
    "feature_cache": FOLDER,
    "runs_at_once": _whole(1),
    "loggers": _some_of(metrics.LOGGERS, ", or none"),
    **{f"optimizer.{setting}": _choice(choices) for setting, choices in optim.CHOICES.items()},
    "optimizer.learning_rate": _number(zero=False),
    "optimizer.momentum": (
        lambda value: _is_number(value) and 0 <= value < 1,
        "a number from 0, less than 1",
    ),
    "optimizer.betas": _numbers(
        lambda pair: all(0 <= value < 1 for value in pair),
        "two numbers, each 0 or more, less than 1",
    ),
    "optimizer.epsilon": _number(zero=False),
    "optimizer.weight_decay": _number(),
    "optimizer.half_period": _whole(0, " (0 is the whole training)"),
    "optimizer.warmup_epochs": _whole(0),
    "optimizer.warmup_learning_rate": _number(),
    "optimizer.final_learning_rate": _number(),
    "optimizer.clip_norm": _number(" (0 is no clipping)"),
    "augmentation.scale": _numbers(
        lambda pair: 0 < pair[0] <= pair[1] <= 1,
        "the smallest and largest part of an image's area, more than 0 and at most 1",
    ),
    "augmentation.ratio": _numbers(
        lambda pair: 1e-3 <= pair[0] <= pair[1] <= 1e3,
        "the smallest and largest aspect ratio, from 0.001 to 1000",
    ),
    "augmentation.flip": (
        lambda value: _is_number(value) and 0 <= value <= 1,
        "a probability, from 0 to 1",
    ),
}
"""The valid values of every setting but the protocol and the method's own."""


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
        max_steps: of each stage of training, for which it takes fewer epochs: for a quick look (0:
            no limit).
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
        "max_steps": 0,
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
            found[f"{prefix}{key}"] = value
    return found


def check(config: Mapping[str, Any]) -> None:
    """Refuse a config that cannot run, before anything is loaded.

    Raises:
        InputError: an unknown or missing setting, or a value outside its range.
    """
    expected = default()
    _check_keys(config, expected, "config")
    for group in ("clip", "optimizer", "augmentation", "method"):
        if not isinstance(config[group], Mapping):
            raise InputError.of_setting(
                f"config.{group}",
                f"expected settings by name, got {config[group]!r:.80}; give some",
            )
    for group in ("clip", "optimizer", "augmentation"):
        _check_keys(config[group], expected[group], f"config.{group}")
    name = config["method"].get("name")
    settings = {"name": name, **methods.default_config(name)}
    _check_keys(config["method"], settings, "config.method")
    methods.check_settings(name, {key: config["method"][key] for key in settings if key != "name"})
    values = flat(config)
    for key, (is_valid, expectation) in RANGES.items():
        if not is_valid(values.get(key, {})):
            raise InputError.of_setting(
                f"config.{key}",
                f"expected {expectation}, got {values.get(key, {})!r:.80}; correct it",
            )
    try:
        optim.OptimizerConfig(**config["optimizer"])
    except InputError as error:
        raise error.renamed(lambda name: f"config.{name}") from None
    metrics.require(config["loggers"])


def check_unused(config: Mapping[str, Any], dataset: str) -> None:
    """Refuse settings that the user has changed and that do nothing where features are given.

    Args:
        config: that of a run.
        dataset: the name of the dataset that gives features.

    Raises:
        InputError: a setting of the CLIP, of the augmentation or of prompts is not the default.
    """
    values, unused = flat(config), flat(default(config["method"]["name"]))
    for key, value in unused.items():
        idle = key == "templates" or key.startswith(("clip.", "augmentation."))
        if idle and _as_list(values[key]) != _as_list(value):
            raise InputError.of_setting(
                f"config.{key}",
                f"expected none with {dataset}, which gives features of images and texts, got"
                f" {values[key]!s:.80}; leave it out",
            )


def _as_list(value: Any) -> Any:
    return [*value] if isinstance(value, tuple | list) else value


def _check_keys(given: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    unknown = sorted(f"unknown {key!r:.40}" for key in given if key not in expected)
    wrong = unknown + sorted(f"no {key}" for key in expected if key not in given)
    if wrong:
        raise InputError.of_setting(
            where,
            f"expected exactly the settings {', '.join(expected)}, got {', '.join(wrong):.200};"
            " correct them",
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
