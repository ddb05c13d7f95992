import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.datasets import load_digits

from coop_jax.data import catalog
from coop_jax.data import digits as builder
from coop_jax.errors import InputError

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def digits(data_dir):
    return catalog.load("digits", data_dir)


def test_digits_have_every_example_once_and_the_fractions_per_class(digits):
    _, labels = load_digits(return_X_y=True)
    total = np.bincount(labels)
    wanted = {"train": [round(n * 0.5) for n in total], "val": [round(n * 0.2) for n in total]}
    names = []
    for split in SPLITS:
        examples = getattr(digits, split)
        assert examples.labels.dtype == np.int32
        names += examples.file_names.tolist()
        if split in wanted:
            assert np.bincount(examples.labels).tolist() == wanted[split]
    assert sorted(names) == [f"{i:04d}.png" for i in range(len(labels))]


def test_digits_have_scikit_learn_s_pixels_and_labels(digits):
    data = load_digits()
    for split in SPLITS:
        examples = getattr(digits, split)
        for i in range(len(examples)):
            index = int(examples.file_names[i][:4])
            assert examples.labels[i] == data.target[index]
            image = examples.image(i)
            assert (image.format, image.mode) == ("PNG", "L")
            np.testing.assert_array_equal(np.asarray(image), np.rint(data.images[index] * 255 / 16))


def test_digits_names(digits):
    assert digits.name == "digits"
    assert digits.classes.names == builder.DIGIT_NAMES
    assert digits.classes.names[7] == "seven"
    assert all("{}" in template for template in digits.templates)


def test_existing_files_are_reused(digits, data_dir):
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*") if path.is_file()}
    again = catalog.load("digits", data_dir)
    assert {p: p.stat().st_mtime_ns for p in data_dir.rglob("*") if p.is_file()} == before
    np.testing.assert_array_equal(again.train.labels, digits.train.labels)


def test_examples_survive_pickling_threads_and_subsets(digits):
    chosen = digits.train.subset([5, 3, 5])
    assert chosen.labels.tolist() == digits.train.labels[[5, 3, 5]].tolist()
    assert chosen.subset([1]).file_names[0] == digits.train.file_names[3]
    copy = pickle.loads(pickle.dumps(chosen))
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(copy.image, [0, 1, 2] * 20))
    for i, image in enumerate(images):
        assert image.tobytes() == digits.train.image([5, 3, 5][i % 3]).tobytes()
    with pytest.raises(InputError, match="from 0 to 2 into the train split, got 0 to 3"):
        chosen.subset([0, 3])


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="expected to write the dataset to"):
        catalog.load("digits", tmp_path / "file")


def test_a_failed_build_leaves_no_dataset(tmp_path, monkeypatch):
    def fail(*_):
        yield 0, {"image": b"png", "label": 0, "file_name": "a"}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(builder.Digits, "_generate_examples", fail)
        catalog.load("digits", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert len(catalog.load("digits", tmp_path).test) == 540


def test_loading_is_quiet_and_needs_neither_tensorflow_nor_torch(tmp_path):
    program = (
        "import sys, coop_jax.data\n"
        "from coop_jax.data import catalog, pipeline\n"
        f"catalog.load('digits', {str(tmp_path)!r}).train.image(0)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
