"""A disk that takes no more, or a file that is not as it was written: one line, and it goes on."""

import contextlib
import os
import resource
import signal

import numpy as np
import pytest
from makers import feature_arrays

from coop_jax import results, workdir, writing
from coop_jax.errors import InputError, MachineError
from coop_jax.saved import files, hub
from coop_jax.terminal import check_new, write_new

RECORD = {name: kind() for name, kind in files.FIELDS.items()}
"""That of a saved method which is none."""


@pytest.fixture
def workdir_of(tmp_path):
    """The path of a workdir."""
    return tmp_path / "runs" / "textures"


@pytest.fixture
def probe(write_features, run):
    """Run a linear probe on given features: exit code, what is printed, the lines of errors."""
    arrays = write_features(feature_arrays())

    def run_probe(folder, *words, command="run"):
        config = (
            ["few_shot:linear_probe"] if command == "sweep" else ["--config=few_shot:linear_probe"]
        )
        few = "--config.shots=(2,)", "--config.seeds=(1,)", "--config.templates=()"
        return run(
            command, *config, f"--config.dataset={arrays}", *few, "--workdir", folder, *words
        )

    return run_probe


@contextlib.contextmanager
def files_of(size):
    """Let no file of this process have more bytes: what is beyond is refused, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def numbers(folder):
    """The results, times aside."""
    rows = results.read(folder / results.FILE_NAME)
    return [(row.method, row.accuracy, row.macro_f1, row.hashes) for row in rows]


def unfinished(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(writing.UNFINISHED)]


def test_a_run_on_a_full_disk_goes_on_where_there_is_room(probe, workdir_of, tmp_path):
    assert probe(tmp_path / "undisturbed")[0] == 0
    for size, doing in ((500, "write the config"), (1500, "write results")):
        with files_of(size):
            code, out, (*_, last) = probe(workdir_of)
        assert (code, out) == (1, []) and not unfinished(tmp_path)
        assert last.startswith(f"error: expected to {doing}, got File too large ({workdir_of}/")
        assert last.endswith("; make room, and the same command goes on")
    assert probe(workdir_of)[0] == 0
    assert numbers(workdir_of) == numbers(tmp_path / "undisturbed")
    (workdir_of / "report.png").unlink()
    with files_of(5000):
        code, _, (last,) = probe(workdir_of)
    assert code == 1 and "expected to write a picture, got File too large" in last
    assert not unfinished(tmp_path) and probe(workdir_of)[0] == 0
    assert (workdir_of / "report.png").is_file()


def test_a_sweep_on_a_full_disk_goes_on_where_there_is_room(probe, workdir_of):
    for size, doing in ((10, "write what is logged"), (2000, "write results")):
        with files_of(size):
            code, _, err = probe(workdir_of, command="sweep")
        assert code == 1 and any(f"expected to {doing}, got File too large" in line for line in err)
        assert not any("Traceback" in line or "Logging error" in line for line in err)
    assert not unfinished(workdir_of)
    assert probe(workdir_of, command="sweep")[0] == 0
    assert len(results.read(workdir_of / results.FILE_NAME)) == 2
    finished = workdir_of / "groups" / "few_shot_linear_probe" / "finished"
    finished.write_bytes(b"\xff")
    assert probe(workdir_of, command="sweep")[0] == 0
    assert finished.read_bytes().startswith(b"2 results and 1 saved method of the config ")


def test_a_damaged_config_is_written_again_where_it_is_known(probe, workdir_of):
    """From the command, which has to agree with the results."""
    path = workdir_of / workdir.CONFIG_FILE
    assert probe(workdir_of)[0] == 0
    whole, before = path.read_bytes(), numbers(workdir_of)
    for damaged in (whole.replace(b"0.5", b"0.6"), whole[:-100], b"[]", b"", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        code, _, (line, *_) = probe(workdir_of)
        state = "missing" if damaged is None else "damaged"
        assert code == 0 and path.read_bytes() == whole and numbers(workdir_of) == before
        assert line == f"{path} is {state}: it is written again; the results are of the same config"
    path.write_bytes(b"")
    code, _, (line,) = probe(workdir_of, "--config.sampling=coop")
    assert code == 2 and "(different: sampling)" in line
    assert path.read_bytes() == b""
    assert not any("written again" in line for line in probe(workdir_of)[2][1:])
    assert not probe(workdir_of)[2]


def test_a_damaged_config_of_nothing_is_refused_where_there_is_something(probe, workdir_of):
    path = workdir_of / workdir.CONFIG_FILE
    (workdir_of / "checkpoints").mkdir(parents=True)
    path.write_text("{}")
    code, _, (line,) = probe(workdir_of)
    assert code == 1 and line == (
        f"error: {path}: expected the config as it was written, got a damaged file; restore it, or"
        " name another --workdir"
    )
    (workdir_of / "checkpoints").rmdir()
    code, _, (line, *_) = probe(workdir_of)
    assert code == 0 and line == f"{path} is damaged: it is written again"


def test_leftovers_of_dead_processes_go_from_a_workdir(probe, workdir_of):
    """Also before there is a config; what others have called so stays."""
    names = "config.json", "results.jsonl", "metrics/x.jsonl", "saved/.2_shots_seed_1"
    left = [writing.unfinished_name(workdir_of / name) for name in names]
    for path in left[:2]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert probe(workdir_of)[0] == 0 and not unfinished(workdir_of)
    for path in left[2:]:
        path.mkdir(parents=True)
        (path / "half").touch()
    (workdir_of / "thesis.unfinished").touch()
    assert probe(workdir_of)[0] == 0
    assert unfinished(workdir_of) == [workdir_of / "thesis.unfinished"]


def test_new_files_are_all_there_or_none_is(tmp_path, no_room):
    contents = {tmp_path / "a": "short", tmp_path / "b": "long" * 100}
    with pytest.raises(MachineError, match=r"expected to write, got File too large \(.*a and .*b"):
        write_new(contents)
    with pytest.raises(MachineError, match="expected to save to a folder, got File too large"):
        files.write(tmp_path / "mine", dict.fromkeys(files.FIELDS, ""), {})
    assert not any(tmp_path.iterdir())


def test_where_nobody_may_write_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod stops root from nothing
    for check in (lambda path: check_new([path]), files.check_new):
        with pytest.raises(MachineError) as said:
            check(tmp_path / "new")
        assert str(said.value) == (
            f"expected to write there, got Permission denied ({tmp_path / 'new'}); make it"
            " writable, and the same command goes on"
        )
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file"):
        files.check_new(tmp_path / "file" / "new")


def test_a_hub_s_cache_that_is_full_is_one_line(server, tmp_path):
    files.write(tmp_path / "mine", RECORD, {"x": np.zeros(1000, np.float32)})
    hub.push(tmp_path / "mine", "somebody/mine")
    with files_of(100), pytest.raises(MachineError, match="hub's cache, got File too large"):
        hub.pull("somebody/mine")
    assert hub.pull("somebody/mine").is_dir()
