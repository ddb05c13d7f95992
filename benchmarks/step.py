"""One training step of ours against one of the official computation; see README.md.

python benchmarks/step.py --classes 100
"""

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import counts
import measure
import models
import numpy as np
import ours
import sides
from sides import Settings

COLUMNS = (
    "side",
    "classes",
    "seconds",
    "memory GB",
    "GFLOP",
    "GFLOP/s",
    "of matmul peak",
    "of the limit",
    "note",
)


@dataclasses.dataclass
class Measured:
    """One side's step; `classes` is fewer than wanted where that was as many as fit.

    seconds and memory (bytes) are of `classes` classes, work is of one step with all classes.
    """

    side: str
    classes: int
    seconds: float
    memory: int | None
    work: counts.Work
    peaks: tuple[float, float]
    note: str = ""

    def row(self) -> tuple[Any, ...]:
        """Its row of the table."""
        rate = self.work.flops / self.seconds
        return (
            self.side,
            self.classes,
            float(self.seconds),
            None if self.memory is None else self.memory / 1e9,
            self.work.flops / 1e9,
            rate / 1e9,
            f"{rate / self.peaks[0]:.0%}",
            f"{self.work.seconds(*self.peaks) / self.seconds:.0%}",
            self.note,
        )


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--method", choices=("coop", "cocoop"), default="coop")
    parser.add_argument("--batch", type=int, help="images (default: 32; 1 for cocoop)")
    parser.add_argument("--images", action="store_true", help="with the image tower, end to end")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--steps", type=int, default=5, help="measurements of each side")
    parser.add_argument("--scan", type=int, help="steps of a call of ours (default: 1; gpu: 64)")
    parser.add_argument(
        "--runs", type=int, default=1, help="ours alone, beside so many runs in one program"
    )
    parser.add_argument("--side", choices=("both", "ours", "reference"), default="both")
    parser.add_argument("--memory-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def settings_of(chosen: argparse.Namespace, device: str) -> Settings:
    """The settings, with the defaults that depend on others."""
    return Settings(
        classes=chosen.classes,
        backbone=chosen.backbone,
        method=chosen.method,
        batch=chosen.batch or (1 if chosen.method == "cocoop" else 32),
        images=chosen.images,
        dtype=chosen.dtype,
        device=device,
        scan=chosen.scan or (64 if device == "gpu" else 1),
    )


def most_that_fit(arguments: list[str], classes: int) -> tuple[int, int]:
    """The most classes, halving, that the reference has memory for, and its peak in bytes."""
    while classes:
        memory = sides.memory_in_child(arguments, "reference", classes)
        if memory is not None:
            return classes, memory
        print(f"reference, {classes} classes: out of memory", file=sys.stderr)
        classes //= 2
    raise SystemExit("the reference runs out of memory with a single class")


def gradient_error(official: sides.Official, problem: models.Problem) -> float:
    """Largest difference of the context's gradients, relative to the largest of them."""
    loss, gradients = ours.loss_and_gradient(problem)
    gradient = gradients["context"]
    expected_loss = official.run()
    expected = official.reference.gradient()
    print(f"loss: ours {loss:.6f}, reference {expected_loss:.6f}", file=sys.stderr)
    return float(np.abs(gradient - expected).max() / np.abs(expected).max())


def measure_ours(settings: Settings, repeats: int, runs: int, memory: int | None) -> list[Measured]:
    """Our side alone: one run and, if wanted, several side by side."""
    problem = settings.problem()
    calls = {"ours": ours.Training(problem, settings.scan).run}
    if runs > 1:
        calls[f"ours, {runs} runs"] = ours.Training(problem, settings.scan, runs=runs).run
    for call in calls.values():
        call()
    work, peaks = sides.work(settings, problem, "ours"), sides.peaks_of(settings, "ours")
    return [
        Measured(
            name,
            settings.classes,
            seconds / settings.scan,
            memory if name == "ours" else None,
            work if name == "ours" else counts.Work(work.flops * runs, work.bytes * runs),
            peaks,
        )
        for name, seconds in measure.alternately(calls, repeats).items()
    ]


def compare(
    settings: Settings, repeats: int, fits: int, memory: dict[str, int | None]
) -> tuple[list[Measured], float]:
    """Both sides in turns, in this process, and the error of the gradient."""
    problem = settings.problem()
    smaller = problem if fits == settings.classes else settings.problem(fits)
    official = sides.Official(settings, smaller)
    error = gradient_error(official, smaller)
    calls: dict[str, Callable[[], Any]] = {
        "ours": ours.Training(problem, settings.scan).run,
        "reference": official.run,
    }
    if settings.images:
        calls["ours, cached features"] = ours.Training(problem, settings.scan, cached=True).run
        calls["reference's images"] = official.encode_images
    for name, call in calls.items():
        if name != "reference":
            call()
    seconds = measure.alternately(calls, repeats)
    of_images = seconds.pop("reference's images", 0.0)
    found = []
    for name, value in seconds.items():
        side = "reference" if name == "reference" else "ours"
        one = value if side == "reference" else value / settings.scan
        count, note = settings.classes, ""
        if side == "reference" and fits < settings.classes:
            one = of_images + (one - of_images) * settings.classes / fits
            note = f"extrapolated from {fits} classes, the most that fit in memory"
        chosen = dataclasses.replace(settings, images=settings.images and name in calls)
        if name.endswith("cached features"):
            chosen = dataclasses.replace(settings, images=False)
        work, peaks = sides.work(chosen, problem, side), sides.peaks_of(settings, side)
        found.append(Measured(name, count, one, memory.get(name), work, peaks, note))
    return found, error


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; the record."""
    chosen = parse(arguments)
    has_torch = importlib.util.find_spec("torch") is not None
    settings = settings_of(chosen, models.choose_device(chosen.device or "gpu"))
    if chosen.memory_only:
        sides_memory = {"ours": sides.memory_of_ours, "reference": sides.memory_of_reference}
        print(sides_memory[chosen.side](settings))
        return {}
    passed = [*arguments, f"--device={settings.device}"]
    memory: dict[str, int | None] = {
        "ours": sides.memory_in_child(passed, "ours", settings.classes)
    }
    fits, error = settings.classes, None
    if has_torch and chosen.side != "ours" and chosen.runs == 1:
        fits, memory["reference"] = most_that_fit(passed, settings.classes)
        if fits < settings.classes and memory["reference"] is not None:
            memory["reference"] = memory["reference"] * settings.classes // fits
        rows, error = compare(settings, chosen.steps, fits, memory)
    else:
        print("the reference is not measured (it needs torch, --runs=1)", file=sys.stderr)
        rows = measure_ours(settings, chosen.steps, chosen.runs, memory["ours"])
    title = f"training step, {settings.method}, {settings.backbone}, {settings.device}"
    measure.show(title, COLUMNS, [row.row() for row in rows])
    result = record(settings, rows, fits, error)
    measure.finish(result)
    return result


def record(
    settings: Settings, rows: list[Measured], fits: int, error: float | None
) -> dict[str, Any]:
    """The last line: ratios are the reference's over ours, None where it was not measured."""
    by_side = {row.side: row for row in rows}
    own, other = by_side["ours"], by_side.get("reference")
    cached = by_side.get("ours, cached features")
    several = next((row for side, row in by_side.items() if side.endswith(" runs")), None)
    return {
        "speedup": other and other.seconds / own.seconds,
        "speedup_cached_features": cached and other and other.seconds / cached.seconds,
        "several_runs_over_one": several and several.seconds / own.seconds,
        "memory_ratio": other and other.memory and own.memory and other.memory / own.memory,
        "gradient_error": error,
        **dataclasses.asdict(settings),
        "reference_dtype": settings.reference_dtype,
        "extrapolated": fits < settings.classes,
        "reference_classes": other and fits,
        "seconds": {row.side: row.seconds for row in rows},
        "memory_bytes": {row.side: row.memory for row in rows},
        "flops": {row.side: row.work.flops for row in rows},
        "peak_flops_per_second": {row.side: row.peaks[0] for row in rows},
        "share_of_limit": {row.side: row.work.seconds(*row.peaks) / row.seconds for row in rows},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
