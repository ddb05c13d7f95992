"""Classes: what tells them apart, and where they stand among those that were learned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import refusal

from coop_jax.classes import Classes, read, spelled

NAMES = st.lists(st.text("abAB_ ", min_size=1, max_size=4), min_size=1, max_size=8)
DIFFERENT = st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True)


def test_underscores_are_spaces():
    assert spelled(["sea_lion", "A_b_", ""]) == ("sea lion", "A b ", "")
    assert Classes(("sea_lion",)).spelled == ("sea lion",)
    assert Classes(("sea_lion",)).names == Classes(("sea_lion",)).ids == ("sea_lion",)


@given(NAMES)
def test_what_is_read_twice_is_read_the_same(names):
    assert read(read(names)) == read(names) == read(spelled(names))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (Classes(()), "expected at least one class name, got none"),
        (Classes(("dog", "_", "cat")), "got an empty one for label 1"),
        (Classes(("Sea_Lion", "dog", "sea lion")), "got 'sea lion' (2 times)"),
        (Classes(("a", "a", "b", "b"), repeated=("a",)), "got 'b' (2 times)"),
    ],
)
def test_classes_that_no_classifier_tells_apart_are_refused(classes, message):
    assert message in refusal(classes.check)


def test_names_of_several_classes_are_those_that_may_be():
    Classes(("Missile", "dog", "missile"), repeated=("missile",)).check()
    Classes(("missile", "dog", "missile"), repeated=("MISSILE", "sunglasses")).check()


def test_one_id_and_one_word_on_training_for_each_name():
    assert "for each of 2 class names, got 1" in refusal(Classes, ("a", "b"), ("1",))
    assert "for each of 1 class names, got 2" in refusal(Classes, ("a",), seen=(True, False))


@given(DIFFERENT, st.data())
def test_the_places_of_some_classes_are_their_labels(numbers, data):
    labels = data.draw(st.lists(st.integers(0, len(numbers) - 1), max_size=8))
    names = tuple(f"class {number}" for number in numbers)
    ids = tuple(f"n{number}" for number in numbers)
    for trained in (Classes(names), Classes(names, ids), Classes(("same",) * len(ids), ids)):
        chosen = trained.at(labels)
        assert chosen.places_in(trained) == labels
        assert chosen.moved_from(trained).seen == (True,) * len(labels)


@given(DIFFERENT, DIFFERENT)
def test_classes_are_found_by_what_a_clip_reads(first, second):
    trained = Classes(tuple(f"Class_{number}" for number in first))
    wanted = Classes(tuple(f" class  {number}" for number in second))
    places = wanted.places_in(trained)
    assert places == [first.index(each) if each in first else None for each in second]
    assert wanted.moved_from(trained).seen == tuple(each in first for each in second)


def test_ids_tell_classes_of_one_name_apart_and_names_those_without_ids():
    trained = Classes(("missile", "tench", "missile"), ("n1", "n2", "n3"))
    assert Classes(("missile", "wolf"), ("n3", "n4")).places_in(trained) == [2, None]
    assert Classes(("tench",)).places_in(trained) == [1]
    assert Classes(trained.names).places_in(trained) == [0, 1, 2]
    assert trained.places_in(Classes(("missile",))) == [0, None, 0]
    unclear = Classes(("wolf", "Missile"))
    assert "got Missile, which several" in refusal(unclear.places_in, trained)
    assert unclear.moved_from(trained).seen == (False, True)


def test_classes_at_labels_keep_what_is_said_of_them():
    whole = Classes(("a", "b", "c"), ("1", "2", "3"), ("a",), (True, False, True), {"a": ("an a",)})
    assert whole.at([2, 1]) == Classes(
        ("c", "b"), ("3", "2"), ("a",), (True, False), {"a": ("an a",)}
    )


def test_lists_are_the_same_classes_as_tuples():
    lists = Classes(["a", "b"], ids=["1", "2"], repeated=["a"], seen=[True, False])
    assert lists == Classes(("a", "b"), ids=("1", "2"), repeated=("a",), seen=(True, False))
    assert lists.at([1]) == Classes(("b",), ids=("2",), repeated=("a",), seen=(False,))
