"""Inputs that are valid, made once: what is bad is made by changing them."""

import functools
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from makers import feature_arrays, image_folder

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import load, source
from coop_jax.saved import Saved, files

CLASSES = ("cat", "dog")
RUN = ("run", "--workdir=new", "--config=quickstart")
FIT = ("fit", "images", "new", "--clip=tiny", "--epochs=1", "--shots=1")


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """A folder that goes when this process does."""
    return tempfile.TemporaryDirectory(prefix="bad_inputs_")


@functools.cache
def _images() -> Path:
    return image_folder(Path(_folder().name) / "images", CLASSES, 2)


def images(folder: Path) -> Path:
    """A folder of two classes, with two images of each for training and for testing."""
    return shutil.copytree(_images(), folder / "images")


def clip(folder: Path) -> Path:
    """The embedded CLIP, in transformers' layout."""
    return shutil.copytree(source.EMBEDDED_FOLDER, folder / "clip")


def change_json(path: Path, **changes: Any) -> None:
    """Write an object with other values; one that is a mapping changes some of a group alone."""
    stated = json.loads(path.read_text()) if path.exists() else {}
    for name, value in changes.items():
        is_group = isinstance(value, Mapping) and isinstance(stated.get(name), Mapping)
        stated[name] = {**stated[name], **value} if is_group else value
    path.write_text(json.dumps(stated))


@functools.cache
def tiny() -> tuple[Any, Any]:
    """The embedded CLIP and its tokenizer."""
    return load(source.EMBEDDED)


@functools.cache
def _saved(method: str) -> Saved:
    """An untrained method."""
    model, tokenizer = tiny()
    classes = Classes(CLASSES)
    settings = methods.default_config(method)
    made = methods.create(method, model, tokenizer, classes, settings)
    return Saved.of(
        made, name=method, settings=settings, clip=model, backbone=source.EMBEDDED, classes=classes
    )


def saved(
    folder: Path,
    method: str = "coop",
    tensors: Mapping[str, np.ndarray | None] | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """A saved method with right digests, some tensors and some of its record changed.

    A tensor of None is left out.
    """
    whole = _saved(method)
    stated = {**vars(whole), "class_names": whole.classes.names, "class_ids": whole.classes.ids}
    kept = {name: stated[name] for name in files.FIELDS} | dict(record or {})
    arrays = {**whole.learned, **(tensors or {})}
    return write_saved(folder, kept, {k: v for k, v in arrays.items() if v is not None})


def write_saved(folder: Path, record: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """The two files of a saved method, with right digests and unchecked."""
    from safetensors.numpy import save

    place = folder / "saved"
    place.mkdir()
    content = save(dict(tensors))
    (place / files.TENSORS).write_bytes(content)
    (place / files.RECORD).write_bytes(files.signed(record, content))
    return place


def features(folder: Path, **changes: Any) -> Path:
    """A file of features, some of its arrays changed."""
    np.savez(folder / "features.npz", **feature_arrays(**changes))
    return folder / "features.npz"
