"""Results to report on, made up: every protocol, with accuracies that a seed determines."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax import presets, results
from coop_jax.data.official import FEW_SHOT, IMAGENET_VARIANTS, OFFICIAL
from coop_jax.results import Hashes, Result

ELEVEN = FEW_SHOT
SHIFTED = IMAGENET_VARIANTS
TARGETS = {"cross_dataset": ELEVEN[1:], "domain_generalization": SHIFTED}
TEMPLATE = "a photo of a {}."
COOP = {"n_ctx": 4, "context_init": "a photo of a", "backbone": "ViT-B/16"}
COCOOP = {"method": "cocoop", **COOP}
COOP_LABEL = 'CoOp, M = 4, end, from "a photo of a"'
COCOOP_LABEL = 'CoCoOp, M = 4, end, from "a photo of a"'
PROBE = {"method": "linear_probe", "settings": {}}


def own_prompt(dataset: str) -> str:
    """The dataset's hand-crafted prompt."""
    return OFFICIAL[dataset].template if dataset in OFFICIAL else f"a {{}} of {dataset}."


def settings(values: dict[str, Any], context_init: str) -> dict[str, Any]:
    """The config of the papers' experiment that has such a result, as it is recorded."""
    protocol, method = values["protocol"], values["method"]
    learned = method if method in ("coop", "cocoop", "linear_probe") else "coop"
    dataset = values["trained_on"] or values["dataset"]
    chosen = presets._paper(learned, dataset, "rn50", "float32")
    chosen |= {"protocol": protocol, "targets": TARGETS.get(protocol, ())}
    chosen["clip"]["name"] = values["backbone"]
    chosen["method"] |= {"name": method, "context_init": context_init}
    return json.loads(json.dumps(chosen))


def sizes(dataset: str, split: str) -> dict[str, int]:
    """The numbers of classes and of test images of a split."""
    row = OFFICIAL.get(dataset, OFFICIAL["caltech101"])
    half = split.split(" ")[0]
    base = -(-row.n_classes // 2)
    n_classes = {"base": base, "new": row.n_classes - base}.get(half, row.n_classes)
    n_examples = row.sizes[-1] // 2 if half in ("base", "new") else row.sizes[-1]
    return {"n_classes": n_classes, "n_examples": n_examples}


def make(context_init: str = "", config: dict[str, Any] | None = None, **changes: Any) -> Result:
    """A result of CoOp, M = 16, 16 shots on Caltech101 with RN50, but for the changes.

    What it learned from is its dataset, or ImageNet in transfer; `config` is what its config has
    otherwise than the papers'.
    """
    values: dict[str, Any] = {
        "protocol": "few_shot",
        "method": "coop",
        "dataset": "caltech101",
        "split": "test",
        "backbone": "RN50",
        "shots": 16,
        "seed": 1,
        "settings": {
            "n_ctx": 16,
            "class_token_position": "end",
            "class_specific": False,
            "context_init": context_init,
        },
        "uses": [],
        "learned": {"context": [16, 512]},
        "kept": {},
        "epochs": 200,
        "accuracy": 90.0,
        "macro_f1": 88.0,
        "seconds": 12.5,
        "commit": "0123abc",
        "hashes": Hashes(
            data="d0", split="a1", class_names="b2", transform="c3", weights="d4", config="e5"
        ),
        "versions": {"jax": "0.10.2"},
    }
    own = {name: changes.pop(name) for name in values["settings"] if name in changes}
    values |= changes
    values["settings"] = {**values["settings"], **own} if "settings" not in changes else {}
    transferred = values["protocol"] in TARGETS
    values.setdefault("trained_on", "imagenet" if transferred else values["dataset"])
    values = sizes(values["dataset"], values["split"]) | values
    right = round(values["accuracy"] / 100 * values["n_examples"])
    values.setdefault("correct", results.pack(np.arange(values["n_examples"]) < right))
    values["config"] = settings(values, context_init) | (config or {})
    return Result(**values)  # pyright: ignore[reportArgumentType]


def zero_shot(prompt: str, accuracy: float, **changes: Any) -> Result:
    """A result of zero-shot CLIP."""
    none = {"settings": {}, "learned": {}, "epochs": None, "trained_on": None}
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
    for dataset in datasets:
        start = float(rng.uniform(20, 75))
        changed = {"dataset": dataset, **changes}
        written.append(zero_shot(own_prompt(dataset), start + 3, **changed))
        for shots in (1, 2, 4, 8, 16):
            written += seeds(rng, start + 5 * np.log2(2 * shots), shots=shots, **changed)
            lower = start - 15 + 8 * np.log2(2 * shots)
            written += seeds(rng, lower, shots=shots, **changed, **PROBE)
    return written


def base_to_new(datasets: tuple[str, ...] = ELEVEN, origin: str = "") -> list[Result]:
    """Zero-shot CLIP, CoOp and CoCoOp on both halves of the classes, ViT-B/16."""
    rng, written = np.random.default_rng(1), []
    for dataset in datasets:
        for half, gains in (("base", (13, 11)), ("new", (-11, -2))):
            start = float(rng.uniform(45, 80))
            changed = {"protocol": "base_to_new", "dataset": dataset, "split": half + origin}
            prompt = own_prompt(dataset)
            written.append(zero_shot(prompt, start, backbone="ViT-B/16", **changed))
            written += seeds(rng, start + gains[0] + rng.normal(0, 4), **COOP, **changed)
            written += seeds(rng, start + gains[1] + rng.normal(0, 4), **COCOOP, **changed)
    return written


def transfer(protocol: str, targets: tuple[str, ...]) -> list[Result]:
    """CoOp and CoCoOp learned from ImageNet, zero-shot CLIP, on ImageNet and the targets."""
    rng, written = np.random.default_rng(2), []
    for dataset in ("imagenet", *targets):
        start = float(rng.uniform(20, 80))
        changed = {"protocol": protocol, "dataset": dataset}
        written.append(zero_shot(own_prompt(dataset), start, backbone="ViT-B/16", **changed))
        for method, gain in ((COOP, -1), (COCOOP, 1)):
            written += seeds(rng, start + gain, **method, **changed)
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
