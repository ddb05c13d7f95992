"""Evaluation of CoOp and CoCoOp on image features, ours against the official; see README.md.

python benchmarks/evaluate.py --classes 100
"""

import argparse
import dataclasses
import importlib.util
import sys
from typing import Any

import counts
import jax
import measure
import models
import numpy as np
import sides

from coop_jax import evaluate, parallel
from coop_jax.methods import Images

COLUMNS = ("method", "side", "images/s", "seconds", "GFLOP", "GFLOP/s", "of matmul peak")
IMAGES = {"coop": 200, "cocoop": 4}
"""By default: two official batches, and as many text passes as a look takes."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--method", choices=(*IMAGES, "both"), default="both")
    parser.add_argument("--images", type=int, help="default: 200 for coop, 4 for cocoop")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--steps", type=int, default=3, help="measurements of each side")
    parser.add_argument("--side", choices=("both", "ours"), default="both")
    return parser.parse_args(arguments)


def needed(settings: sides.Settings, problem: models.Problem) -> dict[str, float]:
    """FLOPs of evaluating all images, by side."""
    config = models.BACKBONES[settings.backbone]
    conditional, count = settings.method == "cocoop", len(problem.labels)
    passes = 1 if conditional else -(-count // 100)
    return {
        "ours": counts.our_text(
            config,
            problem.lengths,
            problem.n_ctx,
            count,
            4,
            conditional=conditional,
            training=False,
        ).flops,
        "reference": passes
        * counts.reference_text(
            config,
            settings.classes,
            count if conditional else min(count, 100),
            4,
            conditional=conditional,
            training=False,
        ).flops,
    }


def measure_method(
    settings: sides.Settings, repeats: int, *, with_reference: bool
) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """The rows of one method, and its part of the record."""
    problem = settings.problem()
    count, features = len(problem.labels), problem.features
    mesh = parallel.create_mesh(jax.devices()[:1])
    images, own = Images(features=features), (problem.method, problem.clip)
    images_of = evaluate.in_memory(images)
    calls = {"ours": lambda: evaluate.evaluate(*own, images_of, problem.labels, mesh)}
    error = None
    calls["ours"]()
    if with_reference:
        import torch

        reference = sides.create_reference(settings, problem)
        inputs = torch.tensor(features)
        calls["reference"] = lambda: reference.evaluate(inputs)
        expected = reference.evaluate(inputs)
        got = evaluate.logits(*own, images, mesh)
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
    seconds = measure.alternately(calls, repeats)
    flops, rows = needed(settings, problem), []
    for side, value in seconds.items():
        rate = flops[side] / value
        share = f"{rate / sides.peaks_of(settings, side)[0]:.0%}"
        work = (flops[side] / 1e9, rate / 1e9)
        rows.append((settings.method, side, count / value, value, *work, share))
    result = {
        "images": count,
        "images_per_second": {side: count / value for side, value in seconds.items()},
        "speedup": seconds["reference"] / seconds["ours"] if with_reference else None,
        "logits_error": error,
        "flops": {side: flops[side] for side in seconds},
    }
    return rows, result


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; the record."""
    chosen = parse(arguments)
    device = models.choose_device(chosen.device or "gpu")
    has_torch = importlib.util.find_spec("torch") is not None
    methods = list(IMAGES) if chosen.method == "both" else [chosen.method]
    rows, results = [], {}
    for method in methods:
        settings = sides.Settings(
            classes=chosen.classes,
            backbone=chosen.backbone,
            method=method,
            batch=chosen.images or IMAGES[method],
            images=False,
            dtype=chosen.dtype,
            device=device,
            scan=1,
        )
        found, results[method] = measure_method(
            settings, chosen.steps, with_reference=has_torch and chosen.side == "both"
        )
        results[method] |= {
            key: value
            for key, value in dataclasses.asdict(settings).items()
            if key in ("classes", "backbone", "dtype", "device")
        }
        rows += found
    measure.show(f"evaluation, {chosen.classes} classes, {chosen.backbone}", COLUMNS, rows)
    measure.finish(results)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
