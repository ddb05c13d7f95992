"""A learned classifier for other software: its class weights alone, or all of it as StableHLO."""

import dataclasses
import datetime
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.export import Exported, deserialize, symbolic_shape
from jax.export import export as trace
from jaxtyping import Array, Float, Float32, UInt8

from coop_jax import finite, parallel
from coop_jax.clip import CLIP, FeatureSpace
from coop_jax.errors import InputError
from coop_jax.images import of_tower
from coop_jax.methods import Images, saved
from coop_jax.printing import one_line
from coop_jax.terminal import write_new

PLATFORMS = ("cpu", "cuda", "tpu")
"""Platforms that a program is lowered for."""

LIFETIME = datetime.timedelta(days=180)
"""The time after an export in which JAX promises to read it: six months (JAX's documentation of
jax.export, "Compatibility guarantees")."""

TRIED = 64
"""Image features, besides random ones, on which class weights are tried: those of classes."""


class ClassWeights(NamedTuple):
    """A linear classifier: the logits are `features @ coefficients.T + intercept`.

    With `normalizes` the image features count at length one; else as the image tower makes them.
    """

    coefficients: Float32[np.ndarray, "classes embedding"]
    intercept: Float32[np.ndarray, " classes"]
    normalizes: bool


def class_weights(method: Any, clip: Any) -> ClassWeights:
    """Return all that a classifier which is linear in image features needs of the text.

    It is read off the logits of the axes of the feature space, and tried on other features.

    Raises:
        InputError: the method's logits are not linear in image features, or not finite.
    """
    method, clip = _on_one_device(method, clip)

    def logits(features: np.ndarray) -> np.ndarray:
        images = Images(features=jnp.asarray(features, jnp.float32))
        return np.asarray(method.logits(clip, texts, images), np.float64)

    takes_one = method.takes == ("features",) and method.views.test == 1
    if takes_one and not method.texts_per_image and not _remembers(method):
        texts, axes = _encode_classes(method, clip), np.eye(clip.config.embedding)
        along, against = logits(axes), logits(-axes)
        if not np.isfinite([along, against]).all():
            learned = {name: variable[...] for name, variable in saved(method).items()}
            raise InputError(
                f"expected finite logits, got others: {finite.cause(clip, axes, learned)}"
            )
        weight, bias = (along - against).T / 2, (along + against)[0] / 2
        random = np.random.default_rng(0).normal(size=(8, len(axes)))
        tried = np.concatenate([random, 2 * weight[:TRIED] + 1e-3])
        expected = logits(tried)
        for normalizes in (True, False):
            length = np.linalg.norm(tried, axis=1, keepdims=True) if normalizes else 1
            got = tried / length @ weight.T + bias
            if np.allclose(got, expected, rtol=3e-5, atol=3e-5 * np.abs(weight).max()):
                single = weight.astype(np.float32), bias.astype(np.float32)
                return ClassWeights(*single, normalizes)
    others = "use its folder by coop_jax"
    if not _remembers(method):
        others = "export the whole classifier (a file that ends in .stablehlo)"
    raise InputError(
        f"expected a method that is linear in the features of an image, got {_name(method)}, which"
        f" is not; {others} instead"
    )


def _name(method: Any) -> str:
    return type(method).__module__.rpartition(".")[2]


def _remembers(method: Any) -> bool:
    """Return whether the logits of an image depend on those before it."""
    return bool(jax.tree.leaves(method.start_stream()))


def save_class_weights(
    path: str | Path, weights: ClassWeights, *, class_names: Sequence[str], backbone: str
) -> None:
    """Write class weights as safetensors or, where the path ends so, as an `.npz` of NumPy.

    Both hold `weight` and `bias`. The metadata of the former have, as texts, `classes` (a JSON list
    in the order of the rows), `normalizes` ("true" or "false") and `backbone`; the latter holds
    arrays of these names.

    Raises:
        InputError: the file is there, or cannot be written.
    """
    path, names = Path(path), list(class_names)
    tensors = {"weight": np.ascontiguousarray(weights.coefficients), "bias": weights.intercept}
    if path.suffix == ".npz":
        file, said = io.BytesIO(), {"normalizes": weights.normalizes, "backbone": backbone}
        np.savez(file, **tensors, classes=np.asarray(names), **said)
        content = file.getvalue()
    else:
        from safetensors.numpy import save

        said = {"classes": json.dumps(names), "normalizes": json.dumps(weights.normalizes)}
        content = save(tensors, {**said, "backbone": backbone})
    write_new({path: content})


