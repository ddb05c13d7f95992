"""What the training and evaluation steps cost on TPUs, by compiling them; there is no TPU in it.

pip install "jax[tpu]"; python benchmarks/tpu.py --slice v5e v5p v6e

Everything is counted in the compiled program of one chip, with what a loop runs multiplied by its
trip count (XLA's own cost analysis counts a loop's body once). FLOPs are those of matrix products,
bytes those moved from and to HBM, collective bytes those of the collectives' results.
"""

import argparse
import collections
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import counts
import jax
import jax.numpy as jnp
import measure
import models
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from program import Program

from coop_jax import chunks, evaluate, images, methods, optim, parallel, states, train
from coop_jax import clip as clip_package
from coop_jax.classes import Classes
from coop_jax.methods import Images, Stage

TOPOLOGIES = {
    "v5e": {1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4"},
    "v5p": {1: "v5p:1x1x1", 4: "v5p:2x2x1", 8: "v5p:2x2x2"},
    "v6e": {1: "v6e:1x1", 4: "v6e:2x2", 8: "v6e:2x4"},
}
HBM_GB = {"v5e": 16, "v5p": 95, "v6e": 32}
METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "unified": ("coop", {}, 32),
    "class-specific": ("coop", {"class_specific": True}, 32),
    "cocoop": ("cocoop", {}, 1),
}
"""The method, its settings and the batch size it is trained with."""

PHASES = ("train", "evaluate", "images")
EVALUATION_BATCH, ENCODE_BATCH = 1024, 256
COLUMNS = [
    "slice",
    "backbone",
    "method",
    "phase",
    "GFLOP",
    "of needed",
    "GB moved",
    "peak GB",
    "collective MB",
    "of C x E",
    "largest MB",
    "collectives",
    "compiled in s",
]
"""FLOPs of all chips are given as a multiple of those needed, collective bytes of 4 x C x E."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one chip in one step; bytes moved and of memory, and collectives as `Program` has them.

    seconds: how long the compilation took.
    """

    flops: float
    moved: float
    memory: int
    collectives: list[tuple[str, int, int]]
    seconds: float

    @property
    def collective_bytes(self) -> int:
        """Bytes of all collectives' results."""
        return sum(size * times for _, size, times in self.collectives)

    def __add__(self, other: "Cost") -> "Cost":
        """Of one program after the other."""
        return Cost(
            self.flops + other.flops,
            self.moved + other.moved,
            max(self.memory, other.memory),
            self.collectives + other.collectives,
            self.seconds + other.seconds,
        )


