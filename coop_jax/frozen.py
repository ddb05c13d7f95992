"""A frozen CLIP with the settings of a run: loaded once, and shared by all that use it."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import images as images_module
from coop_jax import parallel
from coop_jax.clip import CLIP, FeatureSpace, Tokenizer, source
from coop_jax.clip.config import DTYPES
from coop_jax.data.examples import Dataset, Examples
from coop_jax.errors import InputError
from coop_jax.feature_cache import Cache
from coop_jax.methods import Images, Method, create
from coop_jax.provenance import digest, hash_files


class Frozen:
    """A frozen CLIP on all devices, with the settings of a run: what its methods share.

    Attributes:
        config: as `coop_jax.config.default`.
        mesh: the devices.
        clip: the CLIP; a `FeatureSpace` where the dataset gives features.
        tokenizer: its tokenizer; None where the dataset gives features.
    """

    def __init__(self, config: Mapping[str, Any], dataset: Dataset):
        """`dataset` says whether a CLIP is needed.

        Raises:
            InputError: there is no such CLIP, or its files cannot be used.
        """
        self.config, self.mesh = config, parallel.create_mesh()
        self._space = _described(dataset)
        if dataset.texts is not None:
            self.clip: Any = FeatureSpace(dataset.texts.shape[-1], dataset.logit_scale)
            self.tokenizer: Tokenizer | None = None
        else:
            self.clip, self.tokenizer = load_clip(**config["clip"])

    def create(
        self,
        dataset: Dataset,
        seed: int = 0,
        *,
        method: Mapping[str, Any] | None = None,
        learned_template: str = "",
    ) -> Any:
        """Return the configured method (or another, with its settings) for a dataset's classes.

        `learned_template` is the own prompt of the dataset that it has learned from, if of another.

        Raises:
            InputError: the classes, the settings or the text features do not fit.
        """
        if self._space != _described(dataset):
            raise InputError(
                f"expected {self._space} in {dataset.name}, as in the dataset that is trained on,"
                f" got {_described(dataset)}; take both from one encoder"
            )
        settings = dict(self.config["method"] if method is None else method)
        return create(
            settings.pop("name"),
            self.clip,
            self.tokenizer,
            dataset.classes,
            settings,
            seed=seed,
            template=dataset.templates[0],
            learned_template=learned_template or dataset.templates[0],
            texts=dataset.texts,
            shards=self.mesh.size,
        )

    def encoder(
        self, method: Method, tell: Callable[[int], None] | None = None
    ) -> images_module.Encoder:
        """Return the encoder of the images that a method takes; `tell` hears how many are made."""
        folder = self.config["feature_cache"]
        return images_module.Encoder(
            self.clip,
            self.mesh,
            method.takes,
            batch_size=self.config["encode_batch_size"],
            augmentation=dict(self.config["augmentation"]),
            cache=Cache(folder) if folder else None,
            weights=(self.weights_hash, self.config["clip"]["dtype"]) if folder else (),
            tell=tell or (lambda images: None),
        )

    def images_of(self, method: Method, examples: Examples) -> Callable[[np.ndarray], Images]:
        """Return a function from places among test images to what a method takes of them."""
        encoder, views = self.encoder(method), method.views.test
        return lambda places: encoder.test_images(examples, places, views)

    @functools.cached_property
    def weights_hash(self) -> str:
        """A hash of the files of the CLIP and its tokenizer; of none where features are given.

        What is said of the CLIP besides counts, too.
        """
        if self.tokenizer is None:
            return hash_files([])
        chosen = self.config["clip"]
        files = hash_files(source.resolve(chosen["name"], chosen["tokenizer"] or None).files())
        return digest([files, said]) if (said := said_of(chosen)) else files


def _described(dataset: Dataset) -> str:
    """Return what is given of each image, and what cosine similarities are multiplied with."""
    if not dataset.space:
        return "images"
    return f"{dataset.space} (cosine_multiplier {dataset.logit_scale:g})"


def said_of(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a user has said of a CLIP that its tensors do not show, of its settings.

    That belongs to every record of what the CLIP was used for.
    """
    return {name: chosen[name] for name in ("activation", "heads") if chosen.get(name)}


def load_clip(
    name: str, dtype: str, tokenizer: str, activation: str = "", heads: Sequence[int] = ()
) -> tuple[CLIP, Tokenizer]:
    """Return a CLIP on all devices, and its tokenizer; the last one stays in memory.

    Raises:
        InputError: there is none of that name, or its files cannot be used.
    """
    files = (*_files_of(name), *_files_of(tokenizer))
    return _load_clip(name, dtype, tokenizer, activation, tuple(heads), files)


def _files_of(name: str) -> tuple[Any, ...]:
    """Return what tells apart the files of a name at different times; () where there are none."""
    path = os.path.abspath(os.path.expanduser(name))
    try:
        paths = sorted(entry.path for entry in os.scandir(path)) if os.path.isdir(path) else [path]
        listed = [(path, os.stat(path)) for path in paths if name and os.path.isfile(path)]
    except OSError:
        return ()
    return tuple((path, it.st_ino, it.st_size, it.st_mtime_ns) for path, it in listed)


@functools.lru_cache(maxsize=1)
def _load_clip(
    name: str, dtype: str, tokenizer: str, activation: str, heads: Any, files: Any
) -> tuple[CLIP, Tokenizer]:
    whole = parallel.replicated(parallel.create_mesh())
    model, its_tokenizer = clip_package.load(
        name,
        dtype=DTYPES[dtype],
        tokenizer=tokenizer or None,
        activation=activation or None,
        heads=heads or None,
    )
    nnx.update(model, parallel.put(nnx.state(model), whole))
    return model, its_tokenizer
