import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from coop_jax.data import builders, catalog
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
    assert digits.class_names == builders.DIGIT_NAMES
    assert digits.class_names[7] == "seven"
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


def test_photographs_survive_bit_for_bit(reference, tmp_path):
    archive = reference / "cifar10" / "cifar10_200.tar"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    root = tmp_path / "photographs"
    with tarfile.open(archive) as file:
        file.extractall(root, filter="data")
    dataset = catalog.load(str(root), tmp_path / "data")
    folders = sorted(path.name for path in (root / "train").iterdir())
    assert dataset.name == "photographs"
    assert dataset.class_names == tuple(folders)
    names = []
    for split in SPLITS:
        examples = getattr(dataset, split)
        for i in range(len(examples)):
            name = examples.file_names[i]
            names.append(name)
            assert folders[examples.labels[i]] == name.split("/")[1]
            assert examples.source[i]["image"] == (root / name).read_bytes()
            with Image.open(root / name) as image:
                assert examples.image(i).tobytes() == image.tobytes()
    assert sorted(names) == sorted(p.relative_to(root).as_posix() for p in root.rglob("*.jpg"))


def image_folder(root, files):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 0, 0)).save(path)
    return root


def ten_each(split, *classes):
    return [f"{split}/{name}/{i}.png" for name in classes for i in range(10)]


def test_without_a_val_folder_train_stays_whole(tmp_path):
    root = image_folder(tmp_path / "f", ten_each("train", "a_b", "c") + ten_each("test", "c"))
    dataset = catalog.load(str(root), tmp_path / "data")
    assert dataset.class_names == ("a b", "c")
    assert np.bincount(dataset.train.labels).tolist() == [10, 10]
    assert len(dataset.val) == 0
    assert dataset.test.labels.tolist() == [1] * 10
    assert dataset.train.file_names[0] == "train/a_b/0.png"


def test_a_val_folder_is_taken_as_it_is(tmp_path):
    files = ten_each("train", "a", "b") + ten_each("test", "a")
    root = image_folder(tmp_path / "f", [*files, "val/b/1.png"])
    assert catalog.load(str(root), tmp_path / "data").val.labels.tolist() == [1]


def test_a_changed_folder_is_stored_anew(tmp_path):
    root = image_folder(tmp_path / "f", ten_each("train", "a") + ten_each("test", "a"))
    assert len(catalog.load(str(root), tmp_path / "data").test) == 10
    image_folder(root, ["test/a/new.png"])
    assert len(catalog.load(str(root), tmp_path / "data").test) == 11


def test_files_that_are_no_images_are_passed_over(tmp_path):
    root = image_folder(tmp_path / "f", ten_each("train", "a") + ten_each("test", "a"))
    (root / "test/a/notes.txt").write_text("notes")
    (root / "test/a/._1.png").write_bytes(b"resource fork")
    assert len(builders.scan_folder(root).splits["test"]) == 10


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.png"], "got no .*test"),
        (["test/a/1.png"], "got no .*train"),
        (["train/a/1.png", "test/b/1.png"], "got also b;"),
        (["train/1.png", "test/a/1.png"], "got none;"),
    ],
)
def test_a_layout_that_cannot_be_used_is_refused(tmp_path, files, message):
    root = image_folder(tmp_path / "f", files)
    with pytest.raises(InputError, match=message):
        catalog.load(str(root), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_empty_class_folder_is_named(tmp_path):
    root = image_folder(tmp_path / "f", ["train/a/1.png", "test/a/1.png"])
    (root / "train" / "nothing").mkdir()
    with pytest.raises(InputError, match="got none for nothing;"):
        builders.scan_folder(root)


def test_an_unreadable_image_is_named(tmp_path):
    root = image_folder(tmp_path / "f", ten_each("train", "a") + ten_each("test", "a"))
    whole = (root / "test/a/3.png").read_bytes()
    (root / "test/a/3.png").write_bytes(whole[: len(whole) // 2])
    (root / "test/a/4.png").write_bytes(b"")
    test = catalog.load(str(root), tmp_path / "data").test
    for index in (3, 4):
        with pytest.raises(InputError, match=f"test/a/{index}.png of the test split"):
            test.image(index)


def test_a_data_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="expected to write the dataset to"):
        catalog.load("digits", tmp_path / "file")


def test_a_failed_build_leaves_no_dataset(tmp_path, monkeypatch):
    def fail(*_):
        yield 0, {"image": b"png", "label": 0, "file_name": "a"}
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="interrupted"):
        patch.setattr(builders.Digits, "_generate_examples", fail)
        catalog.load("digits", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert len(catalog.load("digits", tmp_path).test) == 540


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r'\(digits\) or the path of an image folder, got "digit"'):
        catalog.load("digit")


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
