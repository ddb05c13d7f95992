"""TPT on views whose features are there, ours against the official loop; see README.md.

python benchmarks/test_time.py --classes 100
"""

import argparse
import dataclasses
import importlib.util
import sys
from typing import Any

import jax
import measure
import models
import numpy as np
import sides

from coop_jax import evaluate, parallel
from coop_jax.methods import Images

COLUMNS = ("side", "images", "seconds", "images/s")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--images", type=int, default=32, help="of ours; all in one call")
    parser.add_argument("--reference-images", type=int, default=2, help="of them, one by one")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--steps", type=int, default=3, help="measurements of each side")
    parser.add_argument("--side", choices=("both", "ours"), default="both")
    return parser.parse_args(arguments)


def views_of(problem: models.Problem, count: int) -> np.ndarray:
    """Return random features `[images, count, embedding]` of views that agree somewhat."""
    noise = np.random.default_rng(1).normal(size=(*problem.features.shape, count))
    return (problem.features[:, None] + noise.swapaxes(1, 2)).astype(np.float32)


def compare(
    settings: sides.Settings, reference_images: int, repeats: int, *, with_reference: bool
) -> dict[str, Any]:
    """Return images per second of both sides, and by how much their logits differ."""
    problem = settings.problem()
    method, clip = problem.method, problem.clip
    features, mesh = views_of(problem, method.views.test), parallel.create_mesh(jax.devices()[:1])
    scorer, images = evaluate.Scorer(method, clip, mesh), Images(features=features)
    calls = {"ours": lambda: scorer.logits(images)}
    counts, error, logits = {"ours": len(features)}, None, calls["ours"]()
    if with_reference:
        import torch

        inputs = torch.tensor(features[:reference_images])
        reference, counts["reference"] = sides.create_reference(settings, problem), len(inputs)
        options = {
            "share": method.selected / method.views.test,
            "steps": method.steps,
            "rate": method.learning_rate,
            "decay": method.weight_decay,
        }
        calls["reference"] = lambda: reference.tune(inputs, **options)
        expected = calls["reference"]()
        error = float(np.abs(logits[: len(inputs)] - expected).max() / np.abs(expected).max())
    seconds = measure.alternately(calls, repeats)
    rates = {side: counts[side] / value for side, value in seconds.items()}
    return {
        "speedup": rates["ours"] / rates["reference"] if with_reference else None,
        "images_per_second": rates,
        "images": counts,
        "seconds": seconds,
        "logits_error": error,
        "views": method.views.test,
    }


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; return the record."""
    chosen = parse(arguments)
    settings = sides.Settings(
        classes=chosen.classes,
        backbone=chosen.backbone,
        method="tpt",
        batch=chosen.images,
        images=False,
        dtype=chosen.dtype,
        device=models.choose_device(chosen.device or "gpu"),
        scan=1,
    )
    with_reference = chosen.side == "both" and importlib.util.find_spec("torch") is not None
    if not with_reference:
        print("the reference is not measured (it needs torch)", file=sys.stderr)
    found = compare(settings, chosen.reference_images, chosen.steps, with_reference=with_reference)
    rows = [
        (side, found["images"][side], value, found["images_per_second"][side])
        for side, value in found["seconds"].items()
    ]
    title = f"TPT, {chosen.classes} classes, {chosen.backbone}, {settings.device}"
    measure.show(title, COLUMNS, rows)
    keys = ("classes", "backbone", "dtype", "reference_dtype", "device")
    described = {**dataclasses.asdict(settings), "reference_dtype": settings.reference_dtype}
    result = found | {key: described[key] for key in keys}
    measure.finish(result)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
