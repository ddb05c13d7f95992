"""Damaged copies: made again or passed over for the originals, and never in silence."""

import functools
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from damages import DAMAGES, damage
from makers import image_folder

from coop_jax.__main__ import main
from coop_jax.data import catalog, copies, making
from coop_jax.data.listing import SPLITS


def contents(dataset):
    """Everything that training sees of a dataset."""
    return [
        (dataset.classes, examples.labels.tolist(), examples.file_names.tolist(), pixels(examples))
        for examples in (getattr(dataset, split) for split in SPLITS)
    ]


def pixels(examples):
    return [examples.image(index).tobytes() for index in range(len(examples))]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A data directory with the digits, and what they are."""
    data_dir = tmp_path_factory.mktemp("digits")
    return data_dir, contents(catalog.load("digits", data_dir))


def check_digits(digits, path, kind, caplog):
    data_dir, expected = digits
    damage(path, kind)
    caplog.clear()
    assert contents(catalog.load("digits", data_dir)) == expected
    lines = [record.getMessage() for record in caplog.records]
    is_absent_index = kind == "deleted" and path.name.startswith("index")
    assert len(lines) == (not is_absent_index), lines
    assert is_absent_index or ("made again" in lines[0] and "\n" not in lines[0])
    assert contents(catalog.load("digits", data_dir)) == expected
    assert len(caplog.records) == len(lines)
    assert not list(data_dir.rglob("*unfinished*")) and not list(data_dir.rglob("*.lock"))


def files_of_digits(data_dir):
    return sorted((data_dir / "digits" / "1.0.0").iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("digits-test.array_record-00000-of-00001", "flipped"),
        ("label.labels.txt", "short"),
        ("index-train.npz", "half"),
    ],
)
def test_damaged_digits_are_made_again(digits, name, kind, caplog):
    check_digits(digits, digits[0] / "digits" / "1.0.0" / name, kind, caplog)


def test_a_folder_in_the_place_of_an_index_stays_and_is_said(digits, tmp_path, caplog):
    data_dir, expected = digits
    shutil.copytree(data_dir / "digits", tmp_path / "digits")
    index = tmp_path / "digits" / "1.0.0" / "index-train.npz"
    index.unlink()
    index.mkdir()
    assert contents(catalog.load("digits", tmp_path)) == expected
    (line,) = caplog.messages
    assert line == f"{index}: expected it as it was written, got damage; it is made again"
    assert index.is_dir() and not list(tmp_path.rglob("*unfinished*"))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["deleted", "half", "flipped"])
def test_every_damaged_file_of_the_digits_is_made_again(digits, kind, caplog):
    for path in files_of_digits(digits[0]):
        check_digits(digits, path, kind, caplog)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of images, a data directory with their copy, and what they are."""
    folder, plan = tmp_path_factory.mktemp("pets"), copies.plan
    root = image_folder(folder / "pets", ["cat", "dog"], 4)
    expected = contents(catalog.load(str(root), folder / "none"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "plan", functools.partial(plan, limit=4_000))
        assert main(["prepare", str(root), f"--data-dir={folder}"]) == 0
    return root, folder / "prepared", expected


@pytest.mark.parametrize("kind", DAMAGES)
def test_the_originals_of_a_damaged_copy_are_read(pets, kind, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(copies, "plan", functools.partial(copies.plan, limit=4_000))
    root, prepared, expected = pets
    names = sorted(path.relative_to(prepared) for path in prepared.rglob("*") if path.is_file())
    assert len(names) >= 11
    for number, name in enumerate(names):
        data_dir = tmp_path / f"{number}"
        shutil.copytree(prepared, data_dir / "prepared")
        damage(data_dir / "prepared" / name, kind)
        caplog.clear()
        assert contents(catalog.load(str(root), data_dir)) == expected
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) <= 1 and not any("\n" in line for line in lines), lines
        may_be_harmless = kind in ("short", "flipped") or name.suffix in (".txt", ".json")
        assert may_be_harmless or "riginal" in lines[0]
        assert main(["prepare", str(root), f"--data-dir={data_dir}"]) == 0
        caplog.clear()
        again = catalog.load(str(root), data_dir)
        assert again.place.startswith("prepared copy") and contents(again) == expected
        assert not caplog.records
        assert not list(data_dir.rglob("*unfinished*")) and not list(data_dir.rglob("*.lock"))


def test_a_record_that_is_damaged_in_the_middle_of_a_run_is_read_from_its_file(
    pets, tmp_path, caplog
):
    root, prepared, expected = pets
    shutil.copytree(prepared, tmp_path / "prepared")
    opened = catalog.load(str(root), tmp_path)
    for path in (tmp_path / "prepared").rglob("*array_record*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert contents(opened) == expected
    (record,) = caplog.records
    assert "the originals of damaged ones are read instead" in record.getMessage()


def test_exchanged_shards_are_noticed(pets, tmp_path, caplog):
    root, prepared, expected = pets
    shutil.copytree(prepared, tmp_path / "prepared")
    first, second, *_ = sorted((tmp_path / "prepared").rglob("*train.array_record*"))
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    assert contents(catalog.load(str(root), tmp_path)) == expected
    (record,) = caplog.records
    assert "in place of" in record.getMessage()


def test_digits_are_read_without_a_copy_where_none_can_be_written(digits, caplog):
    dataset = catalog.load("digits", "/proc/data")
    assert contents(dataset) == digits[1] and dataset.place == "scikit-learn"
    (record,) = caplog.records
    assert "expected to write the dataset, got" in record.getMessage()
    assert record.getMessage().endswith("the digits are read from scikit-learn instead")


@pytest.mark.parametrize("name", ["digits", "pets"])
def test_prepare_says_in_one_line_that_nothing_can_be_written(name, pets, run):
    code, out, (line,) = run(
        "prepare", pets[0] if name == "pets" else name, "--data-dir=/proc/data"
    )
    assert (code, out) == (1, []) and "got No such file or directory (/proc/data" in line


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path, caplog):
    left = tmp_path / "digits" / ".1.0.0.dead.unfinished"
    (left / "digits").mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with making.alone(tmp_path / "digits" / "1.0.0"):
            waiting = pool.submit(catalog.load, "digits", tmp_path)
            time.sleep(0.2)
            assert left.exists() and not waiting.done()
        assert len(waiting.result().test) == 540
    assert sorted(path.name for path in (tmp_path / "digits").iterdir()) == ["1.0.0"]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["digits", "pets"])
def test_files_that_may_not_grow_are_one_line_and_the_same_command_goes_on(
    name, pets, tmp_path, run
):
    command = ["prepare", str(pets[0]) if name == "pets" else name, f"--data-dir={tmp_path}"]
    program = (
        "import resource, signal, sys\n"
        "from coop_jax.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "File too large" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("1.0.0"))
    code, _, err = run(*command)
    assert (code, err) == (0, []) and len(list(tmp_path.rglob("1.0.0"))) == 1
    assert not list(tmp_path.rglob("*unfinished*"))
