"""Seconds of a few-shot sweep of Tip-Adapter-F on given features; see README.md.

python benchmarks/heads.py
"""

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from coop_jax import config as config_module
from coop_jax.classes import Classes
from coop_jax.clip.transformer import precision
from coop_jax.data.examples import Dataset, Examples
from coop_jax.run import Frozen, TrainingRun, learn

VIEWS, SEARCHED = 10, 4
"""Augmented views of each training image; betas that the plain search tries, of all."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--validation", type=int, default=1000, help="images")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=20)
    return parser.parse_args(arguments)


def dataset(chosen: argparse.Namespace, shots: int, seed: int) -> Dataset:
    """Random features around those of the texts."""
    rng, texts = np.random.default_rng((seed, shots)), np.random.default_rng(0)
    centres = texts.normal(size=(chosen.classes, chosen.dimension))

    def examples(split: str, count: int, views: int) -> Examples:
        labels = (np.arange(count) % chosen.classes).astype(np.int32)
        noise = 3 * rng.normal(size=(views, count, chosen.dimension))
        features, numbers = (centres[labels] + noise).astype(np.float32), np.arange(count)
        return Examples((), split, labels, numbers.astype(str), numbers, features=features)

    names = tuple(f"class {label}" for label in range(chosen.classes))
    train, val = examples("train", shots * chosen.classes, VIEWS), chosen.validation
    return Dataset(
        "features",
        Classes(names),
        ("a photo of a {}.",),
        train,
        examples("val", val, 1),
        examples("test", 1, 1),
        texts=centres[None].astype(np.float32),
    )


def normalised(features: np.ndarray) -> np.ndarray:
    """Features of length one."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@jax.jit
def logits(keys, features, texts, values, alpha, beta):
    """The formula, of normalised features."""
    exact = precision(jnp.float32)
    affinity = jnp.dot(features, keys.T, precision=exact)
    cached = jnp.dot(jnp.exp(-(beta - beta * affinity)), values, precision=exact)
    return 100 * jnp.dot(features, texts.T, precision=exact) + alpha * cached


def plain(run: TrainingRun) -> tuple[np.ndarray, float]:
    """Return the keys, and the seconds, of a loop over steps and one over the cells of the grid.

    The loop over cells is cut short; its seconds are in proportion.
    """
    method, data, texts = run.frozen.config["method"], run.dataset, run.dataset.texts
    assert data.train.features is not None and data.val.features is not None and texts is not None
    start = time.perf_counter()
    views, val, weights = map(normalised, (data.train.features, data.val.features[0], texts[0]))
    keys = jnp.asarray(normalised(data.train.features.mean(axis=0)))
    values = np.eye(len(weights), dtype=np.float32)[data.train.labels]
    adam = optax.chain(optax.scale_by_adam(eps=1e-4), optax.add_decayed_weights(0.01))
    state, at = adam.init(keys), (method["alpha"], method["beta"])

    def loss(keys, images, labels):
        scores = logits(keys, images, weights, values, *at)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @jax.jit
    def step(keys, state, images, labels, rate):
        value, gradient = jax.value_and_grad(loss)(keys, images, labels)
        updates, state = adam.update(gradient, state, keys)
        return keys - rate * updates, state, value

    batches = run.batches(run.stages[0], run.data.train)
    for order, epoch, rate in zip(batches.order, batches.epoch, batches.rate, strict=True):
        chosen = order[order >= 0]
        images, labels = views[epoch % len(views), chosen], data.train.labels[chosen]
        keys, state, value = step(keys, state, images, labels, rate)
        float(value)
    trained = time.perf_counter()
    betas, alphas = (
        np.linspace(0.1, method[f"{name}_scale"], method[f"{name}_steps"], endpoint=False)
        for name in ("beta", "alpha")
    )
    for beta in betas[:SEARCHED]:
        for alpha in alphas:
            scores = np.asarray(logits(keys, val, weights, values, alpha, beta))
            np.mean(scores.argmax(axis=1) == data.val.labels)
    searched = time.perf_counter() - trained
    return np.asarray(keys), trained - start + searched * len(betas) / SEARCHED


def main(arguments: list[str]) -> dict[str, Any]:
    """Run both sides, print the table and the record; the record."""
    chosen = parse(arguments)
    config = config_module.default("tip_adapter_f") | {"epochs": chosen.epochs}
    cells = [(shots, seed) for shots in chosen.shots for seed in chosen.seeds]
    datasets = [dataset(chosen, *cell) for cell in cells]
    frozen = Frozen(config, datasets[0])
    runs = [TrainingRun(frozen, d, *cell) for d, cell in zip(datasets, cells, strict=True)]
    seconds = {"ours": measure.seconds(lambda: learn(runs)), "plain loops": 0.0}
    error = 0.0
    for run in runs:
        keys, taken = plain(run)
        seconds["plain loops"] += taken
        error = max(error, float(np.abs(run.method.keys[...] - keys).max() / np.abs(keys).max()))
    ratio = seconds["plain loops"] / seconds["ours"]
    title = f"{len(runs)} runs, {chosen.classes} classes"
    rows = [*seconds.items(), ("ratio", ratio), ("largest difference of the keys", error)]
    measure.show(title, ("part", "seconds or ratio"), rows)
    record = {"runs": len(runs), "seconds": seconds, "ratio": ratio, "error": error}
    record |= {"device": jax.devices()[0].platform, "extrapolated": True}
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
