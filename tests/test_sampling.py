import json
import re

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from coop_jax.data import sampling
from coop_jax.errors import InputError


def test_reproduces_every_published_selection():
    folder = reference.path("coop_splits")
    published = json.loads(reference.path("coop_splits/fewshot_indices.json").read_text())
    assert published
    labels = {}
    for key, wanted in published.items():
        name, shots, seed = re.fullmatch(r"(.+)/shots=(\d+)/seed=(\d+)", key).groups()
        if name not in labels:
            split = json.loads((folder / f"split_zhou_{name}.json").read_text())
            labels[name] = [[label for _, label, _ in split[part]] for part in ("train", "val")]
        train, val = sampling.few_shot(*labels[name], int(shots), int(seed))
        assert train.tolist() == wanted["train"], key
        assert val.tolist() == wanted["val"], key


label_lists = st.lists(st.integers(0, 5), max_size=60)


@given(label_lists, label_lists, st.integers(1, 20), st.integers(0, 100))
def test_few_shot_takes_up_to_the_wanted_number_per_class(train, val, shots, seed):
    chosen = sampling.few_shot(train, val, shots, seed)
    for indices, labels, wanted in zip(chosen, (train, val), (shots, min(shots, 4)), strict=True):
        labels = np.array(labels, np.int64)
        assert len(set(indices.tolist())) == len(indices)
        for label in range(6):
            have = int((labels == label).sum())
            assert int((labels[indices] == label).sum()) == min(have, wanted)


def test_a_short_class_is_taken_whole():
    labels = np.array([3, 1, 3, 1, 1, 0])
    train, val = sampling.few_shot(labels, [], 2, seed=1)
    assert train[:2].tolist() == [0, 2] or train[:2].tolist() == [2, 0]
    assert train[-1] == 5
    assert val.tolist() == []


def test_a_short_class_draws_no_random_number():
    plenty = [1] * 30
    _, alone = sampling.few_shot([], plenty, 4, seed=3)
    _, after_a_short_class = sampling.few_shot([0, 0], plenty, 4, seed=3)
    assert alone.tolist() == after_a_short_class.tolist()


@pytest.mark.parametrize("draw", [sampling.few_shot, sampling.linear_probe_few_shot])
def test_zero_shots_are_refused(draw):
    with pytest.raises(InputError, match="at least 1 shot, got 0"):
        draw([0], [0], 0, 1)


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 16), st.integers(1, 9))
def test_linear_probe_draws_from_numpys_global_generator(extra, shots, seed):
    train = np.random.default_rng(0).permutation([0, 1, 2, 4] * 16 + extra)
    val = np.random.default_rng(1).permutation([0, 1, 2, 3, 4] * 4 + extra)
    before = np.random.get_state()
    try:
        np.random.seed(seed)
        expected = []
        for labels, count in ((train, shots), (val, {1: 1, 2: 2, 3: 3}.get(shots, 4))):
            picked = []
            for label in sorted(set(train.tolist())):
                places = [place for place, other in enumerate(labels) if other == label]
                if len(places) < count:
                    picked += places
                else:
                    picked += np.random.choice(places, size=count, replace=False).tolist()
            expected.append(picked)
    finally:
        np.random.set_state(before)
    chosen = sampling.linear_probe_few_shot(train, val, shots, seed)
    assert [indices.tolist() for indices in chosen] == expected
    assert all(indices.dtype == np.int64 for indices in chosen)


def test_linear_probe_takes_a_short_class_whole():
    train, val = sampling.linear_probe_few_shot([2, 0, 0, 2, 0], [], 3, seed=1)
    assert sorted(train[:3].tolist()) == [1, 2, 4] and train[3:].tolist() == [0, 3]
    assert val.tolist() == [] and val.dtype == np.int64


@given(st.integers(1, 100), st.integers(1, 40), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_is_a_shuffle_without_replacement(count, batch_size, epochs, seed):
    order, epoch_of_step = sampling.batch_order(count, batch_size, epochs, seed)
    steps = count // batch_size if count >= batch_size else 1
    assert order.shape == (epochs * steps, min(count, batch_size))
    assert epoch_of_step.tolist() == np.repeat(np.arange(epochs), steps).tolist()
    for epoch in range(epochs):
        seen = order[epoch_of_step == epoch].ravel()
        assert len(set(seen.tolist())) == seen.size
        assert seen.min() >= 0
        assert seen.max() < count


@given(st.integers(1, 100), st.integers(1, 40), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_that_drops_nothing_has_every_example_once(count, batch_size, epochs, seed):
    order, epoch_of_step = sampling.batch_order(count, batch_size, epochs, seed, drop_last=False)
    steps = -(-count // batch_size)
    assert order.shape == (epochs * steps, min(count, batch_size))
    for epoch in range(epochs):
        seen = order[epoch_of_step == epoch].ravel()
        assert sorted(seen[:count].tolist()) == list(range(count))
        assert (seen[count:] == -1).all()


def test_order_is_keyed_by_seed_and_epoch():
    long, _ = sampling.batch_order(64, 32, 4, seed=1)
    short, _ = sampling.batch_order(64, 32, 2, seed=1)
    other, _ = sampling.batch_order(64, 32, 4, seed=2)
    np.testing.assert_array_equal(long[:4], short)
    assert (long[:2] != long[2:4]).any()
    assert (long != other).any()


@given(label_lists, st.integers(0, 5))
def test_split_by_class_cuts_every_class(labels, seed):
    parts = sampling.split_by_class(labels, (0.5, 0.2), seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    labels = np.array(labels, np.int64)
    for label in set(labels.tolist()):
        count = int((labels == label).sum())
        first, second, third = (int((labels[part] == label).sum()) for part in parts)
        assert (first, second) == (round(count * 0.5), round(count * 0.2))
        assert third == count - first - second
