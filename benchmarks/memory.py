"""What a batch of pixels takes in the methods that learn inside the vision tower; see README.md.

python benchmarks/memory.py --batch 4 32
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import measure
import models
import ours

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.methods import Batch, Images

METHODS: dict[str, dict[str, Any]] = {
    "clip_lora": {},
    "ivlp": {},
    "maple": {},
    "mma": {},
    "promptsrc": {"templates": ("a photo of a {}.",)},
}
"""With settings that change nothing of a step's memory but make the method sooner."""

COLUMNS = ("method", "batch", "recomputed, GB", "kept, GB", "ratio")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 32], help="images of a step")
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    return parser.parse_args(arguments)


def activation_bytes(method: Any, clip: Any, batch: int) -> int:
    """Return what the gradient of a step takes on this machine beside its arguments."""
    size, width = clip.config.vision.image_size, clip.config.embedding
    array = jax.ShapeDtypeStruct
    images = Images(
        features=array((batch, width), jnp.float32), pixels=array((batch, size, size, 3), jnp.uint8)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    labels, weights = array((batch,), jnp.int32), array((batch,), jnp.float32)
    gradient, arguments = ours.compile_gradient(method, clip)
    lowered = gradient.lower(*arguments, Batch(images, labels, weights, key))
    return lowered.compile().memory_analysis().temp_size_in_bytes


def keep_all(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """Return the function, in place of `jax.checkpoint`: its gradient computes nothing again."""
    return function


def main(arguments: list[str]) -> dict[str, Any]:
    """Compile, print the table and the record; return the record."""
    chosen = parse(arguments)
    models.choose_device("cpu")
    clip, tokenizer = models.create_clip(chosen.backbone, chosen.dtype), models.create_tokenizer()
    classes = Classes(tuple(models.class_names(chosen.classes)), repeated=models.REPEATED)
    rows, cases = [], []
    for name in chosen.method:
        method = methods.create(name, clip, tokenizer, classes, METHODS[name], seed=0)
        for batch in chosen.batch:
            recomputed = activation_bytes(method, clip, batch)
            with mock.patch("jax.checkpoint", keep_all):
                kept = activation_bytes(method, clip, batch)
            rows.append((name, batch, recomputed / 1e9, kept / 1e9, kept / recomputed))
            cases.append({"method": name, "batch": batch, "recomputed": recomputed, "kept": kept})
    title = f"activations of a step, {chosen.backbone}, {chosen.classes} classes, {chosen.dtype}"
    measure.show(title, COLUMNS, rows)
    record = {key: getattr(chosen, key) for key in ("classes", "backbone", "dtype")}
    measure.finish(record | {"cases": cases})
    return record | {"cases": cases}


if __name__ == "__main__":
    main(sys.argv[1:])
