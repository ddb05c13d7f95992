"""A workdir is one config's, may be added to, and is written by one process."""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from makers import coop_data, feature_arrays
from record_presets import small
from report_results import make

from coop_jax import holding, protocols, results, workdir
from coop_jax.__main__ import main
from coop_jax.errors import InputError, MachineError
from coop_jax.run_log import Log
from coop_jax.sweep.groups import FINISHED_FILE, Group


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"), ["dtd"])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "dtd"


def run(data, folder, **changes):
    """A linear probe, which is quick; every file of the workdir."""
    protocols.run(small("linear_probe:dtd", data, **changes), folder)
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def learned(folder):
    rows = results.find(results.read(folder / results.FILE_NAME), method="linear_probe")
    return {(row.shots, row.seed): row.accuracy for row in rows}


@pytest.mark.heavy
def test_shots_and_seeds_are_added_to_what_is_there(data, folder, tmp_path):
    before = run(data, folder, shots=(2,), seeds=(1,))
    after = run(data, folder, shots=(1, 2), seeds=(1, 2))
    record = folder / results.FILE_NAME
    assert after[record].startswith(before[record])
    kept = [path for path in before if path.parts[-2].endswith("2_shots_seed_1")]
    assert kept and all(after[path] == before[path] for path in kept)
    at_once = tmp_path / "at_once"
    run(data, at_once, shots=(1, 2), seeds=(1, 2))
    assert learned(folder) == learned(at_once) and len(learned(folder)) == 4
    assert json.loads(after[folder / "config.json"])["seeds"] == [1, 2]
    assert run(data, folder, shots=(1, 2), seeds=(1, 2)) == after


def test_a_workdir_takes_more_shots_and_seeds_alone(data, folder):
    def config(shots, seeds, **changes):
        return small("linear_probe:dtd", data, shots=shots, seeds=seeds, **changes)

    workdir.claim(config((1, 2), (1, 2)), folder)
    workdir.check(config((4, 2, 1), (1, 2, 3)), folder)
    before = (folder / "config.json").read_bytes()
    for changed, keys in (
        (config((1, 2), (1,)), "seeds"),
        (config((1, 4), (2, 3)), "seeds, shots"),
        (config((1, 2), (1, 2, 3), sampling="coop"), "sampling"),
    ):
        with pytest.raises(InputError, match=rf"\(different: {keys}\); name another --workdir"):
            workdir.claim(changed, folder)
    assert (folder / "config.json").read_bytes() == before


def test_a_sweep_s_group_to_which_something_is_added_is_not_finished(data, tmp_path):
    """Nor where the run that adds it ends before its first result."""
    config = small("linear_probe:dtd", data)
    group = Group("linear_probe:dtd", config, tmp_path)
    workdir.claim(config, group.folder)
    (group.folder / results.FILE_NAME).write_text("")
    (group.folder / FINISHED_FILE).write_text(group.end([]))
    assert group.is_finished
    more = group._replace(config=config | {"seeds": (1, 2)})
    assert not more.is_finished
    workdir.claim(more.config, group.folder)
    assert not more.is_finished


