"""A learned prompt, apart from the classes it is used on: made, saved, loaded, applied."""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from coop_jax import methods
from coop_jax.clip import CLIP, Tokenizer, fingerprint
from coop_jax.clip.config import ViTConfig
from coop_jax.clip.tokenizer import clean
from coop_jax.data.examples import Dataset
from coop_jax.errors import InputError
from coop_jax.methods.base import readable
from coop_jax.prompts import files, hub, seen
from coop_jax.provenance import versions


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """What a method has learned, and all that it takes to use it.

    Attributes:
        method: a module of `coop_jax.methods`.
        settings: the method's settings, all of them.
        learned: the Learned variables by dotted path, e.g. "context", float32 or float16.
        backbone: what records call the CLIP it was learned with.
        fingerprint: `coop_jax.clip.fingerprint` of that CLIP.
        class_names: what it was learned on, in the order of the labels; the default classes.
        class_ids: what identifies these classes where names do not; mostly the names.
        training: a free JSON record: dataset, shots, seed, epochs, versions, accuracy, ...
        per_class: which of `learned` have a row per class.
    """

    method: str
    settings: dict[str, Any]
    learned: dict[str, np.ndarray]
    backbone: str
    fingerprint: str
    class_names: tuple[str, ...]
    class_ids: tuple[str, ...]
    training: dict[str, Any]
    per_class: tuple[str, ...] = ()

    @property
    def is_class_specific(self) -> bool:
        """Whether it serves the classes that it was learned on alone."""
        return bool(self.per_class)

    def for_classes(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        class_names: Sequence[str] | None = None,
        *,
        class_ids: Sequence[str] | None = None,
        repeated: Sequence[str] = (),
        backbone: str = "",
        shards: int = 1,
    ) -> Any:
        """The method with what it has learned, ready to evaluate on these classes.

        Args:
            clip: the CLIP that the prompt was learned with; only read, not kept.
            tokenizer: its tokenizer.
            class_names: one per label; by default the classes it was learned on.
            class_ids: what identifies these classes, where a class-specific prompt learned several
                of one name.
            repeated: class names that several labels may have.
            backbone: what an error calls `clip`.
            shards: into how many parts the classes are cut, for as many devices.

        Raises:
            InputError: another CLIP, class names that do not fit, or, for a class-specific prompt,
                classes that it did not learn.
        """
        self.check_backbone(clip, backbone)
        if class_names is None:
            class_names, class_ids = self.class_names, self.class_ids
        if tuple(class_names) == self.class_names:
            repeated = [name for name, count in Counter(self.class_names).items() if count > 1]
        values = self.learned
        if self.is_class_specific:
            rows = self._rows(tuple(class_names), class_ids)
            values = {
                name: array[rows] if name in self.per_class else array
                for name, array in self.learned.items()
            }
        method = methods.create(
            self.method,
            clip,
            tokenizer,
            class_names,
            self.settings,
            repeated=repeated,
            shards=shards,
        )
        _fill(method, values)
        return method

    def check_backbone(self, clip: CLIP, backbone: str = "") -> None:
        """Make sure that this is the CLIP the prompt was learned with.

        Raises:
            InputError: it is another; the line names both.
        """
        found = fingerprint(clip)
        if found != self.fingerprint:
            given = f"{backbone} ({_described(clip)}," if backbone else f"{_described(clip)} ("
            raise InputError(
                f"expected the CLIP that this prompt was learned with, {self.backbone} (fingerprint"
                f" {self.fingerprint[:8]}), got {given} fingerprint {found[:8]}); load"
                f" {self.backbone}, or learn a prompt for this one"
            )

    def _rows(self, class_names: tuple[str, ...], class_ids: Sequence[str] | None) -> list[int]:
        """Where the wanted classes stand among the learned ones."""
        if class_ids is None and class_names == self.class_names:
            class_ids = self.class_ids
        if class_ids is None:
            wanted, learned = map(_spelled, class_names), map(_spelled, self.class_names)
        else:
            wanted, learned = class_ids, self.class_ids
        places: dict[str, list[int]] = {}
        for row, key in enumerate(learned):
            places.setdefault(key, []).append(row)
        found = [places.get(key, []) for key in wanted]
        self._check_known(class_names, found)
        return [rows[0] for rows in found]

    def _check_known(self, class_names: tuple[str, ...], found: list[list[int]]) -> None:
        if len(found) != len(class_names):
            raise InputError(
                f"expected one of class_ids for each of {len(class_names)} class names, got"
                f" {len(found)}; give both in the same order"
            )
        pairs = list(zip(class_names, found, strict=True))
        unknown = [name for name, rows in pairs if not rows]
        if unknown:
            raise InputError(
                "expected some of the classes that this class-specific prompt was learned on"
                f" ({_some(self.class_names)}), got {len(unknown)} others ({_some(unknown)});"
                " name learned ones, or learn a shared context"
            )
        several = [name for name, rows in pairs if len(rows) > 1]
        if several:
            raise InputError(
                "expected class names that this class-specific prompt has once, got"
                f" {_some(several)}, which several of its classes have; give class_ids"
            )


