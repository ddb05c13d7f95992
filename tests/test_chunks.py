"""How steps are cut into chunks, and made one ahead."""

import time

import numpy as np
import pytest

from coop_jax.chunks import Batches, Piece, ahead, left, plan, resumable


def batches(epochs, steps, size=2):
    """So many epochs of so many steps."""
    total = epochs * steps
    order = np.arange(total * size).reshape(total, size)
    return Batches(order, np.repeat(np.arange(epochs), steps), np.zeros(total), np.zeros(1, int))


@pytest.mark.parametrize(
    ("images", "ends"),
    [
        (1000, [12]),  # all 24 images at once
        (24, [12]),
        (15, [6, 12]),  # whole epochs, of 6 images
        (12, [6, 12]),
        (6, [3, 6, 9, 12]),
        (5, [3, 6, 9, 12]),  # less than an epoch: single steps, equally many in each
        (4, [2, 4, 6, 8, 10, 12]),
        (1, [*range(1, 13)]),
    ],
)
def test_chunks_are_whole_epochs_of_about_so_many_images(images, ends):
    chunks = plan([batches(4, 3)], images)
    assert [piece.stop for (piece,) in chunks] == ends
    assert [piece.start for (piece,) in chunks] == [0, *(piece.stop for (piece,) in chunks[:-1])]


def test_a_run_that_ends_leaves_its_share_to_the_others():
    chunks = plan([batches(1, 2), batches(3, 2)], 8)
    assert chunks == [
        [Piece(0, 0, 2), Piece(1, 0, 2)],
        [Piece(1, 2, 6)],
    ]
    ends = resumable([[2], [2, 6]], chunks)
    assert ends == [(2, 6), (2, 2), (0, 0)]
    assert resumable([[2], [6]], chunks) == [(2, 6), (0, 0)]
    assert resumable([[], [2, 6]], chunks) == [(0, 0)]
    assert left(chunks, (2, 2)) == chunks[1:] and left(chunks, (2, 6)) == []
    assert left(chunks, (2, 3)) == [[Piece(1, 3, 6)]]


def test_a_run_alone_goes_on_from_any_of_its_checkpoints():
    chunks = plan([batches(4, 3)], 12)
    assert resumable([[3, 11, 4]], chunks) == [(11,), (4,), (3,), (0,)]
    assert resumable([[12, 13, 0]], chunks) == [(12,), (0,)]


def test_requests_name_the_epoch_and_the_example():
    order = np.array([[3, 1], [0, -1], [2, 3], [1, -1]])
    made = Batches(order, np.array([0, 0, 1, 1]), np.zeros(4), np.zeros(4, int))
    assert made.requests(1, 3).tolist() == [[0, 0], [0, 0], [1, 2], [1, 3]]
    assert (made.steps, made.steps_per_epoch) == (4, 2)
    weights = made.shares(lambda epochs: np.arange(1, epochs + 1) / 10)
    assert weights.tolist() == [0, 0.1, 0, 0.2] and made.shares(None).tolist() == [0] * 4
    one = Batches(order[:2], np.array([0, 0]), np.zeros(2), np.zeros(4, int))
    assert one.shares(lambda epochs: np.ones(epochs)).tolist() == [0, 1]


def wait_for(made, count):
    end = time.monotonic() + 20
    while len(made) < count and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.02)  # for what must not come


def test_one_is_made_ahead_and_no_more():
    made = []
    results = ahead(lambda number: made.append(number) or -number, range(4))
    for number in range(4):
        assert next(results) == -number
        wait_for(made, min(number + 2, 4))
        assert made == [*range(min(number + 2, 4))]
    assert list(results) == []


def test_what_fails_ahead_is_raised_in_its_turn():
    results = ahead(lambda number: 1 // (2 - number), range(4))
    assert next(results) == 0 and next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
