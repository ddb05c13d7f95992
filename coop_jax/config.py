"""The settings of a run: defaults, checks, and the workdir that belongs to them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from coop_jax import methods, optim
from coop_jax.clip import source
from coop_jax.errors import InputError

PROTOCOLS = ("few_shot",)
CONFIG_FILE = "config.json"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def default(method: str = "coop") -> dict[str, Any]:
    """The settings of a protocol, with the official defaults (coop_protocol sections 3 to 6).

    protocol: "few_shot".
    dataset: a name of the catalogue or the path of an image folder; data_dir: where prepared
        datasets lie (empty: TFDS's default).
    clip: name, dtype and (where they do not lie beside the weights) tokenizer folder, as
        `coop_jax.clip.load` takes them.
    method: its name and its settings.
    templates: hand-crafted prompts for zero-shot CLIP (empty: the dataset's own).
    shots, seeds: labelled images per class, and seeds; every pair is one training run.
    epochs: 0 for the paper's rule: 50 for 1 shot, 100 for 2 and 4, 200 above.
    batch_size, optimizer: of training.
    augmentation: area and aspect ratio of random crops, probability of a horizontal flip.
    """
    return {
        "protocol": "few_shot",
        "dataset": "digits",
        "data_dir": "",
        "clip": {"name": source.EMBEDDED, "dtype": "float32", "tokenizer": ""},
        "method": {"name": method, **methods.default_config(method)},
        "templates": (),
        "shots": (1, 2, 4, 8, 16),
        "seeds": (1, 2, 3),
        "epochs": 0,
        "batch_size": 32,
        "optimizer": dataclasses.asdict(optim.OptimizerConfig()),
        "augmentation": {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5},
    }


def names(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All settings, those of a group with its name in front."""
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            found += names(value, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
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
    if config["protocol"] not in PROTOCOLS:
        raise InputError(
            f"config.protocol: expected one of {', '.join(PROTOCOLS)}, got {config['protocol']!r}"
        )
    if config["clip"]["dtype"] not in DTYPES:
        raise InputError(
            f"config.clip.dtype: expected one of {', '.join(DTYPES)},"
            f" got {config['clip']['dtype']!r}"
        )
    name = config["method"].get("name")
    settings = {"name": name, **methods.default_config(name)}
    _check_keys(config["method"], settings, "config.method")
    for key in ("shots", "seeds"):
        values = config[key]
        if not values or any(value < 1 for value in values) or len(set(values)) < len(values):
            raise InputError(
                f"config.{key}: expected different positive numbers, got {tuple(values)}"
            )
    if config["batch_size"] < 1 or config["epochs"] < 0:
        raise InputError(
            "config.batch_size must be positive and config.epochs not negative, got"
            f" {config['batch_size']} and {config['epochs']}"
        )


def _check_keys(given: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    unknown, missing = sorted(set(given) - set(expected)), sorted(set(expected) - set(given))
    if unknown or missing:
        raise InputError(
            f"{where}: unknown settings {unknown}, missing settings {missing};"
            f" expected exactly {', '.join(expected)}"
        )


def check_workdir(config: Mapping[str, Any], workdir: Path) -> None:
    """Make sure that a workdir is new, empty, or an earlier run's with the same config.

    Raises:
        InputError: the workdir belongs to another config or to something else.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise InputError(
                f"{workdir}: expected a new folder or an earlier run's, but it is a file or has"
                f" files and no {CONFIG_FILE}; name another --workdir"
            )
        return
    earlier, now = source.read_json(path), json.loads(json.dumps(config))
    different = sorted(key for key in {*earlier, *now} if earlier.get(key) != now.get(key))
    if different:
        raise InputError(
            f"{workdir}: holds a run of another config (different: {', '.join(different)});"
            f" name another --workdir, or run with the config in its {CONFIG_FILE} to resume it"
        )


def claim(config: Mapping[str, Any], workdir: Path) -> None:
    """Write the config into a workdir, after `check_workdir`."""
    check_workdir(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / CONFIG_FILE).write_text(json.dumps(config, indent=2))
