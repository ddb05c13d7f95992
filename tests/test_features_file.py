"""Files of features: read as a dataset, or refused in one line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import TEXTURES, feature_arrays, refusal

from coop_jax.data import catalog, features
from coop_jax.errors import InputError


def test_a_file_is_a_dataset(write_features):
    arrays = feature_arrays(views=2, encoder=np.array("SigLIP"), cosine_multiplier=np.float64(50))
    dataset = catalog.load(write_features(arrays))
    assert dataset.name == "textures" and dataset.space == "12-dimensional features of SigLIP"
    assert dataset.classes.names == ("polka dot", "striped", "zigzagged", "woven")
    assert dataset.texts.shape == (1, 4, 12) and dataset.logit_scale == 50
    assert [len(s) for s in (dataset.train, dataset.val, dataset.test)] == [12, 8, 20]
    np.testing.assert_array_equal(dataset.train.features, arrays["train_features"])
    np.testing.assert_array_equal(dataset.test.labels, arrays["test_labels"])
    new = dataset.half("new")
    np.testing.assert_array_equal(new.texts[0], arrays["text_features"][2:])
    assert len(new.train) == 6 and new.test.labels.max() == 1


def test_types_and_orders_of_bytes_change_nothing(write_features):
    arrays = feature_arrays(val_features=None, val_labels=None)
    expected = catalog.load(write_features(arrays))
    others = {key: value for key, value in arrays.items() if key != "class_names"}
    swapped = {key: value.astype(value.dtype.newbyteorder(">")) for key, value in others.items()}
    wide = {key: a.astype(float) if a.dtype.kind == "f" else a for key, a in others.items()}
    for changed in (swapped, wide):
        found = catalog.load(write_features(arrays | changed, "others.npz"))
        assert not len(found.val) and found.train.content == expected.train.content
        np.testing.assert_array_equal(found.texts, expected.texts)


ROWS = feature_arrays()["train_features"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"test_features": None}, "add test_features"),
        ({"text_features": None, "class_names": None}, "add class_names, text_features"),
        ({"trian_labels": np.arange(3)}, "got 'trian_labels'; rename"),
        ({"train_labels": None}, "train_labels: expected it beside train_features, got none"),
        ({"train_features": None}, "train_features: expected it beside train_labels, got none"),
        ({"train_features": ROWS.astype(int)}, "train_features: expected floating-point numbers"),
        ({"train_features": ROWS[0]}, "[views, images, embedding], got float32 [12]"),
        ({"train_features": ROWS[:0]}, "got float32 [0, 12]"),
        ({"train_features": ROWS[:, :5]}, "train_features: expected rows of 12 numbers"),
        ({"train_features": np.where(np.arange(12) == 3, np.nan, ROWS)}, "got nan in row 0 (12 "),
        ({"train_features": 1e300 * ROWS.astype(float)}, "got inf in row 0"),
        ({"test_features": np.zeros((20, 12))}, "got 0 in row 0 (20 such rows)"),
        ({"train_labels": np.arange(11)}, "train_labels: expected 12 whole numbers"),
        ({"train_labels": np.arange(12) / 3}, "got float64 [12]"),
        ({"train_labels": np.arange(12)}, "expected numbers from 0 to 3, got 0 to 11"),
        ({"test_labels": np.arange(20) - 1}, "test_labels: expected numbers from 0 to 3"),
        ({"train_labels": np.arange(12) % 3}, "images of every class, got none of 1 (3)"),
        ({"class_names": np.array(TEXTURES, object)}, "'class_names': expected numbers or texts"),
        ({"class_names": np.array(TEXTURES, bytes)}, "class_names: expected texts [classes]"),
        ({"class_names": np.array(["a", "b", "A", "c"])}, "class_names: expected different"),
        ({"class_names": np.array(["a", "b", "", "c"])}, "class_names: expected a name"),
        ({"text_features": ROWS}, "a row for each of the 4 classes, got 12"),
        ({"text_features": np.zeros((4, 12))}, "text_features: expected rows of a finite"),
        ({"cosine_multiplier": np.float32(-1)}, "cosine_multiplier: expected one number above 0"),
        ({"cosine_multiplier": np.ones(2)}, "cosine_multiplier: expected one number above 0"),
        ({"encoder": np.array(3)}, "encoder: expected one line of text, got 3"),
        ({"encoder": np.array("a\nb")}, "encoder: expected one line of text"),
    ],
)
def test_what_will_not_do_is_refused_in_one_line(write_features, changes, expected):
    path = write_features(feature_arrays(**changes))
    message = refusal(catalog.load, path)
    assert message.startswith(str(path)) and expected in message, message


def test_what_is_no_file_of_features_is_refused(write_features, tmp_path):
    path = tmp_path / "file.npz"
    np.save(tmp_path / "one.npy", ROWS)
    whole = write_features(feature_arrays()).read_bytes()
    for content in (b"", b"text", whole[:100], (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        assert str(path) in refusal(catalog.load, path)
    assert "or .npz" in refusal(catalog.load, tmp_path / "absent.npz")
    names = tmp_path / "names.txt"
    names.write_text("0 dots\n")
    assert "itself" in refusal(catalog.load, write_features(feature_arrays()), None, names)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file, its bytes and what it holds."""
    path = tmp_path_factory.mktemp("features") / "whole.npz"
    np.savez(path, **feature_arrays(shots=1))
    return path, path.read_bytes(), features.read(path)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_it_was(whole, data):
    path, content, expected = whole
    if data.draw(st.booleans()):
        damaged = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        changed = bytes([data.draw(st.integers(0, 255))])
        damaged = content[:place] + changed + content[place + 1 :]
    path.with_name("damaged.npz").write_bytes(damaged)
    try:
        found = features.read(path.with_name("damaged.npz"))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert found.classes == expected.classes and found.test.content == expected.test.content
    np.testing.assert_array_equal(found.texts, expected.texts)
