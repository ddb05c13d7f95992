"""A learned prompt, apart from the classes it is used on: made, saved, loaded, applied."""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import FeatureSpace, Tokenizer, fingerprint
from coop_jax.clip.config import ViTConfig
from coop_jax.errors import InputError
from coop_jax.prompts import files, hub, seen
from coop_jax.provenance import versions

if TYPE_CHECKING:
    from coop_jax.run import TrainingRun

SPACE = "given/"
"""The beginning of the names that the tensors of `Prompt.space` have in a file."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """All that a method has learned, and all that it takes to use it.

    Attributes:
        method: a module of `coop_jax.methods`.
        settings: the method's settings, all of them.
        learned: the Learned variables by dotted path, e.g. "context", float32 or float16.
        backbone: what records call the CLIP it was learned with.
        fingerprint: `coop_jax.clip.fingerprint` of that CLIP.
        classes: what it was learned on, in the order of the labels; the default classes.
        training: a free JSON record: dataset, shots, seed, epochs, versions, accuracy, ...
        per_class: which of `learned` have a row per class.
        space: with features that were given instead of a CLIP, the `texts` of the classes
            `[templates, classes, embedding]` and the `logit_scale`, a logarithm as a CLIP's.
    """

    method: str
    settings: dict[str, Any]
    learned: dict[str, np.ndarray]
    backbone: str
    fingerprint: str
    classes: Classes
    training: dict[str, Any]
    per_class: tuple[str, ...] = ()
    space: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def is_class_specific(self) -> bool:
        """True where it serves the classes that it was learned on alone."""
        return bool(self.per_class)

    def for_classes(
        self,
        clip: Any,
        tokenizer: Tokenizer | None,
        classes: Classes | None = None,
        *,
        texts: np.ndarray | None = None,
        backbone: str = "",
        shards: int = 1,
    ) -> Any:
        """Return the method with what it has learned, ready to evaluate on these classes.

        Args:
            clip: the CLIP that the prompt was learned with; only read, not kept.
            tokenizer: its tokenizer.
            classes: by default those it was learned on.
            texts: their given text features, which do not count with a CLIP; by default those that
                it was saved with.
            backbone: what an error calls `clip`.
            shards: into how many parts the classes are cut, for as many devices.

        Raises:
            InputError: another CLIP, class names that do not fit, or, for a class-specific prompt,
                classes that it did not learn.
        """
        self.check_backbone(clip, backbone)
        classes = self.classes if classes is None else classes
        if classes.names == self.classes.names:
            classes = dataclasses.replace(classes, repeated=classes.names)
        wanted = classes.moved_from(self.classes)
        texts = texts if self.space and texts is not None else self.texts_of(wanted)
        method = methods.create(
            self.method, clip, tokenizer, wanted, self.settings, texts=texts, shards=shards
        )
        per_class = per_class_of(method)
        if set(per_class) != set(self.per_class):
            raise InputError(
                f"expected {', '.join(per_class) or 'nothing'} with a row per class, as the"
                f" settings make the method, got {', '.join(self.per_class) or 'nothing'}; the"
                " prompt is damaged: fetch or learn it again"
            )
        return methods.fill(method, self.learned, self.classes, wanted)

    def texts_of(self, wanted: Classes) -> np.ndarray | None:
        """Return the given text features of these classes; None with a CLIP."""
        if not self.space:
            return None
        places = wanted.places_in(self.classes)
        unknown = [name for name, at in zip(wanted.names, places, strict=True) if at is None]
        if unknown:
            raise InputError(
                f"expected classes that text features were given of ({_some(self.classes.names)}),"
                f" got others ({_some(unknown)}); name those, or --classes dataset:FILE.npz"
            )
        return self.space["texts"][:, np.asarray(places, int)]

    def check_backbone(self, clip: Any, backbone: str = "") -> None:
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


def of(
    method: Any,
    *,
    name: str,
    settings: Mapping[str, Any],
    clip: Any,
    backbone: str,
    classes: Classes,
    training: Mapping[str, Any] | None = None,
    texts: np.ndarray | None = None,
) -> Prompt:
    """The prompt that a method has learned.

    Args:
        method: the method, an NNX module, with replicated Learned variables.
        name: its name, a module of `coop_jax.methods`.
        settings: those it was made with; the others have their defaults.
        clip: the CLIP it was trained with.
        backbone: what records call that CLIP.
        classes: those it was trained on.
        training: a JSON record of how it was trained.
        texts: the given text features of the classes; None with a CLIP.

    Raises:
        InputError: the method has learned nothing.
    """
    variables = methods.saved(method)
    if not variables:
        raise InputError(
            f"expected a method that learns, got {name}, which has nothing to save;"
            " choose another, e.g. coop"
        )
    given = {key: value for key, value in settings.items() if key != "name"}
    return Prompt(
        method=name,
        settings={**methods.default_config(name), **given},
        learned={name: np.array(variable[...]) for name, variable in variables.items()},
        backbone=backbone,
        fingerprint=fingerprint(clip),
        classes=classes,
        training=dict(training or {}),
        per_class=per_class_of(method),
        space={}
        if texts is None
        else {"texts": texts, "logit_scale": np.asarray(clip.logit_scale[...])},
    )


def per_class_of(method: Any) -> tuple[str, ...]:
    """Return the names of a method's saved variables that have a row per class."""
    variables = methods.saved(method).items()
    return tuple(name for name, value in variables if value.get_metadata().get("per_class"))


