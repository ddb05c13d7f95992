"""The choice of the examples to train on, and their order (protocol sections 2 and 4)."""

import random
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from coop_jax.errors import InputError

LAST_SEED = 2**32 - 1
"""The greatest seed: NumPy takes none above, and JAX would take it for a smaller one."""

FRACTIONS = (0.5, 0.2)
"""Train's and val's share of every class where there is no split (protocol 2.1)."""


def few_shot(
    train_labels: Int[np.ndarray, " train"] | Sequence[int],
    val_labels: Int[np.ndarray, " val"] | Sequence[int],
    shots: int,
    seed: int,
) -> tuple[Int[np.ndarray, " chosen_train"], Int[np.ndarray, " chosen_val"]]:
    """Choose `shots` training and min(shots, 4) validation images per class as the official code.

    One Python generator is seeded with `seed`. Classes come in the order in which they first appear
    in the list; a class with at least the wanted number is sampled without replacement, a class
    with fewer is taken whole without a draw. Train is sampled before val
    (protocol 2.2).

    Args:
        train_labels: label of every training example, in the order of the split's list.
        val_labels: label of every validation example, in the order of the split's list; may be
            empty.
        shots: training images per class, at least 1.
        seed: seed of the draw.

    Returns:
        Indices into the two lists, int64, in the order in which they were drawn.

    Raises:
        InputError: if `shots` is less than 1.
    """
    _check_shots(shots)
    generator = random.Random(seed)
    train = _sample(train_labels, shots, generator)
    return train, _sample(val_labels, min(shots, 4), generator)


def linear_probe_few_shot(
    train_labels: Int[np.ndarray, " train"] | Sequence[int],
    val_labels: Int[np.ndarray, " val"] | Sequence[int],
    shots: int,
    seed: int,
) -> tuple[Int[np.ndarray, " chosen_train"], Int[np.ndarray, " chosen_val"]]:
    """Choose images for linear-probe CLIP, whose official draw is another (protocol section 10).

    NumPy's legacy generator is seeded with `seed`. The labels of the training list come in
    ascending order, each sampled without replacement: first `shots` training images of every label,
    then min(shots, 4) validation images of every label. Where a label has fewer, the official code
    stops with an error; here it is taken whole without a draw, as in `few_shot`, whose arguments
    and returned values are the same.

    Raises:
        InputError: if `shots` is less than 1.
    """
    _check_shots(shots)
    generator = np.random.RandomState(seed)

    def draw(labels: Int[np.ndarray, " examples"] | Sequence[int], count: int) -> np.ndarray:
        labels, chosen = np.asarray(labels), [np.zeros(0, np.int64)]
        for label in np.unique(train_labels):
            group = np.flatnonzero(labels == label)
            enough = len(group) >= count
            chosen.append(generator.choice(group, count, replace=False) if enough else group)
        return np.concatenate(chosen)

    train = draw(train_labels, shots)
    return train, draw(val_labels, min(shots, 4))


RULES = {"coop": few_shot, "linear_probe": linear_probe_few_shot}
"""Rules that choose a few training and validation images, by the name that configs use."""


def steps_per_epoch(count: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches of an epoch, as `batch_order` has them."""
    return max(count // batch_size if drop_last else -(-count // batch_size), 1)


def batch_order(
    count: int,
    batch_size: int,
    epochs: int,
    seed: int,
    *,
    drop_last: bool = True,
    steps: int | None = None,
) -> tuple[Int[np.ndarray, "steps batch"], Int[np.ndarray, " steps"]]:
    """Return the batches of every epoch: shuffled without replacement, keyed by (seed, epoch).

    The incomplete last batch of an epoch is dropped when `count >= batch_size`; a smaller set makes
    one short batch per epoch, so that the second dimension is `min(count, batch_size)` (protocol
    section 4). Without `drop_last` it is kept, filled up with -1. The order of an epoch does not
    depend on the number of epochs.

    Args:
        count: number of training examples.
        batch_size: examples per step.
        epochs: number of passes.
        seed: non-negative seed of the shuffles.
        drop_last: whether the incomplete last batch is dropped.
        steps: of every epoch, which the others of its batches are left out of; None for all.

    Returns:
        Example indices of every step, int64, and the epoch of every step, counted from 0, int64.
    """
    batch = min(count, batch_size)
    steps = steps or steps_per_epoch(count, batch_size, drop_last)
    keys = [np.random.SeedSequence((seed, epoch)) for epoch in range(epochs)]
    shuffled = (np.random.Generator(np.random.Philox(key)).permutation(count) for key in keys)
    orders = [order[: steps * batch] for order in shuffled]
    orders = [np.pad(o, (0, steps * batch - len(o)), constant_values=-1) for o in orders]
    return np.concatenate(orders).reshape(epochs * steps, batch), np.repeat(
        np.arange(epochs), steps
    )


def split_by_class(
    labels: Int[np.ndarray, " examples"] | Sequence[int], fractions: Sequence[float], seed: int = 0
) -> list[Int[np.ndarray, " part"]]:
    """Cut every class into parts by the protocol's fallback rule (2.1).

    Each class is shuffled; every part but the last gets its Python-rounded fraction, the last gets
    the rest.

    Args:
        labels: label of every example.
        fractions: the share of every part but the last, e.g. (0.5, 0.2) for 50 / 20 / 30 %.
        seed: seed of the shuffles.

    Returns:
        One array of ascending int64 indices per part.
    """
    generator = random.Random(seed)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    for group in _groups(labels):
        generator.shuffle(group)
        start = 0
        for part, fraction in zip(parts, fractions, strict=False):
            stop = start + round(len(group) * fraction)
            part.extend(group[start:stop])
            start = stop
        parts[-1].extend(group[start:])
    return [np.array(sorted(part), np.int64) for part in parts]


def _check_shots(shots: int) -> None:
    if shots < 1:
        raise InputError(
            f"expected at least 1 shot, got {shots}; leave few-shot sampling out for all"
        )


def _sample(labels: Iterable[int], shots: int, generator: random.Random) -> np.ndarray:
    chosen: list[int] = []
    for group in _groups(labels):
        chosen.extend(group if len(group) < shots else generator.sample(group, shots))
    return np.array(chosen, np.int64)


def _groups(labels: Iterable[int]) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, label in enumerate(np.asarray(labels).tolist()):
        groups.setdefault(label, []).append(index)
    return list(groups.values())
