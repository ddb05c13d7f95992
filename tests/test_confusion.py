"""Confusion matrices: their numbers and their pictures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from coop_jax import confusion


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_the_numbers_of_a_confusion_matrix(pairs):
    labels, predicted = zip(*pairs, strict=True)
    found = confusion.of(labels, predicted, "abcd")
    assert found.accuracy == pytest.approx(100 * accuracy_score(labels, predicted))
    named = {"labels": sorted(set(labels)), "average": "macro", "zero_division": 0}
    assert found.macro_f1 == pytest.approx(100 * f1_score(labels, predicted, **named))
    for one in found.hardest(4):
        label, wrong = "abcd".index(one.name), "abcd".index(one.mistaken_for)
        taken = [found.counts[label, other] for other in range(4) if other != label]
        assert found.counts[label, wrong] == max(taken) > 0
        assert one.accuracy == pytest.approx(100 * found.counts[label, label] / one.images)


@pytest.mark.parametrize("count", [2, 50, 60, 300])
def test_the_picture_suits_the_number_of_classes(count):
    names = ["$5 bill and much else that is never read to its end", *map(str, range(1, count))]
    found = confusion.of(range(count), [0, *range(count - 1)], names)
    axes = confusion.draw(found, "things").axes[0]
    counted = [text.get_text() for text in axes.texts]
    assert counted == (["1"] * count if count <= 50 else [])
    labels = [text.get_text() for text in axes.get_yticklabels()]
    if count <= 250:
        assert labels[1:] == names[1:]
        shown = "$5 bill and much else that is\nnever read to its end"
        assert labels[0] == (shown if count == 2 else "$5 bill and m…ead to its end")
    colours = axes.images[0].get_array()
    assert colours[0, 0, 2] > colours[0, 0, 0] and colours[1, 0, 0] > colours[1, 0, 2]
    assert (colours[0, 1] == 1).all()


def test_long_names_that_differ_look_different():
    names = [f"a name of which {number} is the only difference to others" for number in range(20)]
    axes = confusion.draw(confusion.of(range(20), range(20), names), "things").axes[0]
    assert len({text.get_text() for text in axes.get_xticklabels()}) == 20


def test_words_stand_in_the_middle_of_the_cells():
    figure = confusion.draw(confusion.of([0, 1], [0, 0], ["a very long name " * 3, "b"]), "things")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes.get_window_extent()
    for text, low, high in (
        (axes.title, box.x0, box.x1),
        (axes.xaxis.label, box.x0, box.x1),
        (axes.yaxis.label, box.y0, box.y1),
    ):
        extent = text.get_window_extent()
        is_upright = text is axes.yaxis.label
        ends = (extent.y0, extent.y1) if is_upright else (extent.x0, extent.x1)
        assert sum(ends) / 2 == pytest.approx((low + high) / 2, abs=2)
        assert low <= ends[0] and ends[1] <= high
