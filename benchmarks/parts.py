"""Where the seconds of a training step of CoOp go on one core of a CPU; see README.md.

python benchmarks/parts.py --classes 100
"""

import argparse
import collections
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import measure
import models
import ours
import program
import sides

from coop_jax import train

PRODUCTS = "products with weights"
SCOPES = ("attention", "normalisation", "activation")
"""Names in `coop_jax.clip`, as the compiled program keeps them."""

COLUMNS = ("part", "ms", "of the step")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100, help="the first N ImageNet names")
    parser.add_argument("--backbone", choices=models.BACKBONES, default="ViT-B/16")
    parser.add_argument("--method", choices=("coop", "cocoop"), default="coop")
    parser.add_argument("--steps", type=int, default=5, help="measured")
    return parser.parse_args(arguments)


def part_of(compiled: program.Program, computation: str, instruction: program.Instruction) -> str:
    """Return what an instruction of the step belongs to."""
    inner = compiled.computations.get(instruction.called("calls") or "", {}).values()
    opcodes = {one.opcode for one in inner} or {instruction.opcode}
    paths = " ".join(one.attributes for one in (instruction, *inner))
    scope = next((name for name in SCOPES if name in paths), None)
    if "dot" in opcodes:
        # Heads are an axis of the batch in attention's products.
        return "attention: products" if "lhs_batch_dims={0" in paths else PRODUCTS
    if "dynamic-update-slice" in opcodes or opcodes <= {"copy", "broadcast", "parameter"}:
        return "kept for the gradient: zeros, copies, stores"
    if scope == "attention":
        return "attention: softmax, gathers, transposes"
    if scope is None and "dynamic-slice" in opcodes:
        return "weights of a layer, sliced out of the stack"
    return scope or "all else"


def durations(folder: Path) -> dict[str, list[float]]:
    """Return the seconds of every call of every instruction that a trace has, by its name."""
    (path,) = folder.rglob("*.xplane.pb")
    seconds = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            if line.name.startswith("tf_XLA"):
                for event in line.events:
                    seconds[f"%{event.name}"].append(event.duration_ns / 1e9)
    return seconds


def compiled_step(problem: models.Problem) -> tuple[ours.Training, program.Program]:
    """Return a training and the program of its step, which has run."""
    texts: list[str] = []
    compile_steps = train.compile_steps

    def spy(*arguments: Any, **settings: Any) -> Any:
        steps = compile_steps(*arguments, **settings)

        def call(*data: Any) -> Any:
            if not texts:
                texts.append(steps.lower(*data).compile().as_text())
            return steps(*data)

        return call

    training = ours.Training(problem, 1)
    with mock.patch.object(train, "compile_steps", spy):
        training.run()
    return training, program.Program(texts[0])


def parts_of(training: ours.Training, compiled: program.Program, steps: int) -> dict[str, float]:
    """Return seconds of a step by what they are spent on.

    Of an instruction's calls the shortest counts for all, as other programs interrupt the others.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                training.run()
        seconds = durations(Path(folder))
    spent = collections.Counter()
    for name, instruction, _ in compiled.runs():
        if instruction.opcode != "while" and instruction.name in seconds:
            calls = seconds[instruction.name]
            part = part_of(compiled, name, instruction)
            spent[part] += min(calls) * len(calls) / steps
    return dict(spent.most_common())


def peak_of_products(size: int = 1024, calls: int = 50) -> float:
    """Return FLOP/s of a large square matrix product in float32, the best of many."""
    matrix = jnp.ones((size, size))
    multiply = jax.jit(lambda x: jnp.dot(x, x, precision="highest"))
    multiply(matrix)
    best = min(measure.seconds(lambda: multiply(matrix).block_until_ready()) for _ in range(calls))
    return 2 * size**3 / best


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure, print the table and the record; return the record."""
    chosen = parse(arguments)
    batch = 1 if chosen.method == "cocoop" else 32
    settings = sides.Settings(
        chosen.classes, chosen.backbone, chosen.method, batch, False, "float32", "cpu", 1
    )
    models.choose_device("cpu")
    problem = settings.problem()
    training, compiled = compiled_step(problem)
    spent = parts_of(training, compiled, chosen.steps)
    total, flops = sum(spent.values()), sides.work(settings, problem, "ours").flops
    peak = peak_of_products()
    rows = [(part, 1e3 * value, f"{value / total:.1%}") for part, value in spent.items()]
    measure.show(f"a step of {chosen.method}, {chosen.backbone}, one core", COLUMNS, rows)
    record = {
        "classes": chosen.classes,
        "backbone": chosen.backbone,
        "method": chosen.method,
        "seconds": spent,
        "share_of_matmul_peak": flops / total / peak,
        "share_of_matmul_peak_in_products": flops / spent[PRODUCTS] / peak,
        "peak_flops_per_second": peak,
    }
    measure.finish(record)
    return record


if __name__ == "__main__":
    # With one core nothing runs side by side, so that the seconds of the parts add up.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main(sys.argv[1:])
