"""Features that any encoder made, instead of images: read from an `.npz` file, or in memory."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from coop_jax.classes import Classes, spelled
from coop_jax.data import decoding, memory
from coop_jax.data.examples import Dataset, Examples
from coop_jax.data.listing import SPLITS, some
from coop_jax.data.memory import Labels
from coop_jax.errors import InputError

SUFFIX = ".npz"

MAGIC = (b"\x93NUMPY", b"PK")
"""The first bytes of files of one array, and of several."""

ARRAYS = (
    *(f"{split}_{what}" for split in SPLITS for what in ("features", "labels")),
    "class_names",
    "text_features",
    "cosine_multiplier",
    "encoder",
)
"""The arrays that a file may have."""

NEEDED = ("test_features", "test_labels", "class_names", "text_features")
"""Those that every file has; a file without training images can be evaluated on alone."""

COSINE_MULTIPLIER = 100.0
"""The factor of CLIP's cosine similarities, where nothing is said."""


class Rows:
    """Features as records: `image` has the bytes of an image's, of all its views, float32."""

    def __init__(self, features: Float32[np.ndarray, "views images embedding"]):
        self._features = features

    def __len__(self) -> int:
        return self._features.shape[1]

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {"image": np.ascontiguousarray(self._features[:, index], "<f4").tobytes()}


def read(path: Path) -> Dataset:
    """Read a dataset from an `.npz` file, as `numpy.savez` writes it; it can run no code.

    Args:
        path: of a file with the arrays that `dataset` takes. `NEEDED` are the least.

    Raises:
        InputError: the file is absent or damaged, or an array of it will not do: names the file and
            the array.
    """
    arrays = _load(path)
    if not isinstance(arrays, dict):
        raise InputError(
            f"{path}: expected arrays by name, got one array; write the file by numpy.savez"
        )
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise InputError(
            f"{path}: expected the arrays {', '.join(NEEDED)} at least, got"
            f" {', '.join(arrays) or 'none'}; add {', '.join(missing)}"
        )
    try:
        return dataset(arrays, name=path.stem, place=f"file {path}")
    except InputError as error:
        raise InputError(f"{path}, {error}" if error.setting else f"{path}: {error}") from None


def dataset(
    arrays: Mapping[str, Any], *, name: str = "given features", place: str = "memory"
) -> Dataset:
    """Return the dataset that arrays describe.

    Args:
        arrays: by name
            `train_features`, `val_features`, `test_features`: float `[images, embedding]`, or
            `[views, images, embedding]`; a split may be left out with its labels;
            `train_labels`, `val_labels`, `test_labels`: whole numbers `[images]`, places in
            `class_names`;
            `class_names`: texts `[classes]`;
            `text_features`: float `[classes, embedding]`, or `[templates, classes, embedding]`;
            `cosine_multiplier`, if it is not 100: what logits are, over the cosine similarity of
            image and text (CLIP's `logit_scale.exp()`, not its logarithm);
            `encoder`: a text for records, what made the features.
        name: the dataset's.
        place: where it was found.

    Raises:
        InputError: an array is missing, unknown, or will not do.
    """
    unknown = [key for key in arrays if key not in ARRAYS]
    if unknown:
        shown = some([f"{key!r:.40}" for key in unknown])
        raise InputError(
            f"expected arrays among {', '.join(ARRAYS)}, got {shown}; rename or leave out what is"
            " not among them"
        )
    names = _class_names(arrays.get("class_names", ()))
    texts = vectors("text_features", arrays.get("text_features", ()), ("templates", "classes"))
    _check_texts(texts, len(names))
    train, val, test = (_split(arrays, split, len(names), texts.shape[2]) for split in SPLITS)
    return Dataset(
        name,
        Classes(names),
        ("a photo of a {}.",),
        train,
        val,
        test,
        place=place,
        texts=texts,
        logit_scale=_multiplier(arrays.get("cosine_multiplier", COSINE_MULTIPLIER)),
        encoder=_encoder(arrays.get("encoder", "")),
    )


