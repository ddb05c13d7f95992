"""The two sides of a comparison, each by itself: how it is built, its work and its memory."""

import dataclasses
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import counts
import measure
import models
import numpy as np
import ours

OUT_OF_MEMORY = 3
"""Exit code of a process that ran out of memory; -9 is one that was killed for it."""

MARGIN = 0.85
"""The part of the free memory that the reference may take before it is said not to fit."""

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared.

    scan: training steps of a call of ours. reference_dtype: the official code's, since half
    precision is bfloat16 here and float16 there.
    """

    classes: int
    backbone: str
    method: str
    batch: int
    images: bool
    dtype: str
    device: str
    scan: int

    @property
    def reference_dtype(self) -> str:
        """The dtype that the reference computes in."""
        return "float32" if self.dtype == "float32" else "float16"

    def problem(self, classes: int | None = None) -> models.Problem:
        """The problem, or the same with another number of classes."""
        return models.create_problem(
            classes=classes or self.classes,
            backbone=self.backbone,
            method=self.method,
            batch=self.batch,
            images=self.images,
            dtype=self.dtype,
        )


class Official:
    """The reference on a problem's batch."""

    def __init__(self, settings: Settings, problem: models.Problem):
        self.reference = create_reference(settings, problem)
        inputs, labels = official_inputs(problem)
        if settings.device == "gpu":
            inputs, labels = inputs.pin_memory(), labels.pin_memory()
        self.inputs, self.labels = inputs, labels

    def run(self) -> float:
        """One step; its loss."""
        return self.reference.step(self.inputs, self.labels)

    def encode_images(self) -> None:
        """Only the image tower's part of a step."""
        self.reference.features(self.inputs).float().sum().item()


def create_reference(settings: Settings, problem: models.Problem) -> Any:
    """The official computation with the problem's weights."""
    import torch
    import torch_reference

    config = models.BACKBONES[problem.backbone]
    vision = config.vision
    if problem.pixels is not None and not isinstance(vision, models.ViTConfig):
        raise SystemExit(f"--images: expected a vision transformer, got {problem.backbone}")
    vision_heads = vision.transformer.heads if isinstance(vision, models.ViTConfig) else 0
    return torch_reference.Reference(
        problem.weights(),
        (config.text.transformer.heads, vision_heads),
        problem.learned(),
        problem.tokens,
        problem.n_ctx,
        device="cuda" if settings.device == "gpu" else "cpu",
        dtype=getattr(torch, settings.reference_dtype),
        images=problem.pixels is not None,
    )


def official_inputs(problem: models.Problem) -> tuple[Any, Any]:
    """The batch as the official loader hands it over: float32 tensors in host memory."""
    import torch

    from coop_jax.clip.preprocess import normalize

    inputs = problem.features
    if problem.pixels is not None:
        inputs = np.asarray(normalize(problem.pixels)).transpose(0, 3, 1, 2)
    labels = torch.tensor(problem.labels, dtype=torch.int64)
    return torch.tensor(np.ascontiguousarray(inputs)), labels


def work(settings: Settings, problem: models.Problem, side: str) -> counts.Work:
    """What one training step needs."""
    config = models.BACKBONES[settings.backbone]
    conditional = settings.method == "cocoop"
    if side == "ours":
        item = ITEM_BYTES[settings.dtype]
        total = counts.our_text(
            config,
            problem.lengths,
            problem.n_ctx,
            settings.batch,
            item,
            conditional=conditional,
            training=True,
        )
    else:
        item = ITEM_BYTES[settings.reference_dtype]
        total = counts.reference_text(
            config,
            settings.classes,
            settings.batch,
            item,
            conditional=conditional,
            training=True,
        )
    return total + counts.image_side(config, settings.batch, item) if settings.images else total


def peaks_of(settings: Settings, side: str) -> tuple[float, float]:
    """FLOP/s and bytes/s of the side's library and dtype at best, measured."""
    gpu = settings.device == "gpu"
    if side == "ours":
        return measure.jax_peaks(models.DTYPES[settings.dtype], gpu=gpu)
    import torch

    return measure.torch_peaks(getattr(torch, settings.reference_dtype), gpu=gpu)


def memory_of_ours(settings: Settings) -> int:
    """Peak bytes of our training: weights and what a step takes besides."""
    problem = settings.problem()
    training = ours.Training(problem, settings.scan)
    training.run()
    if settings.device == "gpu":
        return ours.peak_bytes() or 0
    meter = measure.PeakMemory()
    meter.start()
    training.run()
    return meter.read() + ours.weight_bytes(problem)


def memory_of_reference(settings: Settings) -> int:
    """The same of the reference; ends the process with `OUT_OF_MEMORY` where it does not fit."""
    import torch

    official = Official(settings, settings.problem())
    try:
        if settings.device == "gpu":
            torch.cuda.reset_peak_memory_stats()
            official.run()
            return torch.cuda.max_memory_allocated()
        limit = measure.virtual_bytes() + int(MARGIN * measure.available_bytes())
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        meter = measure.PeakMemory()
        meter.start()
        official.run()
        return meter.read() + official.reference.weight_bytes()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        sys.exit(OUT_OF_MEMORY)


def memory_in_child(arguments: list[str], side: str, classes: int) -> int | None:
    """Peak bytes of one side in a process of its own, or None if it runs out of memory."""
    script = Path(__file__).with_name("step.py")
    child = subprocess.run(
        [
            sys.executable,
            str(script),
            *arguments,
            f"--classes={classes}",
            f"--side={side}",
            "--memory-only",
        ],
        capture_output=True,
        text=True,
    )
    if child.returncode in (OUT_OF_MEMORY, -9):
        return None
    if child.returncode:
        raise SystemExit(f"the process of side {side} failed:\n{child.stderr}")
    return int(child.stdout.split()[-1])
