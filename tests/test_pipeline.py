import io
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coop_jax.data.examples import Examples, ImageCache
from coop_jax.data.pipeline import example_generator, pixels
from coop_jax.errors import InputError


def examples_of(arrays, cache=None):
    records = []
    for number, array in enumerate(arrays):
        encoded = io.BytesIO()
        Image.fromarray(array).save(encoded, "PNG")
        records.append({"image": encoded.getvalue(), "file_name": f"{number}.png".encode()})
    return Examples(
        records,
        "train",
        np.zeros(len(records), np.int32),
        np.array([f"{number}.png" for number in range(len(records))]),
        np.arange(len(records)),
        cache or ImageCache(),
    )


def noisy(image, rng):
    """Pixels that show the image in one channel and the random numbers in another."""
    pixels = np.array(image.convert("RGB"))
    pixels[..., 1] = rng.integers(0, 256, pixels.shape[:2])
    return pixels


FIVE = examples_of([np.full((3, 2, 3), number, np.uint8) for number in range(5)])


def run(requests, *, seed=0, batch_size=4, threads=0, examples=FIVE, transform=noisy):
    requests = np.array(requests, np.int64).reshape(-1, 2)
    return list(
        pixels(examples, transform, requests, seed=seed, batch_size=batch_size, threads=threads)
    )


request_lists = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=80)


@settings(deadline=None)  # threads on a busy machine
@given(request_lists, st.integers(0, 3), st.integers(1, 70), st.integers(0, 3))
def test_pixels_depend_on_seed_epoch_and_example_alone(requests, seed, batch_size, threads):
    batches = run(requests, seed=seed, batch_size=batch_size, threads=threads)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    served = np.concatenate(batches)
    assert served.dtype == np.uint8
    assert len(served) == len(requests)
    for (epoch, index), got in zip(requests, served, strict=True):
        wanted = noisy(FIVE.image(index), example_generator(seed, epoch, index))
        np.testing.assert_array_equal(got, wanted)


def test_every_seed_epoch_and_example_has_a_stream_of_its_own():
    triples = [(s, e, i) for s in range(4) for e in range(4) for i in range(4)]
    streams = {example_generator(*triple).bytes(16) for triple in triples}
    assert len(streams) == len(triples)


def test_draws_of_one_example_never_reach_the_next():
    long = example_generator(1, 2, 3).integers(0, 2**63, 5000)
    following = example_generator(1, 2, 4).integers(0, 2**63, 5000)
    assert not set(long.tolist()) & set(following.tolist())


def test_the_cache_does_not_change_pixels_and_keeps_its_bound():
    arrays = [np.full((4, 4, 3), number, np.uint8) for number in range(3)]
    small = examples_of(arrays, ImageCache(limit=2 * 4 * 4 * 3))
    requests = [(0, 0), (0, 1), (0, 2)] * 2
    first, second = run(requests, examples=small, batch_size=3)
    np.testing.assert_array_equal(first, second)
    kept = [small.image(index) is small.image(index) for index in range(3)]
    assert kept == [True, True, False]


def test_an_image_has_the_same_pixels_in_every_subset_that_holds_it():
    whole = run([(1, 3), (2, 0)])
    part = run([(1, 1), (2, 2)], examples=FIVE.subset([2, 3, 0]))
    np.testing.assert_array_equal(np.concatenate(part), np.concatenate(whole))


def test_no_requests_give_no_batches():
    assert run([]) == []


def test_an_unreadable_image_is_named_from_a_thread():
    broken = Examples(
        [{"image": b"not an image", "file_name": b"a/b.jpg"}],
        "val",
        np.zeros(1, np.int32),
        np.array(["a/b.jpg"]),
        np.arange(1),
    )
    for threads in (0, 2):
        with pytest.raises(InputError, match=r"a/b\.jpg of the val split"):
            run([(0, 0)], examples=broken, threads=threads)


def test_closing_early_stops_the_threads():
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]

    for thread in readers():
        thread.join(timeout=30)
    requests = np.array([(0, 0)] * 4000)
    batches = pixels(FIVE, noisy, requests, seed=0, batch_size=32, threads=3)
    next(batches)
    assert readers()
    batches.close()
    for thread in readers():
        thread.join(timeout=30)
    assert not readers()


@pytest.mark.parametrize(
    ("requests", "options", "message"),
    [
        ([(0, 5)], {}, "from 0 to 4, got 5 to 5"),
        ([(0, -1)], {}, "got -1 to -1"),
        ([(-1, 0)], {}, "epochs from -1"),
        ([(0, 0)], {"seed": -1}, "seed -1"),
        ([(0, 0)], {"batch_size": 0}, "per batch, got 0"),
    ],
)
def test_bad_requests_are_refused_at_once(requests, options, message):
    options = {"seed": 0, "batch_size": 2, **options}
    with pytest.raises(InputError, match=message):
        pixels(FIVE, noisy, np.array(requests), **options)


def test_requests_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"got float64 \[3\]"):
        pixels(FIVE, noisy, np.zeros(3), seed=0, batch_size=1)