def training_set(
    features: Any, labels: Labels, class_names: Sequence[str] | None, text_features: Any
) -> Dataset:
    """Return given features as the training split of a dataset that has no other.

    Args:
        features: as `examples` takes them.
        labels: a class name per image; or the place of its class in `class_names`.
        class_names: the classes, in the order of their labels; by default the names in `labels`,
            sorted.
        text_features: float `[classes, embedding]`, or `[templates, classes, embedding]`.

    Raises:
        InputError: as `examples` and `memory.dataset`, or text features that will not do.
    """
    texts = vectors("text_features", text_features, ("templates", "classes"))
    train = examples(features, embedding=texts.shape[2], split="train")
    made = memory.dataset(train, labels, class_names)
    _check_texts(texts, len(made.classes))
    return dataclasses.replace(made, name="given features", texts=texts)


def examples(
    features: Any, *, embedding: int, split: str = "", key: str = "features", name: str = ""
) -> Examples:
    """Return given features as a split, with label 0.

    Args:
        features: float `[images, embedding]`, or `[views, images, embedding]`.
        embedding: how long a row must be.
        split: what messages call the split; "" where there is none.
        key: what errors call the features.
        name: what file names begin with; the split's by default.

    Raises:
        InputError: they will not do.
    """
    rows = vectors(key, features, embedding=embedding)
    count = rows.shape[1]
    names = np.asarray([f"{name or split or 'row'}/{index}" for index in range(count)])
    return Examples(
        Rows(rows), split, np.zeros(count, np.int32), names, np.arange(count), features=rows
    )


def read_rows(path: Path, embedding: int, backbone: str) -> Examples:
    """Return the features of a file to classify: an array in a `.npy`, or a dataset's test split.

    Raises:
        InputError: there is no such file, it is damaged, its features will not do, or they are of
            another space than `backbone`.
    """
    if path.suffix.lower() == SUFFIX:
        dataset = read(path)
        dataset.check_space(backbone)
        rows = dataset.test
        assert rows.features is not None
        features, split = rows.features, f"{path.name}/test"
    else:
        features, split = _load(path), path.name
    try:
        return examples(features, embedding=embedding, name=split)
    except InputError as error:
        raise InputError(f"{path}, {error}") from None


def vectors(
    key: str, array: Any, axes: tuple[str, str] = ("views", "images"), *, embedding: int = 0
) -> Float32[np.ndarray, "first second embedding"]:
    """Return an array of features, float32, with the first of its axes, which may be missing.

    Args:
        key: what errors call it.
        array: `[second, embedding]` or `[first, second, embedding]`.
        axes: what errors call the axes.
        embedding: how long a row must be; 0 for any length.

    Raises:
        InputError: another shape or type, or a row that has no direction in float32.
    """
    try:
        array = np.asarray(array)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind != "f" or array.ndim not in (2, 3) or 0 in array.shape:
        raise InputError.of_setting(
            key,
            f"expected floating-point numbers [{axes[1]}, embedding] or [{', '.join(axes)},"
            f" embedding], got {_shown(array)}; give one row per"
            f" {'class' if axes[1] == 'classes' else 'image'}",
        )
    if embedding and array.shape[-1] != embedding:
        raise InputError.of_setting(
            key,
            f"expected rows of {embedding} numbers, as the text features have, got"
            f" {array.shape[-1]}; take both from one encoder",
        )
    array = array if array.ndim == 3 else array[None]
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.ascontiguousarray(array, np.float32)
        lengths = np.linalg.norm(rows, axis=-1)
    faulty = ~((lengths > 0) & (lengths < np.inf))
    if faulty.any():
        first, second = np.argwhere(faulty)[0].tolist()
        where = f"row {second}" + f" of {axes[0]} {first}" * (len(rows) > 1)
        raise InputError.of_setting(
            key,
            f"expected rows of a finite length above 0, got {lengths[first, second]:g} in {where}"
            f" ({faulty.sum()} such rows); encode these again or leave them out",
        )
    return rows


def _check_texts(texts: np.ndarray, classes: int) -> None:
    if texts.shape[1] != classes:
        raise InputError.of_setting(
            "text_features",
            f"expected a row for each of the {classes} classes, got {texts.shape[1]}; give one per"
            " class, in the order of the class names",
        )


