"""Learn from labelled images and classify others: fit, predict, score, save and load."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Float32

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import source
from coop_jax.data import catalog, features, few_shot, memory, sampling
from coop_jax.data.examples import Dataset, Examples
from coop_jax.data.memory import ImagesOrFeatures, Labels
from coop_jax.errors import InputError
from coop_jax.frozen import Frozen
from coop_jax.predictor import Predictions, Predictor, check_alone, softmax
from coop_jax.run import Losses, TrainingRun, learn
from coop_jax.saved import Saved, seen, training_record
from coop_jax.saved.use import apply, warn_of_embedded_clip
from coop_jax.terminal import count_images

DEFAULT = config_module.default()
"""The official settings (coop_protocol sections 3 to 6)."""

CLIP = "ViT-B/16"
"""The CLIP where none is named."""

PathLike = str | os.PathLike[str]


class Learner:
    """A frozen CLIP and a method that learns from a few labelled images.

    Args:
        clip: "tiny", a backbone of the papers, a hub id, a folder or a file, as
            `coop_jax.clip.load` takes it; none is loaded where features are given.
        method: a module of `coop_jax.methods`; "zero_shot" learns nothing, and `fit` notes the
            classes alone.
        settings: those of the method that differ from its `default_config()`, e.g. {"n_ctx": 4}.
        shots: training images per class, drawn as CoOp's code draws them; None for all there are.
        epochs: None for the method's own; 0, and None for CoOp, for the CoOp paper's number: 50 for
            1 shot, 100 for 2 and 4, 200 above. Where `shots` is None, the largest class has the
            shots: name fewer epochs if that is many.
        seed: of the draw, the initial context, the batches and the augmentation.
        batch_size: training images per step; None for the method's own, CoOp's 32.
        learning_rate: the highest; None for the method's own, CoOp's 0.002.
        optimizer: other settings of `optim.OptimizerConfig`, e.g. {"warmup_epochs": 0}.
        augmentation: what differs from the official one: "scale" and "ratio", the smallest and
            largest area and aspect ratio of random crops; "flip", the probability of a horizontal
            flip.
        dtype: of the CLIP: "float32", "bfloat16" or "float16".
        tokenizer: folder of the tokenizer files, where they do not lie beside the weights.
        activation, heads: of a CLIP that is a file without a config, as `coop_jax.clip.load` has
            them.
        data_dir: where datasets that are named lie; by default TFDS's folder.
        encode_batch_size: images that the frozen tower takes at once.
        feature_cache: a folder that keeps the features of training images for later fits.

    Attributes:
        classes_: class names, in the order of the columns of `predict_proba`; like the others,
            after `fit` or `load`.
        method_: the method, an NNX module, with what it has learned.
        clip_: the frozen CLIP; the last one loaded is shared by all classifiers that name it. Of
            given features a `coop_jax.clip.features.FeatureSpace`.
        tokenizer_: its tokenizer, if any.
        training_: how it was trained, as the saved record has it.
        losses_: the loss of every training step; after `fit` alone.
    """

    def __init__(
        self,
        clip: PathLike = CLIP,
        *,
        method: str = methods.DEFAULT,
        settings: Mapping[str, Any] | None = None,
        shots: int | None = 16,
        epochs: int | None = None,
        seed: int = 1,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        optimizer: Mapping[str, Any] | None = None,
        augmentation: Mapping[str, Any] | None = None,
        dtype: str = DEFAULT["clip"]["dtype"],
        tokenizer: PathLike = "",
        activation: str = "",
        heads: Sequence[int] = (),
        data_dir: PathLike = "",
        encode_batch_size: int = DEFAULT["encode_batch_size"],
        feature_cache: PathLike = "",
    ):
        self.clip = clip
        self.method = method
        self.settings = settings
        self.shots = shots
        self.epochs = epochs
        self.seed = seed
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.augmentation = augmentation
        self.dtype = dtype
        self.tokenizer = tokenizer
        self.activation = activation
        self.heads = heads
        self.data_dir = data_dir
        self.encode_batch_size = encode_batch_size
        self.feature_cache = feature_cache

    def fit(
        self,
        images: PathLike | Dataset | ImagesOrFeatures,
        labels: Labels | None = None,
        *,
        class_names: PathLike | Sequence[str] | None = None,
        text_features: Float[np.ndarray, "*templates classes embedding"] | None = None,
    ) -> Self:
        """Learn from the beginning, whatever was learned before.

        Args:
            images: a dataset, whose training images are used: a folder, a `.csv`, a `.json`, an
                `.npz` of features or a name of the catalogue, as `coop_jax.data.catalog.load` takes
                it, or what it returns. Or a list of images: paths, PIL images or uint8 arrays
                [height, width, 3]; or an array [images, height, width, 3]. Or, with
                `text_features`, their features [images, embedding], floating-point.
            labels: with images, a class name per image, or its place in `class_names`.
            class_names: with images, the classes in the order of `classes_`, by default sorted;
                with a folder, `.csv` or `.json`, a file that names the classes.
            text_features: with features, those of hand-crafted prompts, in the order of `classes_`.

        Raises:
            InputError: a setting, image, label, class name or feature that will not do.
        """
        config, seed = self._config(), config_module.whole("seed", self.seed, 0, sampling.LAST_SEED)
        dataset = self._training_set(images, labels, class_names, text_features)
        if dataset.texts is not None:
            self._check_unused(config, dataset.name)
        warn_of_embedded_clip(dataset.space or config["clip"]["name"], dataset.name)
        whole, dataset = dataset, few_shot.draw(dataset, config["sampling"], self.shots, seed)
        if self.shots is not None:
            few_shot.warn_about_short_classes(dataset, self.shots)
        frozen = Frozen(config, dataset)
        run = TrainingRun(frozen, dataset, self.shots, seed, unlabeled=whole.train)
        losses = Losses()
        with count_images(run.images, f"{self.method}: images seen") as run.tell:
            learn([run], [losses])
        record = training_record(run)
        self.losses_ = losses.values
        self._settings = config["method"]
        self._template, self._texts = dataset.templates[0], dataset.texts
        self._backbone = dataset.space or source.backbone(config["clip"]["name"])
        return self._have(run.method, frozen.clip, frozen.tokenizer, dataset.classes, record)

    def predict(self, images: ImagesOrFeatures) -> np.ndarray:
        """The class name of every image, as `classes_` has it.

        Raises:
            InputError: as `logits`.
        """
        return self._fitted().classes_[self.logits(images).argmax(axis=1)]

    def predict_proba(self, images: ImagesOrFeatures) -> Float32[np.ndarray, "images classes"]:
        """Every class's probability: the softmax of `logits`.

        Raises:
            InputError: as `logits`.
        """
        return softmax(self.logits(images))

    def logits(self, images: ImagesOrFeatures) -> Float32[np.ndarray, "images classes"]:
        """The method's logits under the test transform.

        Args:
            images: a list, as `fit` takes them.

        Raises:
            InputError: before `fit`; or images that are none or cannot be read, named all at once.
        """
        return self._fitted()._predictor.logits(images)

    def predict_many(self, images: ImagesOrFeatures | Examples) -> Predictions:
        """The probabilities of those images that can be read, and what is wrong with the others.

        Args:
            images: a list, as `fit` takes them, or a split of a dataset.

        Raises:
            InputError: before `fit`, or what is given are no images.
        """
        return self._fitted()._predictor.predict(images)

    def score(
        self,
        images: PathLike | Dataset | ImagesOrFeatures,
        labels: Labels | None = None,
        sample_weight: Float[np.ndarray, " images"] | None = None,
        *,
        class_names: PathLike | None = None,
    ) -> float:
        """The share of images that are classified rightly, from 0 to 1.

        Args:
            images: as `fit` takes them; of a dataset the test images are used, but for those that
                this was learned from, whose number is logged. Of images that are given all count.
            labels: with images, a class name per image, or its place in `classes_`.
            sample_weight: how much each image counts; equally by default.
            class_names: with a folder, `.csv` or `.json`, the file that names its classes.

        Raises:
            InputError: as `logits`; labels of other classes than `classes_`; weights that are not
                one number per image, none negative and not all zero; or all images were used.
        """
        names = self._fitted().classes_.tolist()
        if isinstance(images, str | os.PathLike | Dataset):
            memory.refuse_labels(labels)
            dataset = self._open(images, class_names)
            dataset.check_space(self._backbone)
            warn_of_embedded_clip(self._backbone, dataset.name)
            examples, ids = dataset.test, np.asarray(dataset.classes.ids)
            right = memory.label_numbers(ids[examples.labels], self._classes.ids)
        else:
            given = self._predictor.examples(images, split="test")
            examples = memory.labelled(given, memory.required(labels), names)
            right = examples.labels
        weights = memory.checked_weights(sample_weight, len(right))
        chosen = seen.to_count(self.training_, examples, leave_out=labels is None)
        if weights is not None:
            weights = memory.checked_weights(weights[chosen], len(chosen))
        predicted = self._predictor.logits_of(examples.subset(chosen)).argmax(axis=1)
        return float(np.average(predicted == right[chosen], weights=weights))

    def save(self, folder: PathLike) -> None:
        """Write what was learned into a new folder, as `Saved.save` does.

        Raises:
            InputError: before `fit`, or the folder will not do.
        """
        self._fitted()
        learned = Saved.of(
            self.method_,
            name=self._settings["name"],
            settings=self._settings,
            clip=self.clip_,
            backbone=self._backbone,
            classes=self._classes,
            training=self.training_,
            template=self._template,
            texts=self._texts,
        )
        learned.save(Path(folder))

    @classmethod
    def load(
        cls,
        place: PathLike,
        clip: PathLike | None = None,
        class_names: Sequence[str] | None = None,
        **parameters: Any,
    ) -> Self:
        """A classifier with what was saved.

        Args:
            place: a folder that `save` wrote, or a hub id.
            clip: the CLIP that it was learned with, where that has another name or place here.
            class_names: the classes to tell apart; by default those that it was learned on.
            parameters: others of the constructor, e.g. `dtype`.

        Raises:
            InputError: nothing saved there, another CLIP, class names that do not fit, or a
                parameter that there is not or that was saved.
        """
        given = ("clip", "method", "settings")
        known = [name for name in inspect.signature(cls).parameters if name not in given]
        if unknown := [name for name in parameters if name not in known]:
            raise InputError(
                f"expected parameters among {', '.join(known)}, got {', '.join(unknown)}; leave out"
                " what is not among them (method and settings are what was saved)"
            )
        learned = Saved.load(config_module.text("place", place))
        classifier = cls(
            clip or (CLIP if learned.space else learned.backbone),
            method=learned.method,
            settings=learned.settings,
            **parameters,
        )
        config = classifier._config()["clip"]
        chosen = None if class_names is None else Classes(memory.checked_names(class_names))
        method, loaded, tokenizer = apply(
            learned,
            config["name"] if clip else None,
            dtype=config["dtype"],
            tokenizer=config["tokenizer"],
            activation=config["activation"],
            heads=config["heads"],
            classes=chosen,
        )
        warn_of_embedded_clip(learned.backbone, learned.training.get("dataset"))
        classifier._backbone, classifier._template = learned.backbone, learned.template
        classifier._settings = {"name": learned.method, **learned.settings}
        classes = learned.classes if chosen is None else chosen.moved_from(learned.classes)
        classifier._texts = learned.texts_of(classes)
        return classifier._have(method, loaded, tokenizer, classes, learned.training)

    def _have(
        self,
        method: Any,
        clip: Any,
        tokenizer: clip_package.Tokenizer | None,
        classes: Classes,
        training: Mapping[str, Any],
    ) -> Self:
        """Keep what was learned; a fit that fails leaves everything as it was."""
        self.method_, self.clip_, self.tokenizer_ = method, clip, tokenizer
        self.training_, self.classes_ = dict(training), np.asarray(classes.names)
        self._classes = classes
        size = config_module.whole("encode_batch_size", self.encode_batch_size)
        self._predictor = Predictor(method, clip, encode_batch_size=size)
        return self

    def _config(self) -> dict[str, Any]:
        """The parameters as the config of a run, checked."""
        check_alone()
        settings = {} if self.settings is None else self.settings
        methods.check_settings(self.method, settings)
        config = config_module.default(self.method)
        config["method"] |= dict(settings)
        config["clip"] |= {
            "name": config_module.text("clip", self.clip),
            "dtype": self.dtype,
            "tokenizer": config_module.text("tokenizer", self.tokenizer),
            "activation": self.activation,
            "heads": tuple(self.heads) if isinstance(self.heads, list) else self.heads,
        }
        if self.shots is not None:
            config["shots"] = (config_module.whole("shots", self.shots),)
        config["feature_cache"] = config_module.text("feature_cache", self.feature_cache)
        for name, lowest in (("epochs", 0), ("batch_size", 1), ("encode_batch_size", 1)):
            if (value := getattr(self, name)) is not None:
                config[name] = config_module.whole(name, value, lowest)
        if self.learning_rate is not None:
            config["optimizer"]["learning_rate"] = self.learning_rate
        config["optimizer"] |= config_module.mapping("optimizer", self.optimizer)
        config["augmentation"] |= config_module.mapping("augmentation", self.augmentation)
        self._renamed(config_module.check, config)
        return config

    def _check_unused(self, config: dict[str, Any], dataset: str) -> None:
        """Refuse parameters that do nothing where features are given."""
        if self.clip != CLIP:
            raise InputError.of_setting(
                "clip", f"expected none where features are given, got {self.clip}; leave it out"
            )
        clip = {**config["clip"], "name": DEFAULT["clip"]["name"]}
        self._renamed(config_module.check_unused, {**config, "clip": clip}, dataset)

    def _renamed(self, check: Callable[..., None], *arguments: Any) -> None:
        """Check something; errors name the parameters as they are here."""
        try:
            check(*arguments)
        except InputError as error:
            raise error.renamed(self._parameter) from None

    def _parameter(self, setting: str) -> str:
        """Return the name that a setting of the config has here."""
        group, _, name = setting.removeprefix("config.").rpartition(".")
        return name if hasattr(self, name) else f"{group}[{name!r}]"

    def _training_set(self, images: Any, labels: Any, class_names: Any, texts: Any) -> Dataset:
        if not isinstance(images, str | os.PathLike | Dataset):
            if texts is not None:
                return features.training_set(images, memory.required(labels), class_names, texts)
            return memory.dataset(images, memory.required(labels), class_names)
        memory.refuse_labels(labels)
        if texts is not None:
            raise InputError(
                "expected no text_features with a dataset, got some; leave them out, or give arrays"
            )
        if class_names is not None and not isinstance(class_names, str | os.PathLike):
            raise InputError(
                f"expected a file that names the classes of {images!s:.80}, got a list; write one"
                " line 'label class name' per class into a file, and name that"
            )
        return self._open(images, class_names)

    def _open(self, name: PathLike | Dataset, class_names: PathLike | None) -> Dataset:
        if isinstance(name, Dataset) and class_names is None:
            return name
        data_dir = config_module.text("data_dir", self.data_dir)
        names = config_module.text("class_names", class_names or "")
        return catalog.load(config_module.text("images", name), data_dir or None, names or None)

    def _fitted(self) -> Self:
        if not hasattr(self, "_predictor"):
            raise InputError(
                "expected a classifier that was fitted, got a new one; call fit, or Classifier.load"
            )
        return self
