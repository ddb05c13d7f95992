"""A training step of CLIP-LoRA in both towers, ours against plain PyTorch; see README.md.

python benchmarks/lora.py --classes 20
"""

import argparse
import importlib.util
import sys
from typing import Any

import measure
import models
import numpy as np
import ours
import sides

from coop_jax.clip.config import ViTConfig

COLUMNS = ("side", "seconds")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--steps", type=int, default=3, help="measurements of each side")
    parser.add_argument("--side", choices=("both", "ours"), default="both")
    return parser.parse_args(arguments)


def create_problem(chosen: argparse.Namespace, **config: Any) -> models.Problem:
    """Return the batch and CLIP-LoRA, whose updates are not zero as before training."""
    problem = models.create_problem(
        classes=chosen.classes,
        backbone=chosen.backbone,
        method="clip_lora",
        batch=chosen.batch,
        images=True,
        config=config,
    )
    rng = np.random.default_rng(0)
    for factors in problem.method.factors.values():
        for up in factors.up.values():
            up[...] = rng.normal(size=up.shape).astype(np.float32) / up.shape[-1]
    return problem


def create_reference(problem: models.Problem) -> Any:
    """Return the same in PyTorch."""
    import torch_reference

    config = problem.clip.config
    assert isinstance(config.vision, ViTConfig)
    return torch_reference.LowRankReference(
        problem.weights(),
        (config.text.transformer.heads, config.vision.transformer.heads),
        problem.learned()["factors"],
        problem.tokens,
        scale=problem.method.scale,
        dropout=problem.method.dropout,
    )


def errors(chosen: argparse.Namespace) -> dict[str, float]:
    """Return how far losses and gradients are apart without dropout, relative to the largest."""
    problem = create_problem(chosen, dropout=0.0)
    loss, gradients = ours.loss_and_gradient(problem)
    reference = create_reference(problem)
    expected = reference.step(*sides.official_inputs(problem))
    apart = {"loss": abs(loss - expected) / abs(expected)}
    for tower, factors in gradients["factors"].items():
        for part, down in factors["down"].items():
            pairs = zip((down, factors["up"][part]), reference.gradient(tower, part), strict=True)
            for name, (own, other) in zip(("down", "up"), pairs, strict=True):
                difference = np.abs(own - other).max() / np.abs(other).max()
                apart[f"{tower} {part} {name}"] = float(difference)
    return apart


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; return the record."""
    chosen = parse(arguments)
    models.choose_device("cpu")
    problem = create_problem(chosen)
    calls, apart = {"ours": ours.Training(problem, 1).run}, None
    if chosen.side == "both" and importlib.util.find_spec("torch") is not None:
        apart = errors(chosen)
        reference, inputs = create_reference(problem), sides.official_inputs(problem)
        calls["reference"] = lambda: reference.step(*inputs)
    else:
        print("the reference is not measured (it needs torch)", file=sys.stderr)
    calls["ours"]()
    seconds = measure.alternately(calls, chosen.steps)
    title = f"CLIP-LoRA's step, {chosen.classes} classes, {chosen.batch} images, {chosen.backbone}"
    measure.show(title, COLUMNS, list(seconds.items()))
    record = {
        "speedup": seconds["reference"] / seconds["ours"] if apart else None,
        "seconds": seconds,
        "largest_error": max(apart.values()) if apart else None,
        **{key: getattr(chosen, key) for key in ("classes", "batch", "backbone")},
    }
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
