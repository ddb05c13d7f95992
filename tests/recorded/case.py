"""A recorded case, and the comparison of a whole trajectory of training."""

import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods, optim, train
from coop_jax.chunks import Batches
from coop_jax.methods import Images, Split, Stage

CHECKS: dict[str, Callable[["Case"], None]] = {}


def checks(*names: str) -> Callable[[Callable[["Case"], None]], Callable[["Case"], None]]:
    """Register what compares the cases of these methods, as `meta["method"]` calls them."""

    def register(check: Callable[["Case"], None]) -> Callable[["Case"], None]:
        CHECKS.update(dict.fromkeys(names, check))
        return check

    return register


def known(method: str) -> Callable[["Case"], None] | None:
    """Return what compares the cases of a method; None where the method is not there yet."""
    return CHECKS.get(method)


def relative(got: Any, expected: Any) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


class Parameter(NamedTuple):
    """Where a recorded parameter is here: a dotted path, an index into it, and a transposition."""

    path: str
    at: Any = ()
    transposed: bool = False


class Case:
    """A recorded case: arrays, settings (`meta`), the CLIP and the tokenizer, the devices."""

    def __init__(self, path: Path, tokenizer: Path, mesh: Any):
        self.path, self.mesh = path, mesh
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files if name != "meta"}
            self.meta = json.loads(str(file["meta"]))
        self._tokenizer = tokenizer
        self._clip: Any = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays of a group, e.g. "init", by what follows the slash."""
        start = f"{prefix}/"
        return {name[len(start) :]: a for name, a in self.arrays.items() if name.startswith(start)}

    @property
    def clip(self) -> Any:
        """The CLIP that the case was recorded with."""
        return self._loaded()[0]

    @property
    def tokenizer(self) -> Any:
        """OpenAI's tokenizer."""
        return self._loaded()[1]

    def _loaded(self) -> tuple[Any, Any]:
        if self._clip is None:
            name = self.meta.get("clip", "clip_tiny_vit.safetensors")
            self._clip = clip_package.load(str(self._folder() / name), tokenizer=self._tokenizer)
        return self._clip

    def _folder(self) -> Path:
        """Return the folder of the CLIP: the named one, e.g. "shared/golden", or the case's own."""
        own = self.path.parent.parent
        location = self.meta.get("clip_location", "").partition(" ")[0]
        named = own.parent.parent / location
        return named if location and named.is_dir() else own

    def stands_for_clip(self, space: clip_package.FeatureSpace) -> None:
        """Use a space of given features instead of a CLIP."""
        self._clip = space, None

    def create(self, name: str, classes: Any = None, **settings: Any) -> Any:
        """Return a method for the case's classes (or others), with its CLIP."""
        classes = self.meta["classnames"] if classes is None else classes
        given = {"template": self.meta.get("bank_template", "a photo of a {}.")}
        return methods.create(name, self.clip, self.tokenizer, classes, settings, **given)

    def pixels(self, name: str = "images") -> np.ndarray:
        """Return preprocessed images as `[..., height, width, 3]`."""
        return np.moveaxis(self[name], -3, -1)

    def evaluated(self, count: int) -> list[slice]:
        """Return which of so many images were evaluated together; where nothing is said, all."""
        size = self.meta.get("eval_batch", count)
        return [slice(start, start + size) for start in range(0, count, size)]

    def features(self, name: str = "images") -> np.ndarray:
        """Return the frozen tower's unnormalised features of preprocessed images."""
        pixels = self.pixels(name)
        flat = self.clip.encode_image(jnp.asarray(pixels.reshape(-1, *pixels.shape[-3:])))
        return np.asarray(flat).reshape(*pixels.shape[:-3], -1)


def given_case(case: Case, classes: int, texts: np.ndarray, scale: float = 100.0) -> dict[str, Any]:
    """Return what `methods.create` takes, after the method's name, where features are given.

    Args:
        case: of given features.
        classes: their number.
        texts: text features `[classes, embedding]`.
        scale: of the logits.
    """
    space = clip_package.FeatureSpace(texts.shape[-1], scale)
    case.stands_for_clip(space)
    names = tuple(f"class {label}" for label in range(classes))
    return {"clip": space, "tokenizer": None, "classes": names, "texts": texts[None]}


