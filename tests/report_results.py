"""Results to report on, made up: every protocol, with accuracies that a seed determines."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax import results
from coop_jax.results import Hashes, Result

ELEVEN = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
TEMPLATE = "a photo of a {}."
WORDS = {"method": {"name": "coop", "context_init": "a photo of a"}}
COOP = {"n_ctx": 4, "config": WORDS, "backbone": "ViT-B/16"}
COCOOP = {"method": "cocoop", "class_token_position": None, "class_specific": None, **COOP}


def make(**changes: Any) -> Result:
    """A result of CoOp, M = 16, 16 shots on Caltech101 with RN50, but for the changes."""
    values: dict[str, Any] = {
        "protocol": "few_shot",
        "method": "coop",
        "dataset": "caltech101",
        "split": "test",
        "backbone": "RN50",
        "shots": 16,
        "seed": 1,
        "n_ctx": 16,
        "class_token_position": "end",
        "class_specific": False,
        "epochs": 200,
        "accuracy": 90.0,
        "macro_f1": 88.0,
        "n_classes": 100,
        "n_examples": 2465,
        "seconds": 12.5,
        "commit": "0123abc",
        "hashes": Hashes(
            data="d0", split="a1", class_names="b2", transform="c3", weights="d4", config="e5"
        ),
        "versions": {"jax": "0.10.2"},
        "config": {},
    }
    changes.setdefault("trained_on", changes.get("dataset", "caltech101"))
    return Result(**(values | changes))  # pyright: ignore[reportArgumentType]


def zero_shot(prompt: str, accuracy: float, **changes: Any) -> Result:
    """A result of zero-shot CLIP."""
    none = dict.fromkeys(
        ["n_ctx", "class_token_position", "class_specific", "epochs", "trained_on"]
    )
    values = {"method": "zero_shot", "shots": 0, "prompt": prompt, "accuracy": accuracy}
    return make(**(changes | none | values))


def seeds(rng: np.random.Generator, mean: float, **changes: Any) -> list[Result]:
    """Results of seeds 1, 2 and 3."""
    return [
        make(seed=seed, accuracy=float(np.clip(rng.normal(mean, 1), 0, 100)), **changes)
        for seed in (1, 2, 3)
    ]


def few_shot(datasets: tuple[str, ...] = ELEVEN, **changes: Any) -> list[Result]:
    """CoOp and the linear probe at 1 to 16 shots, and each dataset's own prompt."""
    rng, written = np.random.default_rng(0), []
    probe = dict.fromkeys(["n_ctx", "class_token_position", "class_specific"])
    for dataset in datasets:
        start = float(rng.uniform(20, 75))
        changed = {"dataset": dataset, **changes}
        prompt = f"a photo of a {{}}, as in {dataset}." if dataset != "imagenet" else TEMPLATE
        written.append(zero_shot(prompt, start + 3, **changed))
        for shots in (1, 2, 4, 8, 16):
            written += seeds(rng, start + 5 * np.log2(2 * shots), shots=shots, **changed)
            lower = start - 15 + 8 * np.log2(2 * shots)
            written += seeds(rng, lower, shots=shots, **changed, **probe, method="linear_probe")
    return written


def base_to_new(datasets: tuple[str, ...] = ELEVEN, origin: str = "") -> list[Result]:
    """Zero-shot CLIP, CoOp and CoCoOp on both halves of the classes, ViT-B/16."""
    rng, written = np.random.default_rng(1), []
    for dataset in datasets:
        for half, gains in (("base", (13, 11)), ("new", (-11, -2))):
            start = float(rng.uniform(45, 80))
            changed = {
                "protocol": "base_to_new",
                "dataset": dataset,
                "split": half + origin,
                "n_classes": 50,
            }
            written.append(zero_shot(TEMPLATE, start, backbone="ViT-B/16", **changed))
            written += seeds(rng, start + gains[0] + rng.normal(0, 4), **COOP, **changed)
            written += seeds(rng, start + gains[1] + rng.normal(0, 4), **COCOOP, **changed)
    return written


def transfer(protocol: str, targets: tuple[str, ...]) -> list[Result]:
    """CoOp and CoCoOp learned from ImageNet, zero-shot CLIP, on ImageNet and the targets."""
    rng, written = np.random.default_rng(2), []
    for dataset in ("imagenet", *targets):
        start = float(rng.uniform(20, 80))
        changed = {"protocol": protocol, "dataset": dataset}
        written.append(zero_shot(TEMPLATE, start, backbone="ViT-B/16", **changed))
        for method, gain in ((COOP, -1), (COCOOP, 1)):
            written += seeds(rng, start + gain, **method, **changed, trained_on="imagenet")
    return written


def write(path: Path, written: list[Result]) -> list[Result]:
    """The results as they are read back from a file."""
    for result in written:
        results.append(path, result)
    return results.read(path)


def published_numbers() -> list[dict]:
    """The records of the package's published.json."""
    path = Path(__file__).parents[1] / "coop_jax" / "assets" / "published.json"
    return json.loads(path.read_text("utf-8"))["numbers"]
