"""Contrastive training of coop_jax's own towers on a pool of pictures."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from coop_jax.clip.config import CLIPConfig, TextConfig, TransformerConfig, ViTConfig
from coop_jax.clip.model import CLIP
from coop_jax.clip.preprocess import normalize
from tiny_clip import captions
from tiny_clip.pool import Pool

LARGEST_SCALE = float(np.log(100))
SHORT, LONG = 16, 32
PRINT_EVERY, SAVE_EVERY = 100, 500


@dataclasses.dataclass(frozen=True)
class Settings:
    """The dimensions of both towers and how they are trained."""

    width: int = 96
    layers: int = 3
    heads: int = 3
    embedding: int = 96
    steps: int = 6000
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup: int = 150
    weight_decay: float = 0.05
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Pictures in the order of their captions' length, and the captions in two halves."""

    pixels: UInt8[np.ndarray, "batch size size"]
    short: Int[np.ndarray, "half 16"]
    long: Int[np.ndarray, "half 32"]


jax.tree_util.register_dataclass(Batch, ("pixels", "short", "long"), ())


def configuration(settings: Settings, vocabulary_size: int) -> CLIPConfig:
    """Both towers alike: 32 by 32 pixels in patches of 8, texts of at most 77 tokens."""
    transformer = TransformerConfig(
        settings.width, settings.layers, settings.heads, 4 * settings.width
    )
    return CLIPConfig(
        settings.embedding,
        ViTConfig(32, 8, transformer),
        TextConfig(vocabulary_size, 77, transformer, end_token=vocabulary_size - 1),
    )


def pad(rows: list[list[int]], length: int) -> Int[np.ndarray, "rows length"]:
    """Token ids with zeros behind them; what is too long is cut before its end token."""
    tokens = np.zeros((len(rows), length), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        ids = [*ids[: length - 1], ids[-1]]
        row[: len(ids)] = ids
    return tokens


def batches(pool: Pool, tokenizer: tokenizers.Tokenizer, settings: Settings) -> Iterator[Batch]:
    """Batches without end: the pool reshuffled in every epoch, captions written anew."""
    generator = np.random.default_rng(settings.seed)
    while True:
        order = generator.permutation(len(pool.pixels))
        for start in range(0, len(order) - settings.batch + 1, settings.batch):
            chosen = order[start : start + settings.batch]
            texts = [
                captions.write(pool.subjects[index], pool.descriptors[index], generator)
                for index in chosen
            ]
            ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
            by_length = np.argsort([len(row) for row in ids], kind="stable")
            ids, half = [ids[index] for index in by_length], settings.batch // 2
            yield Batch(
                pool.pixels[chosen[by_length]], pad(ids[:half], SHORT), pad(ids[half:], LONG)
            )


def contrastive_loss(logits: Float[Array, "batch batch"]) -> Float[Array, ""]:
    """Cross-entropy to the diagonal, from pictures to captions and back (CLIP, figure 3)."""
    labels = jnp.arange(logits.shape[0])
    loss = optax.softmax_cross_entropy_with_integer_labels
    return (loss(logits, labels).mean() + loss(logits.T, labels).mean()) / 2


def train(
    pool: Pool,
    tokenizer: tokenizers.Tokenizer,
    settings: Settings,
    save: Callable[[CLIP], None],
) -> None:
    """Train a CLIP from random weights, printing the loss and saving now and then."""
    config = configuration(settings, tokenizer.get_vocab_size())
    graphdef, weights = nnx.split(CLIP(config, rngs=nnx.Rngs(settings.seed)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, settings.warmup, settings.steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,
            weight_decay=settings.weight_decay,
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
        ),
    )

    def loss(weights: Any, batch: Batch) -> Float[Array, ""]:
        clip = nnx.merge(graphdef, weights)
        pixels = jnp.repeat(batch.pixels[..., None], 3, axis=-1)
        images = clip.encode_image(normalize(pixels))
        halves = (batch.short, batch.long)
        texts = jnp.concatenate([clip.encode_text(jnp.asarray(half)) for half in halves])
        return contrastive_loss(clip.logits(images, texts))

    @jax.jit
    def step(weights: Any, state: optax.OptState, batch: Batch):
        value, gradient = jax.value_and_grad(loss)(weights, batch)
        updates, state = optimizer.update(gradient, state, weights)
        weights = optax.apply_updates(weights, updates)
        scale = weights["logit_scale"]
        weights["logit_scale"] = scale.replace(jnp.minimum(scale[...], LARGEST_SCALE))
        return weights, state, value

    state, began = optimizer.init(weights), time.monotonic()
    stream = batches(pool, tokenizer, settings)
    for number in range(1, settings.steps + 1):
        weights, state, value = step(weights, state, next(stream))
        if number % PRINT_EVERY == 0 or number == settings.steps:
            seconds = time.monotonic() - began
            print(f"step {number:6d}  loss {value:.4f}  {seconds:7.1f} s", flush=True)
        if number % SAVE_EVERY == 0 or number == settings.steps:
            save(nnx.merge(graphdef, weights))