@pytest.fixture
def other(folder):
    """Another process that holds the folder; it is killed in the end."""
    folder.mkdir(parents=True)
    code = f"""
from pathlib import Path
from coop_jax import workdir
with workdir.locked(Path({str(folder)!r})):
    print(flush=True)
    input()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_a_second_process_is_refused_at_once(data, folder, other, capsys):
    config = f"--config.data_dir={data}", "--config.clip.name=tiny"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for words in (["run", "--config=linear_probe:dtd"], ["sweep", "linear_probe:dtd"]):
        assert main([*words, *config, f"--workdir={folder}"]) == 2
        out, err = capsys.readouterr()
        said = (
            rf"got {folder}, to which process {other.pid} on \S+, since 20[\d :+-]+, writes; wait"
        )
        assert out == "" and err.count("\n") == 1 and re.search(said, err)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    other.kill()
    other.wait()
    with workdir.locked(folder):
        assert f"process {os.getpid()} on" in (folder / workdir.LOCK_FILE).read_text()


def test_a_lock_leaves_nothing_and_may_be_held_twice(folder):
    with workdir.locked(folder):
        with workdir.locked(folder):
            pass
        with (folder / workdir.LOCK_FILE).open("r+") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not folder.parent.exists()
    with workdir.locked(folder):
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_lock_that_was_removed_while_it_was_waited_for_is_made_again(folder, monkeypatch):
    """By the process before, between the two lines that open and lock the file."""
    lock, removed = fcntl.flock, []

    def remove_first(file, how):
        if not removed:
            removed.append((folder / workdir.LOCK_FILE).unlink())
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with workdir.locked(folder):
        assert removed and (folder / workdir.LOCK_FILE).read_text().startswith("process ")


@pytest.fixture
def no_flock(monkeypatch):
    """As on a file system that knows none."""

    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_flock_the_file_is_the_lock_until_its_holder_is_silent(
    folder, no_flock, monkeypatch
):
    lock = folder / workdir.LOCK_FILE
    with workdir.locked(folder):
        results.append(folder / results.FILE_NAME, make())
        held = lock.read_text()
        assert held.startswith(f"process {os.getpid()} on ")
    assert results.read(folder / results.FILE_NAME) == [make()] and not lock.exists()
    lock.write_text(held)  # what one that was killed leaves
    with pytest.raises(InputError, match=r"wait until that ends \(where it was killed, 60 sec"):
        workdir.locked(folder).__enter__()
    assert lock.read_text() == held
    os.utime(lock, (0, time.time() - holding.STALE - 1))
    monkeypatch.setattr(holding, "BEAT", 0.01)
    with workdir.locked(folder):
        os.utime(lock, (0, 0))
        while not lock.stat().st_mtime:
            time.sleep(0.01)
    assert {path.name for path in folder.iterdir()} == {results.FILE_NAME}


def test_a_holder_without_flock_that_was_taken_for_dead_writes_no_more(folder, no_flock):
    lock = folder / workdir.LOCK_FILE
    with workdir.locked(folder):
        lock.unlink()
        lock.write_text("process 1 on another, since today,")
        with pytest.raises(MachineError, match=f"process holds, {folder}, got another: it, or the"):
            results.append(folder / results.FILE_NAME, make())
    assert lock.read_text() == "process 1 on another, since today,"
    assert os.listdir(folder) == [lock.name]


@pytest.mark.parametrize("lose", ["moved", "deleted", "replaced"])
def test_a_workdir_that_is_lost_while_training_is_not_made_anew(data, folder, lose, monkeypatch):
    """It is noticed at the first step's metrics."""

    def lose_it(*_):
        if lose == "moved":
            folder.rename(folder.with_name("elsewhere"))
        else:
            shutil.rmtree(folder)
        if lose == "replaced":
            folder.mkdir()

    monkeypatch.setattr(Log, "begins", lose_it)
    with pytest.raises(MachineError) as said:
        run(data, folder)
    assert f"expected the folder that this process holds, {folder}, got none: " in str(said.value)
    assert not any(folder.glob("*.*"))


def test_a_workdir_that_is_lost_before_the_pictures_is_not_made_anew(
    write_features, folder, capsys, monkeypatch
):
    run_all = protocols.run

    def run_and_lose(config, workdir):
        made = run_all(config, workdir)
        shutil.rmtree(folder)
        return made

    monkeypatch.setattr(protocols, "run", run_and_lose)
    config = f"--config.dataset={write_features(feature_arrays())}", "--config.templates=()"
    few = "--config.shots=(2,)", "--config.seeds=(1,)", f"--workdir={folder}"
    assert main(["run", "--config=few_shot:linear_probe", *config, *few]) == 1
    assert "error: expected the folder that this process holds" in capsys.readouterr().err
    assert not folder.exists()


def test_a_workdir_that_cannot_be_made_is_one_line(data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected a --workdir to write to, got .*file is a file"):
        run(data, tmp_path / "file" / "below")
    with pytest.raises(MachineError, match=r"expected to write to the --workdir, got .*same co"):
        run(data, Path("/proc/no_folder"))
