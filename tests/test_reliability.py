"""The tool that disturbs runs: it strikes where it is told to, and notices what it must."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

from trials import process, record, runs, torn

WRITES = """
import os
os.mkdir("folder")
with open("folder/a", "wb", buffering=0) as file:
    file.write(b"12345678")
    os.fsync(file.fileno())
os.rename("folder/a", "folder/b")
with open("../elsewhere", "wb") as file:
    file.write(b"unwatched")
os.unlink("folder/b")
"""
EVENTS = ["mkdir /folder", "open /folder/a", "write /folder/a", "fsync /folder/a"]
EVENTS += ["rename /folder/b", "unlink /folder/b"]

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return process.compile_faults(tmp_path_factory.mktemp("library"))


def struck(library, tmp_path, fault):
    """Run what writes, struck by a fault; return how it ended, and the events."""
    files, log = tmp_path / "files", tmp_path / "events"
    files.mkdir()
    told = process.arm(fault, files.resolve(), log)
    done = subprocess.run(
        [sys.executable, "-c", WRITES],
        cwd=files,
        env={**os.environ, "LD_PRELOAD": str(library), "FAULTS": told},
        stderr=subprocess.PIPE,
        text=True,
    )
    return done, log.read_text().splitlines()


@needs_compiler
def test_events_below_the_folder_are_counted(library, tmp_path):
    done, events = struck(library, tmp_path, process.NO_FAULT)
    assert done.returncode == 0
    assert events == EVENTS


@needs_compiler
@pytest.mark.parametrize("number", range(1, len(EVENTS) + 1))
def test_a_process_is_killed_before_an_event(library, tmp_path, number):
    done, events = struck(library, tmp_path, process.Fault("kill", number, number))
    assert done.returncode == -signal.SIGKILL
    assert events == EVENTS[:number]
    assert (tmp_path / "files" / "folder" / "b").exists() == (number == 6)


@needs_compiler
@pytest.mark.parametrize("action", ["tear", "short"])
def test_a_write_is_half_done(library, tmp_path, action):
    done, _ = struck(library, tmp_path, process.Fault(action, 3, 10))
    assert (tmp_path / "files" / "folder" / "a").read_bytes() == b"1234"
    if action == "tear":
        assert done.returncode == -signal.SIGKILL
    else:
        assert "No space left on device" in done.stderr


@needs_compiler
@pytest.mark.parametrize("number", range(1, len(EVENTS) + 1))
def test_an_event_fails_with_an_error(library, tmp_path, number):
    done, _ = struck(library, tmp_path, process.Fault(str(errno.EROFS), number, number))
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("how", torn.DAMAGES)
def test_a_damaged_file_is_another(tmp_path, how):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 101)))
    torn.damage(path, how, 0.5)
    assert not path.is_file() or path.read_bytes() != bytes(range(1, 101))
    assert path.is_dir() == (how == "a folder") and path.exists() == (how != "deleted")


def test_another_number_is_noticed_and_another_time_is_not(tmp_path):
    def bits(row, learned=b"1"):
        saved = tmp_path / runs.WORK / "saved" / "run"
        saved.mkdir(parents=True, exist_ok=True)
        (saved / "learned.safetensors").write_bytes(learned)
        (tmp_path / runs.WORK / "results.jsonl").write_text(row)
        return runs.bits(tmp_path)

    first = bits('{"accuracy": 70.0, "seconds": 1.0}')
    assert runs.difference(first, bits('{"accuracy": 70.0, "seconds": 2.0}')) == ""
    assert "results.jsonl" in runs.difference(first, bits('{"accuracy": 71.0, "seconds": 1.0}'))
    other = bits('{"accuracy": 70.0, "seconds": 1.0}', b"2")
    assert runs.difference(first, other) == "other saved/run/learned.safetensors"


def test_a_recovery_is_told_from_what_is_always_done():
    usual = ["mkdir /run/checkpoints/run/stage_1/40.tmp", "open /run/report.png"]
    again = ["mkdir /run/checkpoints/run/stage_1/20.tmp", *usual]
    assert torn.recovered(usual, usual) == set()
    assert torn.recovered(again, usual) == {"/run/checkpoints/run/stage_1/20"}


def test_the_table_counts_what_was_lost(tmp_path):
    path = tmp_path / "record.jsonl"
    for number, wrong in enumerate(("", "other bits", "")):
        trial = {"kind": "kills", "name": f"kills-{number}"}
        record.append(path, trial, {"wrong": wrong, "seconds": 1.0})
    record.append(path, {"kind": "fuzz", "name": "a"}, {"wrong": "", "seconds": 1, "count": 2000})
    table = record.table(record.read(path), {"kills": "kills", "fuzz": "executions"})
    assert table.splitlines()[2:] == ["| kills | 3 | 2 | 1 |", "| executions | 2,000 | 2,000 | 0 |"]
