"""All that a method has learned, without the CLIP: saved, loaded, used on any classes."""

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import Tokenizer, fingerprint
from coop_jax.data.listing import some
from coop_jax.errors import InputError
from coop_jax.frozen import said_of
from coop_jax.provenance import versions
from coop_jax.saved import files, hub, seen

if TYPE_CHECKING:
    from coop_jax.run import TrainingRun


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """All that a method has learned, and all that it takes to use it.

    Attributes:
        method: a module of `coop_jax.methods`.
        settings: the method's settings, all of them.
        learned: the Learned and Kept variables by dotted path, e.g. "context"; of the types
            `files.DTYPES`.
        backbone: what records call the CLIP it was learned with.
        fingerprint: `coop_jax.clip.fingerprint` of that CLIP.
        classes: what it was learned on, in the order of the labels; the default classes.
        training: a free JSON record: dataset, shots, seed, epochs, versions, accuracy, ...
        per_class: which of `learned` have a row per class and none for others.
        template: the hand-crafted prompt of the dataset it was learned on, for methods whose
            settings name none.
        space: with features that were given instead of a CLIP, the `texts` of the classes
            `[templates, classes, embedding]` and the `logit_scale`, a logarithm as a CLIP's.
        code: SHA-256 of the method's file, where that is not of this package.
    """

    method: str
    settings: dict[str, Any]
    learned: dict[str, np.ndarray]
    backbone: str
    fingerprint: str
    classes: Classes
    training: dict[str, Any]
    per_class: tuple[str, ...] = ()
    template: str = methods.Given.template
    space: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    code: str = ""

    @classmethod
    def of(
        cls,
        method: Any,
        *,
        name: str,
        settings: Mapping[str, Any],
        clip: Any,
        backbone: str,
        classes: Classes,
        training: Mapping[str, Any] | None = None,
        template: str = methods.Given.template,
        texts: np.ndarray | None = None,
    ) -> Self:
        """Return what a method has learned.

        Args:
            method: the method, an NNX module, whose saved variables are replicated.
            name: its name, a module of `coop_jax.methods`.
            settings: those it was made with; the others have their defaults.
            clip: the CLIP it was trained with.
            backbone: what records call that CLIP.
            classes: those it was trained on.
            training: a JSON record of how it was trained.
            template: the hand-crafted prompt that the method was given.
            texts: the given text features of the classes; None with a CLIP.

        Raises:
            InputError: it has rows of classes that it was not trained on.
        """
        variables = methods.saved(method)
        if not all(classes.seen) and any(
            variable.get_metadata().get("per_class") for variable in variables.values()
        ):
            new = [
                label for label, seen in zip(classes.names, classes.seen, strict=True) if not seen
            ]
            raise InputError(
                f"expected the classes that {name} has learned, got {len(new)} others"
                f" ({some(new)}); save it with those, and name others when it is loaded"
            )
        chosen = {key: value for key, value in settings.items() if key != "name"}
        return cls(
            method=name,
            settings={**methods.default_config(name), **chosen},
            learned={path: np.array(variable[...]) for path, variable in variables.items()},
            backbone=backbone,
            fingerprint=fingerprint(clip),
            classes=classes,
            training=dict(training or {}),
            per_class=per_class_of(method),
            template=template,
            code=methods.code_of(name),
            space={}
            if texts is None
            else {"texts": texts, "logit_scale": np.asarray(clip.logit_scale[...])},
        )

    @classmethod
    def of_run(cls, run: "TrainingRun", backbone: str) -> Self:
        """Return what a run has learned, with the record of how.

        Args:
            run: finished.
            backbone: what records call the CLIP.

        Raises:
            InputError: an image cannot be read any more.
        """
        config, dataset = run.frozen.config, run.dataset
        return cls.of(
            run.method,
            name=config["method"]["name"],
            settings=config["method"],
            clip=run.frozen.clip,
            backbone=backbone,
            classes=dataset.classes,
            training=training_record(run),
            template=dataset.templates[0],
            texts=dataset.texts,
        )

    @classmethod
    def is_at(cls, folder: Path) -> bool:
        """Tell whether a folder holds what a method has learned, as a whole."""
        with contextlib.suppress(InputError):
            return bool(cls.load(folder.absolute()))
        return False

    @classmethod
    def load(cls, place: str | Path) -> Self:
        """Return what is in a folder or, where there is none of that name, on the Hugging Face hub.

        Args:
            place: a folder that `save` wrote, or a hub id such as "user/name".

        Raises:
            InputError: there is neither, or what is there is damaged, too new, or something else.
        """
        folder = Path(os.path.expanduser(place))
        if hub.is_id(str(place)) and not folder.exists():
            folder = hub.pull(str(place))
        record, learned = files.read(folder)
        _check_code(record["method"], folder)
        classes = Classes(record.pop("class_names"), record.pop("class_ids"))
        record["per_class"] = tuple(record["per_class"])
        if unknown := set(record["per_class"]) - learned.keys():
            raise InputError(
                f"{folder}: expected a row per class in what was learned"
                f" ({', '.join(learned):.200}), got it of {min(unknown)!r:.80}; fetch it again"
            )
        names = [name for name in learned if name.startswith(files.SPACE)]
        space = {name.removeprefix(files.SPACE): learned.pop(name) for name in names}
        shapes = {name: array.shape for name, array in space.items()}
        if shapes and (
            shapes.keys() != {"texts", "logit_scale"}
            or shapes["texts"][1:-1] != (len(classes),)
            or shapes["logit_scale"] != ()
        ):
            raise InputError(
                f"{folder}: expected text features [templates, {len(classes)}, embedding] and a"
                f" logit scale, got {shapes}; fetch or learn it again"
            )
        return cls(learned=learned, classes=classes, space=space, **record)

    def save(self, folder: str | Path) -> None:
        """Write all of it into a new folder, as a whole or not at all.

        Raises:
            InputError: the folder holds something else or cannot be written to, the training record
                is not JSON, or what was learned is of another type than `files.DTYPES`.
        """
        classes = {"class_names": self.classes.names, "class_ids": self.classes.ids}
        record = {**vars(self), **classes}
        kept = {name: record[name] for name in files.FIELDS}
        space = {files.SPACE + name: array for name, array in self.space.items()}
        files.write(Path(os.path.expanduser(folder)), kept, {**self.learned, **space})

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
            clip: the CLIP that it was learned with; only read, not kept.
            tokenizer: its tokenizer.
            classes: by default those it was learned on.
            texts: their given text features, which do not count with a CLIP; by default those that
                were saved.
            backbone: what an error calls `clip`.
            shards: into how many parts the classes are cut, for as many devices.

        Raises:
            InputError: another CLIP, class names that do not fit, or classes that it
                did not learn where it has a row per class.
        """
        self.check_backbone(clip, backbone)
        if (code := methods.code_of(self.method)) != self.code:
            raise InputError(
                f"expected {self.method} as it was when this was learned (SHA-256 {self.code:.8}),"
                f" got other code ({code:.8}); restore the file, or learn again"
            )
        classes = self.classes if classes is None else classes
        if classes.names == self.classes.names:
            classes = dataclasses.replace(classes, repeated=classes.names)
        wanted = classes.moved_from(self.classes)
        texts = texts if self.space and texts is not None else self.texts_of(wanted)
        method = methods.create(
            self.method,
            clip,
            tokenizer,
            wanted,
            self.settings,
            template=self.template,
            texts=texts,
            shards=shards,
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
                f"expected classes that text features were given of ({some(self.classes.names)}),"
                f" got others ({some(unknown)}); name those, or --classes dataset:FILE.npz"
            )
        return self.space["texts"][:, np.asarray(places, int)]

    def check_backbone(self, clip: Any, backbone: str = "") -> None:
        """Make sure that this is the CLIP it was learned with.

        Raises:
            InputError: it is another; the line names both.
        """
        if (got := fingerprint(clip)) != self.fingerprint:
            raise InputError(
                f"expected the CLIP that this was learned with, {self.backbone} (fingerprint"
                f" {self.fingerprint:.8}), got {backbone or 'another'} (fingerprint {got:.8}); load"
                f" {self.backbone}, or learn with this one"
            )


def _check_code(method: str, folder: Path) -> None:
    """Refuse a record that names code which came with it; a user's own lies elsewhere."""
    if method.endswith(".py") and "\0" not in method:
        path = os.path.realpath(os.path.expanduser(method))
        if Path(path).is_relative_to(os.path.realpath(folder)):
            raise InputError(
                f"{folder}: expected a method of this package or a file of your own, got"
                f" {method!r:.80}, which came with what was saved and was not run; move the file"
                " elsewhere if you trust it, and learn with it"
            )


def per_class_of(method: Any) -> tuple[str, ...]:
    """Return the names of a method's saved variables that only the classes it learned have."""
    metadata = {name: value.get_metadata() for name, value in methods.saved(method).items()}
    return tuple(
        name
        for name, said in metadata.items()
        if said.get("per_class") and said.get("unseen", "refuse") == "refuse"
    )


def training_record(run: "TrainingRun") -> dict[str, Any]:
    """Return how something was learned, with digests of the images (`saved.seen`).

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
        "uses": sorted(run.method.uses),
        **{key: config[key] for key in ("batch_size", "optimizer", "augmentation")},
        "dtype": config["clip"]["dtype"],
        **said_of(config["clip"]),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seen.KEY: seen.digests(*run.learned_from),
    }