def split(labels: np.ndarray, images: Images, augmented: Images | None = None) -> Split:
    """Return images in memory as `prepare` sees them.

    Args:
        labels: of every image.
        images: under the test transform.
        augmented: views `[views, images, ...]`; epoch e sees view e, and after the last the first.
    """

    def encode(requests: np.ndarray, is_augmented: bool) -> Images:
        if not is_augmented or augmented is None:
            return jax.tree.map(lambda array: array[requests[:, 1]], images)
        return jax.tree.map(
            lambda array: array[requests[:, 0] % len(array), requests[:, 1]], augmented
        )

    return Split(np.asarray(labels, np.int32), encode)


def trajectory(
    case: Case,
    method: Any,
    parameters: Mapping[str, Parameter],
    stage: Stage,
    images_of: Callable[[np.ndarray], Images],
    *,
    terms: Mapping[str, str] | None = None,
    epochs: int | None = None,
    tolerance: float = 1e-4,
    start: str = "init",
    differentiated: str | None = None,
    rates: np.ndarray | None = None,
) -> None:
    """Train through all recorded steps and compare rates, losses, terms and parameters.

    Args:
        case: has order, lr, loss, labels or train_labels, `init/*`, `step1/*`, `mid/*`, `final/*`.
        method: what is trained; its parameters are set to the recorded first ones.
        parameters: by recorded name, where each is here.
        stage: with the optimizer of the case.
        images_of: from requests (epoch, example) to images; the epoch is the step's number.
        terms: by recorded array, the term of the loss it is (weighted as recorded).
        epochs: of the schedule; by default the case's.
        tolerance: relative, of parameters and losses.
        start: the group of the first values.
        differentiated: the term that `loss` recorded, where it is not the sum of all.
        rates: of every step, where the stage's optimizer does not have them all.
    """
    order = case["order"]
    epochs = epochs or case.meta["epochs"]
    if rates is None:
        rates = optim.learning_rates(stage.optimizer, epochs, len(order) // epochs)
        np.testing.assert_allclose(rates, case["lr"].reshape(len(order), -1)[:, 0], rtol=1e-6)
    for name, first in case.under(start).items():
        set_value(method, parameters[name], first)
    ends = (
        np.arange(len(order))
        if stage.average is None
        else np.arange(len(order)) // (len(order) // epochs)
    )
    labels = case["labels" if "labels" in case else "train_labels"]
    batches = Batches(order, ends, rates, np.asarray(labels, np.int32))
    recorded = {1: "step1", len(order) // 2 + 1: "mid", len(order): "final"}
    losses: list[float] = []
    values: dict[str, list[float]] = {}
    run = train.Run(method, batches, images_of)
    for [progress] in train.fit([run], case.clip, stage, case.mesh, images_per_chunk=1):
        total = progress.terms[differentiated] if differentiated else progress.losses
        losses.extend(total)
        for name, term in progress.terms.items():
            values.setdefault(name, []).extend(term)
        if progress.done in recorded:
            _compare(case, method, parameters, recorded[progress.done], tolerance)
    np.testing.assert_allclose(losses, case["loss"], rtol=tolerance)
    for name, term in (terms or {}).items():
        np.testing.assert_allclose(values[term], case[name], rtol=tolerance, atol=1e-6)


def compare_logits(case: Case, method: Any, images: Images, name: str = "eval_logits") -> None:
    """Compare the method's logits of all images with the recorded ones."""
    parts = [
        jax.tree.map(lambda array, some=some: array[some], images)
        for some in case.evaluated(len(jax.tree.leaves(images)[0]))
    ]
    logits = np.concatenate([evaluate.logits(method, case.clip, p, case.mesh) for p in parts])
    scale = np.abs(case[name]).max()
    assert relative(logits, case[name]) < (1e-4 if scale > 50 else 3e-5), name


def value(method: Any, parameter: Parameter) -> np.ndarray:
    """Return a parameter as it is recorded."""
    array = np.asarray(operator.attrgetter(parameter.path)(method)[...])[parameter.at]
    return array.T if parameter.transposed else array


def set_value(method: Any, parameter: Parameter, recorded: np.ndarray) -> None:
    """Set a parameter to what is recorded."""
    variable = operator.attrgetter(parameter.path)(method)
    recorded = recorded.T if parameter.transposed else recorded
    current = np.array(variable[...])
    assert current[parameter.at].shape == recorded.shape, parameter
    current[parameter.at] = recorded
    variable[...] = jnp.asarray(current)


def _compare(
    case: Case, method: Any, parameters: Mapping[str, Parameter], group: str, tolerance: float
) -> None:
    """Compare parameters, relative to their size."""
    for name, expected in case.under(group).items():
        got = value(method, parameters[name])
        assert relative(got, expected) < tolerance, (group, name)