def of(
    method: Any,
    *,
    name: str,
    settings: Mapping[str, Any],
    clip: CLIP,
    backbone: str,
    class_names: Sequence[str],
    class_ids: Sequence[str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Prompt:
    """The prompt that a method has learned.

    Args:
        method: the method, an NNX module, with replicated Learned variables.
        name: its name, a module of `coop_jax.methods`.
        settings: those it was made with; the others have their defaults.
        clip: the CLIP it was trained with.
        backbone: what records call that CLIP.
        class_names: of the labels it was trained on.
        class_ids: what identifies these classes; by default their names.
        training: a JSON record of how it was trained.

    Raises:
        InputError: the method has learned nothing.
    """
    flat = nnx.to_flat_state(nnx.state(method, methods.Learned))
    if not flat:
        raise InputError(
            f"expected a method that learns, got {name}, which has nothing to save;"
            " choose another, e.g. coop"
        )
    given = {key: value for key, value in settings.items() if key != "name"}
    return Prompt(
        method=name,
        settings={**methods.default_config(name), **given},
        learned={_dotted(path): np.array(variable[...]) for path, variable in flat},
        backbone=backbone,
        fingerprint=fingerprint(clip),
        class_names=tuple(class_names),
        class_ids=tuple(class_ids or class_names),
        training=dict(training or {}),
        per_class=tuple(
            _dotted(path) for path, variable in flat if variable.get_metadata().get("per_class")
        ),
    )


def training_record(
    config: Mapping[str, Any],
    *,
    dataset: Dataset,
    shots: int | None,
    seed: int,
    epochs: int | None,
) -> dict[str, Any]:
    """What a prompt says of how it was learned, with the digests of the images (`prompts.seen`).

    Args:
        config: the settings, as `coop_jax.config.default` has them.
        dataset: what it was learned on: the few images that were drawn.
        shots: per class; None for all.
        seed: of the draw, the initial context, the batches and the augmentation.
        epochs: None for a method that is not trained by steps.

    Raises:
        InputError: an image cannot be read any more.
    """
    is_closed = methods.is_closed_form(config["method"]["name"])
    learned_from = [dataset.train] if epochs is not None or is_closed else []
    learned_from += [dataset.val] if is_closed else []
    return {
        "dataset": dataset.full_name,
        "images": len(dataset.train),
        "shots": shots,
        "seed": seed,
        "epochs": epochs,
        **{key: config[key] for key in ("batch_size", "optimizer", "augmentation")},
        "dtype": config["clip"]["dtype"],
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seen.KEY: seen.digests(*learned_from),
    }


def save(prompt: Prompt, folder: str | Path) -> None:
    """Write a prompt into a new folder, as a whole or not at all.

    Raises:
        InputError: the folder holds something else, or cannot be written to; or the training record
            is not JSON.
    """
    record = {name: getattr(prompt, name) for name in files.FIELDS}
    files.write(Path(folder).expanduser(), record, prompt.learned)


def load(place: str | Path) -> Prompt:
    """A prompt from a folder or, where there is none of that name, from the Hugging Face hub.

    Args:
        place: a folder that `save` wrote, or a hub id such as "user/name".

    Raises:
        InputError: there is neither, or what is there is damaged, too new, or no prompt.
    """
    folder = Path(place).expanduser()
    if hub.is_id(str(place)) and not folder.exists():
        folder = hub.pull(str(place))
    record, tensors = files.read(folder)
    for name in ("class_names", "class_ids", "per_class"):
        record[name] = tuple(record[name])
    return Prompt(learned=tensors, **record)


def _fill(method: Any, values: Mapping[str, np.ndarray]) -> None:
    """Set the Learned variables of a method, all of them."""
    flat = nnx.to_flat_state(nnx.state(method, methods.Learned))
    expected = {_dotted(path): list(variable.shape) for path, variable in flat}
    got = {name: list(array.shape) for name, array in values.items()}
    if got != expected:
        raise InputError(
            f"expected learned variables of the shapes {expected}, as this CLIP, the method's"
            f" settings and the classes make them, got {got}; the prompt is damaged or of another"
            " version: fetch or learn it again"
        )
    filled = [
        (path, variable.replace(jax.device_put(values[_dotted(path)]))) for path, variable in flat
    ]
    nnx.update(method, nnx.from_flat_state(filled))


def _dotted(path: Sequence[Any]) -> str:
    return ".".join(map(str, path))


def _spelled(class_name: str) -> str:
    """A class name as the tokenizer reads it."""
    return clean(readable(class_name))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _described(clip: CLIP) -> str:
    vision = clip.config.vision
    kind = "a ResNet"
    if isinstance(vision, ViTConfig):
        kind = f"a ViT of patches of {vision.patch_size}"
    width = clip.config.text.transformer.width
    return f"{kind} on {vision.image_size} pixels with a text tower of width {width}"