def _split(arrays: Mapping[str, Any], split: str, classes: int, embedding: int) -> Examples:
    """Return a split, empty where there is none."""
    keys = f"{split}_features", f"{split}_labels"
    missing = [key for key in keys if key not in arrays]
    if len(missing) == 2:
        nothing = np.zeros((1, 0, embedding), np.float32)
        none = np.zeros(0, np.int32)
        return Examples(Rows(nothing), split, none, none.astype(str), none, features=nothing)
    if missing:
        raise InputError.of_setting(
            missing[0], f"expected it beside {'/'.join({*keys} - {*missing})}, got none; add it"
        )
    rows = examples(arrays[keys[0]], embedding=embedding, split=split, key=keys[0])
    labels = _labels(keys[1], arrays[keys[1]], len(rows), classes)
    if split == "train" and (absent := sorted({*range(classes)} - set(labels.tolist()))):
        raise InputError.of_setting(
            keys[1],
            f"expected training images of every class, got none of {len(absent)}"
            f" ({some(list(map(str, absent)))}); add some or leave these classes out",
        )
    return dataclasses.replace(rows, labels=labels)


def _labels(key: str, array: Any, images: int, classes: int) -> Int32[np.ndarray, " images"]:
    labels = np.asarray(array)
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise InputError.of_setting(
            key,
            f"expected {images} whole numbers, one per image, got {_shown(labels)}; give the place"
            " of each image's class in class_names",
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError.of_setting(
            key,
            f"expected numbers from 0 to {classes - 1}, got {labels.min()} to {labels.max()}; give"
            " the place of each image's class in class_names",
        )
    return labels.astype(np.int32)


def _class_names(array: Any) -> tuple[str, ...]:
    names = np.asarray(array)
    if names.dtype.kind != "U" or names.ndim != 1 or not len(names):
        raise InputError.of_setting(
            "class_names", f"expected texts [classes], got {_shown(names)}; give numpy.array(names)"
        )
    _check_characters("class_names", names)
    found = spelled(names.tolist())
    try:
        Classes(found).check()
    except InputError as error:
        raise InputError.of_setting("class_names", str(error)) from None
    return found


def _check_characters(key: str, texts: np.ndarray) -> None:
    """Refuse what numpy would hand to Python as texts that are none, on which that may crash."""
    if texts.dtype.kind != "U" or not texts.dtype.itemsize:
        return
    numbers = np.ascontiguousarray(texts, texts.dtype.newbyteorder("=")).view(np.uint32)
    if (numbers > sys.maxunicode).any() or ((numbers >= 0xD800) & (numbers < 0xE000)).any():
        raise InputError.of_setting(
            key, "expected texts of Unicode's characters, got others; write the file again"
        )


def _multiplier(array: Any) -> float:
    number = np.asarray(array)
    if number.dtype.kind not in "fiu" or number.shape or not 0 < float(number) < np.inf:
        raise InputError.of_setting(
            "cosine_multiplier",
            f"expected one number above 0, got {_shown(number)}; give what logits are over cosine"
            " similarities, 100 for most CLIPs",
        )
    return float(number)


def _encoder(array: Any) -> str:
    text = np.asarray(array)
    _check_characters("encoder", text)
    if text.dtype.kind != "U" or text.shape or not str(text).isprintable():
        raise InputError.of_setting(
            "encoder", f"expected one line of text, got {_shown(text)}; give a name"
        )
    return str(text)


def _load(path: Path) -> Any:
    """Return the array of a `.npy`, or those of an `.npz` by name.

    Raises:
        InputError: it is neither, or damaged.
    """
    what = str(path)
    try:
        decoding.regular(path)
        with path.open("rb") as file:
            if not file.read(6).startswith(MAGIC):
                raise ValueError("it begins as neither .npy nor .npz does")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                return archive
            arrays = {}
            for name in archive.files:
                what = f"{path}, {name!r:.80}"
                arrays[name] = archive[name]
            return arrays
    except Exception as error:  # damaged archives raise many kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{what}: expected numbers or texts as numpy.savez writes them, got what cannot be read"
            f" ({' '.join(reason.split()):.100}); write it again, texts as numpy.array(names)"
        ) from error


def _shown(array: np.ndarray) -> str:
    if array.shape or array.dtype.kind == "O":
        return f"{array.dtype} {list(array.shape)}"
    return f"{array.item()!r:.40}"
