"""The text side of methods with prompts at several layers beside CoOp's; see README.md.

python benchmarks/deep.py --classes 100
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import models
from flax import nnx

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.methods import Learned

PHRASE = "a photo of a"
METHODS: dict[str, dict[str, Any]] = {
    "coop": {"context_init": PHRASE},
    "ivlp": {},
    "maple": {},
    "promptsrc": {"templates": (f"{PHRASE} {{}}.",)},
}
"""All with the same phrase; PromptSRC's many templates count for nothing in a step."""

COLUMNS = ("method", "vectors", "seconds", "over CoOp")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=METHODS)
    parser.add_argument("--dtype", choices=models.DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: gpu if there is one")
    parser.add_argument("--steps", type=int, default=7, help="measurements of each method")
    return parser.parse_args(arguments)


def text_step(method: Any, clip: Any) -> Callable[[], None]:
    """Return a call that computes text features and a gradient of what is learned."""
    graph, learned, rest = nnx.split(method, Learned, ...)
    clip_graph, frozen = nnx.split(clip)

    def total(learned: Any, rest: Any, frozen: Any) -> jax.Array:
        texts = nnx.merge(graph, learned, rest).texts(nnx.merge(clip_graph, frozen), None)
        weights = jnp.arange(texts.size, dtype=jnp.float32).reshape(texts.shape) / texts.size
        return jnp.sum(weights * texts)

    gradient = jax.jit(jax.value_and_grad(total))
    return lambda: jax.block_until_ready(gradient(learned, rest, frozen))


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; return the record."""
    chosen = parse(arguments)
    device = models.choose_device(chosen.device or "gpu")
    clip, tokenizer = models.create_clip(chosen.backbone, chosen.dtype), models.create_tokenizer()
    classes = Classes(tuple(models.class_names(chosen.classes)), repeated=models.REPEATED)
    made = {
        name: methods.create(name, clip, tokenizer, classes, METHODS[name], seed=0)
        for name in dict.fromkeys(("coop", *chosen.method))
    }
    calls = {name: text_step(method, clip) for name, method in made.items()}
    for call in calls.values():
        call()
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds = measure.alternately(calls, chosen.steps, clock=clock)
    ratios = {name: value / seconds["coop"] for name, value in seconds.items()}
    rows = [
        (name, made[name].context.shape[0], value, ratios[name]) for name, value in seconds.items()
    ]
    title = f"text side of a step, {chosen.classes} classes, {chosen.backbone}, {device}"
    measure.show(title, COLUMNS, rows)
    record = {key: getattr(chosen, key) for key in ("classes", "backbone", "dtype")}
    record |= {"device": device, "seconds": seconds, "over_coop": ratios}
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