def of_run(run: "TrainingRun", backbone: str) -> Prompt:
    """Return what a run has learned, with the record of how.

    Args:
        run: finished.
        backbone: what records call the CLIP.

    Raises:
        InputError: the method has learned nothing, or an image cannot be read any more.
    """
    config, dataset = run.frozen.config, run.dataset
    return of(
        run.method,
        name=config["method"]["name"],
        settings=config["method"],
        clip=run.frozen.clip,
        backbone=backbone,
        classes=dataset.classes,
        training=training_record(run),
        texts=dataset.texts,
    )


def training_record(run: "TrainingRun") -> dict[str, Any]:
    """Return how something was learned, with digests of the images (`prompts.seen`).

    Raises:
        InputError: an image cannot be read any more.
    """
    config = run.frozen.config
    return {
        "dataset": run.dataset.full_name,
        "images": len(run.dataset.train),
        "shots": run.shots,
        "seed": run.seed,
        "epochs": run.epochs,
        **{key: config[key] for key in ("batch_size", "optimizer", "augmentation")},
        "dtype": config["clip"]["dtype"],
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seen.KEY: seen.digests(*run.learned_from),
    }


def save(prompt: Prompt, folder: str | Path) -> None:
    """Write a prompt into a new folder, as a whole or not at all.

    Raises:
        InputError: the folder holds something else, or cannot be written to; or the training record
            is not JSON.
    """
    classes = {"class_names": prompt.classes.names, "class_ids": prompt.classes.ids}
    record = {
        name: classes[name] if name in classes else getattr(prompt, name) for name in files.FIELDS
    }
    space = {SPACE + name: array for name, array in prompt.space.items()}
    files.write(Path(folder).expanduser(), record, {**prompt.learned, **space})


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
    classes = Classes(record.pop("class_names"), record.pop("class_ids"))
    record["per_class"] = tuple(record["per_class"])
    names = [name for name in tensors if name.startswith(SPACE)]
    space = {name.removeprefix(SPACE): tensors.pop(name) for name in names}
    shapes = {name: array.shape for name, array in space.items()}
    if shapes and (
        shapes.keys() != {"texts", "logit_scale"}
        or shapes["texts"][1:-1] != (len(classes),)
        or shapes["logit_scale"] != ()
    ):
        raise InputError(
            f"{folder}: expected text features [templates, {len(classes)}, embedding] and a logit"
            f" scale, got {shapes}; fetch or learn it again"
        )
    return Prompt(learned=tensors, classes=classes, space=space, **record)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def _described(clip: Any) -> str:
    if isinstance(clip, FeatureSpace):
        return f"a space of {clip.config.embedding}-dimensional features"
    vision = clip.config.vision
    kind = "a ResNet"
    if isinstance(vision, ViTConfig):
        kind = f"a ViT of patches of {vision.patch_size}"
    width = clip.config.text.transformer.width
    return f"{kind} on {vision.image_size} pixels with a text tower of width {width}"
