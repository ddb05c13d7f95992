"""A method from a config, a dataset of a few images and a frozen CLIP."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int

from coop_jax import chunks, encoding, features, methods, optim, parallel, train
from coop_jax.clip import CLIP, Tokenizer, source
from coop_jax.data import sampling
from coop_jax.data.examples import Dataset, Examples
from coop_jax.predictor import Predictor, batch_rows, counted
from coop_jax.provenance import hash_files
from coop_jax.terminal import count_images

Losses = Float32[np.ndarray, " steps"]


def create(
    config: Mapping[str, Any], dataset: Dataset, clip: CLIP, tokenizer: Tokenizer, seed: int
) -> Any:
    """The configured method for a dataset's classes, before it learns.

    Raises:
        InputError: the classes or the settings do not fit.
    """
    settings = dict(config["method"])
    return methods.create(
        settings.pop("name"),
        clip,
        tokenizer,
        dataset.class_names,
        settings,
        seed=seed,
        repeated=dataset.repeated,
        shards=parallel.create_mesh().size,
    )


def paper_epochs(shots: int, dataset: str) -> int:
    """The CoOp paper's number of epochs (coop_protocol section 0)."""
    return 50 if shots == 1 or dataset == "imagenet" else 100 if shots <= 4 else 200


def batches(
    config: Mapping[str, Any], examples: Examples, *, seed: int, epochs: int
) -> chunks.Batches:
    """The training images and learning rate of every step."""
    order, epoch = sampling.batch_order(len(examples), config["batch_size"], epochs, seed)
    rates = optim.epoch_learning_rates(optim.OptimizerConfig(**config["optimizer"]), epochs)
    return chunks.Batches(order, epoch, rates[epoch], examples.labels)


def learn(
    method: Any, config: Mapping[str, Any], dataset: Dataset, clip: CLIP, *, seed: int, epochs: int
) -> Losses:
    """Let a method learn from the whole of a dataset, if it learns; the loss of every step.

    Args:
        method: from `create`; changed in place.
        config: as `coop_jax.config.default`.
        dataset: its training images; of a closed-form method the validation images as well.
        clip: the frozen CLIP.
        seed: of the batches and the augmentation.
        epochs: passes over the training images, of a method that is trained by steps.

    Raises:
        InputError: an image cannot be read, or the method cannot be fitted to these.
    """
    if methods.is_closed_form(config["method"]["name"]):
        predictor = Predictor(method, clip, encode_batch_size=config["encode_batch_size"])
        sets = dataset.train, dataset.val
        method.fit(*[part for one in sets for part in (predictor.encode(one), one.labels)])
    elif jax.tree.leaves(nnx.state(method, methods.Learned)):
        return _train(method, config, dataset, clip, seed, epochs)
    return np.zeros(0, np.float32)


def epochs_for(config: Mapping[str, Any], dataset: Dataset, shots: int | None) -> int:
    """The configured number of epochs, or else the paper's; without shots, by the largest class."""
    shots = shots or int(np.bincount(dataset.train.labels).max())
    return config["epochs"] or paper_epochs(shots, dataset.name)


def _train(
    method: Any, config: Mapping[str, Any], dataset: Dataset, clip: CLIP, seed: int, epochs: int
) -> Losses:
    examples, mesh = dataset.train, parallel.create_mesh()
    steps = batches(config, examples, seed=seed, epochs=epochs)
    folder, augmentation = config["feature_cache"], dict(config["augmentation"])
    with count_images(steps.order.size, f"{config['method']['name']}: images seen") as tell:
        transform = counted(encoding.training_transform(clip, augmentation), tell)

        def features_of(requests: Int[np.ndarray, "images 2"]) -> np.ndarray:
            return encoding.encode(
                clip,
                examples,
                transform,
                requests,
                mesh,
                seed=seed,
                batch_size=batch_rows(len(requests), config["encode_batch_size"]),
                cache=features.Cache(folder) if folder else None,
                weights=_weights(**config["clip"]) if folder else (),
                described=augmentation,
            )

        optimizer = optim.create(optim.OptimizerConfig(**config["optimizer"]))
        done = train.fit([train.Run(method, steps, features_of)], clip, optimizer, mesh)
        return np.concatenate([progress.losses for (progress,) in done])


@functools.lru_cache(maxsize=1)
def _weights(name: str, dtype: str, tokenizer: str) -> tuple[str, str]:
    """What tells a CLIP from others in a cache of features."""
    return hash_files(source.resolve(name, tokenizer or None).files()), dtype
