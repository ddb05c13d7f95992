"""A learned classifier for other software: its class weights alone, or all of it as StableHLO."""

import dataclasses
import datetime
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.export import Exported, deserialize, symbolic_shape
from jax.export import export as trace
from jaxtyping import Array, Float, Float32, UInt8

from coop_jax import parallel
from coop_jax.clip import CLIP, unit
from coop_jax.errors import InputError
from coop_jax.methods import Images
from coop_jax.terminal import write_new

PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program is lowered for."""

LIFETIME = datetime.timedelta(days=180)
"""How long after an export JAX promises to read it: six months (JAX's documentation of jax.export,
"Compatibility guarantees")."""

WEIGHT = "weight"
"""The name of the one tensor in a file of class weights."""


def class_weights(method: Any, clip: CLIP) -> Float32[np.ndarray, "classes embedding"]:
    """The text feature of every class, of length one: all that such a classifier needs of the text.

    Multiplied with image features of length one and `exp(clip.logit_scale)` they are the logits.

    Raises:
        InputError: the method's logits are something else.
    """
    method, clip = _on_one_device(method, clip)
    name = type(method).__module__.rpartition(".")[2]
    kind = "another text for every image"
    if not method.texts_per_image and method.takes == ("features",):
        classes, kind = _encode_classes(method, clip), "other logits than scaled cosines"
        shape = (4, clip.config.embedding)
        images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        logits = method.logits(clip, classes, Images(features=images))
        if isinstance(classes, jax.Array) and np.allclose(logits, clip.logits(images, classes)):
            return np.asarray(unit(classes))
    raise InputError(
        f"expected a method with one text feature per class, got {name}, which has {kind}; export"
        " the whole classifier instead (a file that ends in .stablehlo)"
    )


def save_class_weights(
    path: str | Path,
    weights: Float32[np.ndarray, "classes embedding"],
    *,
    clip: CLIP,
    class_names: Sequence[str],
    backbone: str,
) -> None:
    """Write class weights as safetensors.

    The tensor is called "weight". The file's metadata has the texts `classes` (a JSON list in the
    order of the rows), `logit_scale` (what the product with image features is multiplied with) and
    `backbone`.

    Raises:
        InputError: the file is there, or cannot be written.
    """
    from safetensors.numpy import save

    metadata = {
        "classes": json.dumps(list(class_names)),
        "logit_scale": repr(float(np.exp(np.float64(clip.logit_scale[...])))),
        "backbone": backbone,
    }
    write_new({Path(path): save({WEIGHT: np.ascontiguousarray(weights)}, metadata)})


def program(method: Any, clip: CLIP, platforms: Sequence[str] = PLATFORMS) -> Exported:
    """The whole classifier as one program that holds its weights; `call` runs it.

    It takes uint8 pixels [batch, size, size, 3], as `clip.preprocess.resize_and_center_crop` makes
    them, with any batch of at least 1, and gives float32 logits [batch, classes]. Their softmax are
    the probabilities.

    Args:
        method: what has learned.
        clip: the CLIP it has learned with.
        platforms: what to lower the program for, as JAX calls them.
    """
    method, clip = _on_one_device(method, clip)
    per_image = method.texts_per_image
    classes = _encode_classes(method, clip)
    size = clip.config.vision.image_size

    def logits(pixels: UInt8[Array, "batch size size 3"]) -> Float[Array, "batch classes"]:
        images = clip.normalized(pixels)
        adapted = method.adapt(nnx.clone(clip), None)
        seen = Images(features=clip.encode_image(images).astype(jnp.float32), pixels=images)
        if not per_image:
            return method.logits(adapted, classes, seen)
        one = lambda image: method.logits(  # noqa: E731
            adapted, classes, jax.tree.map(lambda array: array[None], image)
        )[0]
        return jax.lax.map(one, seen)

    (batch,) = symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.uint8)
    return trace(jax.jit(logits), platforms=platforms)(pixels)


def save_program(
    path: str | Path, exported: Exported, *, class_names: Sequence[str], backbone: str
) -> Path:
    """Write a program as `jax.export` serializes it, and beside it a `.json` that describes it.

    Both say when it was exported, by which JAX, and until when JAX promises to read it.

    Returns:
        The path of the `.json`.

    Raises:
        InputError: one of the files is there, or cannot be written.
    """
    path, today = Path(path), datetime.datetime.now(datetime.UTC).date()
    size = exported.in_avals[0].shape[1]
    description = {
        "classes": list(class_names),
        "backbone": backbone,
        "input": f"uint8 pixels [batch, {size}, {size}, 3], red, green, blue: the shorter side"
        f" resized to {size} (bicubic), the centre cropped",
        "output": "float32 logits [batch, classes]; their softmax are the probabilities",
        "platforms": list(exported.platforms),
        "exported": today.isoformat(),
        "jax": jax.__version__,
        "readable_until": (today + LIFETIME).isoformat(),
    }
    named = dataclasses.replace(exported, fun_name=f"coop_jax {today} jax {jax.__version__}")
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    beside = path.with_suffix(".json")
    write_new({path: bytes(named.serialize()), beside: text.encode()})
    return beside


def load_program(path: str | Path) -> Exported:
    """A program that `save_program` wrote; `load_program(path).call(pixels)` are the logits.

    Raises:
        InputError: the file cannot be read, is no such program, or too old for this JAX.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"expected a .stablehlo file, got {path} ({error.strerror}); name one that was exported"
        ) from error
    try:
        return deserialize(bytearray(content))
    except Exception as error:  # FlatBuffers and MLIR raise many kinds
        raise InputError(
            f"{path}: expected a program that JAX {jax.__version__} reads, got"
            f" {_described(content)} ({type(error).__name__}); export it again"
        ) from error


def _described(content: bytes) -> str:
    """What a file that cannot be read says of itself."""
    said = re.search(rb"coop_jax (\d{4}-\d\d-\d\d) jax ([\w.+-]+)", content)
    if said is None:
        return "a damaged file or one for another JAX"
    date, version = (text.decode() for text in said.groups())
    until = datetime.date.fromisoformat(date) + LIFETIME
    is_over = until < datetime.datetime.now(datetime.UTC).date()
    return (
        f"one that JAX {version} exported on {date}, which JAX promises to read until {until}"
        + ("" if is_over else ": a damaged file, or of a newer JAX")
    )


@nnx.jit
def _encode_classes(method: Any, clip: CLIP) -> Any:
    return method.texts(method.adapt(nnx.clone(clip), None), None)


def _on_one_device(method: Any, clip: CLIP) -> tuple[Any, CLIP]:
    """The same with arrays that belong to no mesh."""
    graph, state = nnx.split((method, clip))
    return nnx.merge(graph, parallel.fetch(state))