def cost_of(jitted: Any, *arguments: Any, steps: int = 1) -> Cost:
    """Compile for the chips that the arguments lie on, and count."""
    start = time.perf_counter()
    compiled = jitted.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    found = [(kind, size, -(-times // steps)) for kind, size, times in program.collectives()]
    return Cost(program.flops() / steps, program.moved() / steps, peak, found, seconds)


def create_mesh(kind: str, chips: int) -> Mesh:
    """A mesh of TPU chips that are only described."""
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if chips == 1 else {}
    name = TOPOLOGIES[kind][chips]
    described = topologies.get_topology_desc(platform="tpu", topology_name=name, **bounds)
    return parallel.create_mesh(described.devices)


def abstract(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array that is only described."""
    return jax.ShapeDtypeStruct(shape, dtype)


def placed(state: Any, mesh: Mesh) -> Any:
    """The state's description with the shardings that `parallel.place` gives, seen on CPUs."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    lying = parallel.place(zeros, parallel.create_mesh(jax.devices("cpu")[: mesh.size]))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, leaf.sharding.spec)
        ),
        lying,
    )


def replicated(tree: Any, mesh: Mesh) -> Any:
    """A described tree that lies on every chip as a whole."""
    whole = parallel.replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled."""

    kind: str
    chips: int
    backbone: str
    method: str
    phase: str
    classes: int
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Bytes of a number of CLIP's."""
        return np.dtype(models.DTYPES[self.dtype]).itemsize

    def modules(self) -> tuple[Any, Any, bool]:
        """The method and the CLIP, described, and whether every image has texts of its own."""
        name, settings, _ = METHODS[self.method]
        tokenizer, names = models.create_tokenizer(), models.class_names(self.classes)
        config, dtype = models.BACKBONES[self.backbone], models.DTYPES[self.dtype]
        per_image = []

        def build() -> tuple[Any, Any]:
            clip = clip_package.CLIP(config, dtype, rngs=nnx.Rngs(0))
            classes = Classes(names, repeated=models.REPEATED)
            method = methods.create(name, clip, tokenizer, classes, settings, shards=self.chips)
            per_image.append(method.texts_per_image)
            return method, clip

        return *nnx.eval_shape(build), per_image[0]

    def cost(self) -> Cost:
        """Compile the package's own functions."""
        mesh = create_mesh(self.kind, self.chips)
        method, clip, per_image = self.modules()
        cost = getattr(self, f"_{self.phase}")(method, clip, per_image, mesh)
        idle = "text" if self.phase == "images" else "vision"
        resident = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(clip)[idle])
        )
        return dataclasses.replace(cost, memory=cost.memory + resident)

    def _train(self, method: Any, clip: Any, per_image: bool, mesh: Mesh) -> Cost:
        graph, learned, fixed = nnx.split(method, methods.Learned, ...)
        clip_graph, frozen = nnx.split(clip)
        state = jax.eval_shape(
            lambda learned, fixed, frozen: states.initial_state(
                nnx.merge(graph, learned, fixed), nnx.merge(clip_graph, frozen), Stage()
            ),
            learned,
            fixed,
            frozen,
        )
        batch = METHODS[self.method][2]
        steps = chunks.IMAGES_AT_ONCE // batch
        batch += 0 if per_image else parallel.padding(batch, mesh)
        return cost_of(
            train.compile_steps(
                graph,
                clip_graph,
                optim.create(optim.OptimizerConfig()),
                (),
                mesh,
                averages=False,
                texts_per_image=per_image,
            ),
            [placed(state, mesh)],
            placed(fixed, mesh),
            replicated(frozen, mesh),
            (
                Images(features=abstract(1, steps, batch, clip.config.embedding)),
                abstract(1, steps, batch, dtype=jnp.int32),
                abstract(1, steps, batch),
                abstract(1, steps),
                abstract(1, steps),
                abstract(1, steps, 2, dtype=jnp.uint32),
            ),
            steps=steps,
        )

    def _evaluate(self, method: Any, clip: Any, per_image: bool, mesh: Mesh) -> Cost:
        graph, state = nnx.split(method)
        clip_graph, frozen = nnx.split(clip)
        whole = parallel.replicated(mesh)
        split = whole if per_image else parallel.over_data(mesh, 0)
        texts = evaluate.compile_texts(graph, clip_graph, whole)
        logits = evaluate.compile_logits(graph, clip_graph, whole, split)
        fixed = placed(state, mesh), replicated(frozen, mesh)
        made = jax.eval_shape(texts, *fixed)
        return cost_of(texts, *fixed) + cost_of(
            logits,
            *fixed,
            replicated(made, mesh),
            Images(features=abstract(EVALUATION_BATCH, clip.config.embedding)),
        )

    def _images(self, method: Any, clip: Any, per_image: bool, mesh: Mesh) -> Cost:
        size = clip.config.vision.image_size
        pixels = abstract(ENCODE_BATCH, size, size, 3, dtype=jnp.uint8)
        clip_graph, frozen = nnx.split(clip)
        return cost_of(images.compile_encoder(clip_graph, mesh), frozen, pixels)

    def needed_flops(self) -> float:
        """By formula, of all chips together, with no padding and nothing computed twice."""
        config = models.BACKBONES[self.backbone]
        if self.phase == "images":
            return counts.image_side(config, ENCODE_BATCH, self.item_bytes).flops
        name, settings, batch = METHODS[self.method]
        placeholder = models.PLACEHOLDERS[name]
        texts = [f"{placeholder} {one}." for one in models.class_names(self.classes)]
        n_ctx = 0 if settings.get("class_specific") else len(placeholder.split())
        return counts.our_text(
            config,
            np.argmax(models.create_tokenizer()(texts), axis=1) - n_ctx,
            n_ctx,
            batch if self.phase == "train" else EVALUATION_BATCH,
            self.item_bytes,
            conditional=name == "cocoop",
            training=self.phase == "train",
        ).flops

    def record(self) -> dict[str, Any]:
        """The case and its cost."""
        cost = self.cost()
        one = 4 * self.classes * models.BACKBONES[self.backbone].embedding
        return {
            **dataclasses.asdict(self),
            **dataclasses.asdict(cost),
            "fits": cost.memory <= HBM_GB[self.kind] * 1e9,
            "needed_flops": self.needed_flops(),
            "collective_bytes": cost.collective_bytes,
            "collective_per_classes_x_embedding": cost.collective_bytes / one,
            "largest_collective": max((size for _, size, _ in cost.collectives), default=0),
        }


def row(found: dict[str, Any]) -> tuple[Any, ...]:
    """A record's row of the table."""
    kinds = collections.Counter()
    for kind, _, times in found["collectives"]:
        kinds[kind] += times
    return (
        f"{found['kind']} x {found['chips']}",
        found["backbone"],
        found["method"],
        found["phase"],
        found["flops"] / 1e9,
        f"{found['flops'] * found['chips'] / found['needed_flops']:.2f}",
        found["moved"] / 1e9,
        f"{found['memory'] / 1e9:.2f}" + ("" if found["fits"] else " (too much)"),
        found["collective_bytes"] / 1e6,
        f"{found['collective_per_classes_x_embedding']:.2f}",
        found["largest_collective"] / 1e6,
        ", ".join(f"{times} {kind}" for kind, times in kinds.items()) or "-",
        f"{found['seconds']:.0f}",
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slice", nargs="+", choices=TOPOLOGIES, default=["v5e"])
    parser.add_argument("--chips", nargs="+", type=int, choices=(1, 4, 8), default=[1, 8])
    both = ["ViT-B/16", "ViT-L/14"]
    parser.add_argument("--backbone", nargs="+", choices=models.BACKBONES, default=both)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--phase", nargs="+", choices=PHASES, default=["train", "evaluate"])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dtype", choices=models.DTYPES, default="bfloat16")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Compile every case, print the table and the records; the records."""
    chosen = parse(arguments)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(chosen.chips))
    cases = [
        Case(kind, chips, backbone, method, phase, chosen.classes, chosen.dtype)
        for kind in chosen.slice
        for backbone in chosen.backbone
        for phase in chosen.phase
        for method in (chosen.method if phase != "images" else chosen.method[:1])
        for chips in chosen.chips
    ]
    found = []
    for case in cases:
        found.append(case.record())
        print(*map(measure.spell, row(found[-1])), sep=" | ", file=sys.stderr, flush=True)
    measure.show(f"per chip and step, {chosen.dtype}", COLUMNS, [row(one) for one in found])
    measure.finish({"cases": found})
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
