"""What the benchmarks run on: random CLIPs of real sizes, the real tokenizer and class names."""

import dataclasses
import functools
import gzip
import importlib.util
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip.config import CLIPConfig, ResNetConfig, TextConfig, TransformerConfig, ViTConfig

NARROW, WIDE = TransformerConfig(512, 12, 8, 2048), TransformerConfig(768, 12, 12, 3072)


def _config(embedding: int, vision: ViTConfig | ResNetConfig, text: TransformerConfig):
    return CLIPConfig(embedding, vision, TextConfig(49408, 77, text))


BACKBONES = {
    "RN50": _config(1024, ResNetConfig(224, 64, (3, 4, 6, 3), 32), NARROW),
    "ViT-B/32": _config(512, ViTConfig(224, 32, TransformerConfig(768, 12, 12, 3072)), NARROW),
    "ViT-B/16": _config(512, ViTConfig(224, 16, TransformerConfig(768, 12, 12, 3072)), NARROW),
    "ViT-L/14": _config(768, ViTConfig(224, 14, TransformerConfig(1024, 24, 16, 4096)), WIDE),
    "tiny": _config(
        32, ViTConfig(32, 8, TransformerConfig(32, 12, 2, 128)), TransformerConfig(32, 12, 2, 128)
    ),
}
"""OpenAI's sizes, and one for tests."""

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
PHRASE = "a photo of a"
PLACEHOLDERS = {"coop": " ".join(["X"] * 16), "cocoop": PHRASE, "tpt": PHRASE, "clip_lora": PHRASE}
REPEATED = ("missile", "sunglasses")
"""ImageNet's names that two classes have."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One batch to learn from: both sides get the same numbers.

    Attributes:
        clip: random weights; without an image tower worth the name unless `pixels` are given.
        method: CoOp (M = 16, end), or CoCoOp, TPT or CLIP-LoRA ("a photo of a"), before training.
        tokens: `[classes, 77]` ids of "placeholder class name."
        n_ctx: number of context vectors M.
        lengths: tokens of every class's prompt behind the context, end token included.
        features: `[batch, embedding]` random image features, where there are no pixels.
        pixels: uint8 `[batch, size, size, 3]`, or None.
        labels: `[batch]`.
    """

    backbone: str
    method_name: str
    dtype: str
    clip: clip_package.CLIP
    method: Any
    tokens: np.ndarray
    n_ctx: int
    lengths: np.ndarray
    features: np.ndarray
    pixels: np.ndarray | None
    labels: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.tokens)

    def weights(self) -> dict[str, Any]:
        """CLIP's weights as nested dicts of float32 arrays."""
        return _arrays(nnx.state(self.clip))

    def learned(self) -> dict[str, Any]:
        """What the method starts from, as nested dicts of float32 arrays."""
        return _arrays(nnx.state(self.method, methods.Learned))


def _arrays(state: nnx.State) -> dict[str, Any]:
    to_array = lambda leaf: np.asarray(leaf.astype(jnp.float32))  # noqa: E731
    return jax.tree.map(to_array, nnx.to_pure_dict(state))


def create_problem(
    *,
    classes: int,
    backbone: str = "ViT-B/16",
    method: str = "coop",
    batch: int = 32,
    images: bool = False,
    dtype: str = "float32",
    config: Mapping[str, Any] | None = None,
) -> Problem:
    """The same problem for the same arguments, in every process."""
    tokenizer, names = create_tokenizer(), class_names(classes)
    clip = create_clip(backbone, dtype, images=images)
    tokens = tokenizer([f"{PLACEHOLDERS[method]} {name}." for name in names])
    n_ctx = len(PLACEHOLDERS[method].split())
    rng = np.random.default_rng(0)
    size = clip.config.vision.image_size
    return Problem(
        backbone=backbone,
        method_name=method,
        dtype=dtype,
        clip=clip,
        method=methods.create(
            method, clip, tokenizer, Classes(names, repeated=REPEATED), dict(config or {}), seed=0
        ),
        tokens=tokens,
        n_ctx=n_ctx,
        lengths=np.argmax(tokens, axis=1) - n_ctx,
        features=rng.normal(size=(batch, clip.config.embedding)).astype(np.float32),
        pixels=rng.integers(0, 256, (batch, size, size, 3), np.uint8) if images else None,
        labels=rng.integers(0, classes, batch).astype(np.int32),
    )


def create_clip(backbone: str, dtype: str = "float32", *, images: bool = True) -> clip_package.CLIP:
    """A CLIP with random weights of usual sizes; without `images` its image tower is a stub."""
    config = BACKBONES[backbone]
    if not images:
        stub = ViTConfig(32, 32, TransformerConfig(64, 1, 1, 64))
        config = dataclasses.replace(config, vision=stub)
    graph, state = nnx.split(
        nnx.eval_shape(lambda: clip_package.CLIP(config, DTYPES[dtype], rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.ones(leaf.shape, leaf.dtype)
        if name == "logit_scale":
            return jnp.full(leaf.shape, np.log(100), leaf.dtype)
        is_matrix = name in ("kernel", "projection")
        deviation = np.prod(leaf.shape[-2:-1]) ** -0.5 if is_matrix else 0.02
        values = rng.standard_normal(leaf.shape, np.float32) * np.float32(deviation)
        return jnp.asarray(values, leaf.dtype)

    pure = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state)


def reference_folder() -> Path:
    """`$COOP_JAX_REFERENCE`, by default `../shared` beside the repository."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("COOP_JAX_REFERENCE", default))
    if not folder.is_dir():
        raise SystemExit(f"no reference folder {folder}: set COOP_JAX_REFERENCE")
    return folder


@functools.cache
def create_tokenizer() -> clip_package.Tokenizer:
    """OpenAI's tokenizer, from its list of merges."""
    with gzip.open(reference_folder() / "golden" / "bpe_simple_vocab_16e6.txt.gz", "rt") as file:
        merges = [line.split() for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 512 - len(printable))
    characters = [chr(code) for code in (*printable, *others)]
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["".join(merge) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {word: index for index, word in enumerate(words)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n")
        return clip_package.Tokenizer(folder)


def class_names(count: int) -> list[str]:
    """The first ImageNet names; beyond the 1,000, two of them joined, which are longer.

    Raises:
        ValueError: there are not that many.
    """
    path = reference_folder() / "coop_splits" / "imagenet_classnames.txt"
    names = [line.split(" ", 1)[1].strip() for line in path.read_text().splitlines()]
    found, seen = names[:count], set(names)
    unique = list(dict.fromkeys(names))
    for shift, place in itertools.product(range(1, len(unique)), range(len(unique))):
        if len(found) == count:
            break
        joined = f"{unique[place]} {unique[(place + shift) % len(unique)]}"
        if joined not in seen:
            seen.add(joined)
            found.append(joined)
    if len(found) < count:
        raise ValueError(f"expected at most {len(found)} classes, got {count}")
    return found


def choose_device(wanted: str) -> str:
    """The wanted one, or "cpu" where JAX, or torch if it is there, has no GPU."""
    if wanted != "cpu" and importlib.util.find_spec("torch"):
        import torch

        wanted = wanted if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        jax.config.update("jax_platforms", "cpu")
    else:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return "gpu" if jax.default_backend() == "gpu" else "cpu"