def program(method: Any, clip: Any, platforms: Sequence[str] = PLATFORMS) -> Exported:
    """Return the whole classifier as one program that holds its weights; `call` runs it.

    It takes uint8 pixels [batch, size, size, 3], as `clip.preprocess.resize_and_center_crop` makes
    them with the CLIP's `config.pixels`, with any batch of at least 1, and gives float32 logits
    [batch, classes]. Their softmax are the probabilities. Of a method with several views of an
    image, these are a second axis: the image itself, then augmented ones.

    Args:
        method: what has learned.
        clip: the CLIP it has learned with.
        platforms: what to lower the program for, as JAX calls them.

    Raises:
        InputError: the method's logits are no function of an image that JAX can trace.
    """
    if isinstance(clip, FeatureSpace) or "teacher" in method.takes or _remembers(method):
        raise InputError(
            f"expected a method whose logits are a function of an image alone, got {_name(method)},"
            " which takes given features, a second CLIP or the images before; use its folder by"
            " coop_jax instead"
        )
    method, clip = _on_one_device(method, clip)
    per_image, views = method.texts_per_image, method.views.test
    classes = _encode_classes(method, clip)
    finite.check(classes, "of every class", "; learn again, with a lower learning rate")
    shape = (*(views,) * (views > 1), *(clip.config.vision.image_size,) * 2, 3)

    def logits(pixels: UInt8[Array, "batch *views size size 3"]) -> Float[Array, "batch classes"]:
        images = clip.normalized(pixels.reshape(-1, *shape[-3:]))
        adapted = method.adapt(nnx.clone(clip), None)

        def make(field: str) -> Array:
            made = images if field == "pixels" else of_tower(clip, images, field)
            return made.reshape(*pixels.shape[:-3], *made.shape[1:])

        seen = Images(**{field: make(field) for field in method.takes})
        if not per_image:
            return method.logits(adapted, classes, seen)
        one = lambda image: method.logits(  # noqa: E731
            adapted, classes, jax.tree.map(lambda array: array[None], image)
        )[0]
        return jax.lax.map(one, seen)

    (batch,) = symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    try:
        return trace(jax.jit(logits), platforms=platforms)(pixels)
    except Exception as error:  # a method's own code raises any kind
        raise InputError(
            f"expected a method that JAX traces for any number of images, got {_name(method)}"
            f" ({type(error).__name__}: {one_line(error):.200}); use its folder by coop_jax instead"
        ) from error


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
    _, *views, size, _, _ = exported.in_avals[0].shape
    axes, said = f"[batch, {size}, {size}, 3]", ""
    if views:
        axes = f"[batch, {views[0]}, {size}, {size}, 3]"
        said = "; of every image this, then views of it, cropped and flipped at random"
    description = {
        "classes": list(class_names),
        "backbone": backbone,
        "input": f"uint8 pixels {axes}, red, green, blue: the shorter side resized to {size}"
        f" (bicubic), the centre cropped{said}",
        "output": "float32 logits [batch, classes]; their softmax are the probabilities",
        "platforms": list(exported.platforms),
        "exported": today.isoformat(),
        "jax": jax.__version__,
        "readable_until": (today + LIFETIME).isoformat(),
    }
    named = dataclasses.replace(exported, fun_name=f"coop_jax {today} jax {jax.__version__}")
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    beside = path.with_suffix(".json")
    write_new({path: bytes(named.serialize()), beside: text.encode()})
    return beside


def load_program(path: str | Path) -> Exported:
    """Return a program that `save_program` wrote; `load_program(path).call(pixels)` are the logits.

    Raises:
        InputError: the file cannot be read, is no such program, or too old for this JAX.
    """
    try:
        content = Path(os.path.expanduser(path)).read_bytes()
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
    """Return what a file that cannot be read says of itself."""
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


def _encode_classes(method: Any, clip: CLIP) -> Any:
    graph, state = nnx.split((method, clip))

    def encode(state: Any) -> Any:
        method, clip = nnx.merge(graph, state)
        return method.texts(method.adapt(clip, None), None)

    return jax.jit(encode)(state)


def _on_one_device(method: Any, clip: Any) -> tuple[Any, Any]:
    """Return the same with arrays that belong to no mesh."""
    graph, state = nnx.split((method, clip))
    return nnx.merge(graph, parallel.fetch(state))
