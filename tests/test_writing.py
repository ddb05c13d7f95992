"""Files are there as a whole or not at all."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from coop_jax import writing
from coop_jax.errors import InputError, MachineError


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path, no_room):
    path = tmp_path / "file"
    writing.write_whole(path, b"before")
    with pytest.raises(OSError) as refused:
        writing.write_whole(path, bytes(101))
    assert refused.value.errno == errno.EFBIG
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
    writing.write_whole(path, b"after")
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["file"]


def test_files_are_written_together_or_not_at_all(tmp_path, no_room):
    first, second = tmp_path / "first", tmp_path / "second"
    for contents in ({first: b"", second: bytes(101)}, {first: bytes(101), second: b""}):
        with pytest.raises(OSError):
            writing.write_all(contents)
        assert os.listdir(tmp_path) == []
    second.mkdir()  # which no file takes the place of
    with pytest.raises(OSError):
        writing.write_all({first: b"", second: b""})
    assert os.listdir(tmp_path) == ["second"]


def test_what_is_added_to_a_file_is_there_as_a_whole_or_not_at_all(tmp_path, no_room):
    path = tmp_path / "file"
    with path.open("ab", buffering=0) as file:
        writing.append_whole(file, bytes(60))
        with pytest.raises(OSError):
            writing.append_whole(file, bytes(60))
        writing.append_whole(file, bytes(40), sync=True)
    assert path.stat().st_size == 100


def test_a_folder_in_a_file_s_place_is_the_user_s(tmp_path):
    with (
        pytest.raises(InputError, match=rf"write, got Is a directory \({tmp_path}\); move what is"),
        writing.said("write", tmp_path),
    ):
        writing.write_whole(tmp_path, b"")


def test_leftovers_are_known_by_their_names(tmp_path):
    mine = writing.unfinished_name(tmp_path / ".mine")
    mine.mkdir()
    (mine / "half").touch()
    writing.unfinished_name(tmp_path / "other").touch()
    for name in ("thesis.unfinished", ".mine.backup", "photo." + "0" * 32):
        (tmp_path / name).touch()
    writing.remove_unfinished(tmp_path, of="mine.", shared=True)
    assert mine.exists()
    os.utime(mine, (0, 0))
    writing.remove_unfinished(tmp_path, of="mine.", shared=True)
    assert not mine.exists() and len(os.listdir(tmp_path)) == 4
    writing.remove_unfinished(tmp_path)
    assert len(os.listdir(tmp_path)) == 3


@pytest.mark.parametrize("shared", [False, True])
def test_what_another_process_writes_stays_where_it_may(tmp_path, shared):
    path = tmp_path / "file"
    code = f"""
import os
from pathlib import Path
from coop_jax import writing
os.fsync = lambda file: print(flush=True) or input()
writing.write_whole(Path({str(path)!r}), b"content")
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        process.stdout.readline()
        writing.remove_unfinished(tmp_path, shared=shared)
        assert len(os.listdir(tmp_path)) == shared
        process.kill()
    writing.remove_unfinished(tmp_path, shared=shared)
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_what_is_new_stays(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    writing.write_whole(tmp_path / "file", b"content")
    old, new = (writing.unfinished_name(tmp_path / name) for name in ("old", "new"))
    for path, minutes in ((old, 61), (new, 59)):
        path.touch()
        os.utime(path, (time.time() - 60 * minutes,) * 2)
    writing.remove_unfinished(tmp_path, shared=True)
    assert sorted(os.listdir(tmp_path)) == ["file", new.name]


def test_a_file_that_is_taken_for_a_leftover_is_begun_again(tmp_path, monkeypatch):
    flock, taken = fcntl.flock, []

    def take_away(file, how):
        if not taken:
            taken.append(file.name)
            os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", take_away)
    writing.write_whole(tmp_path / "file", b"content")
    assert taken and os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "make it writable"),
        (errno.ENOENT, "bring its folder back"),
        (errno.EIO, "see to the disk"),
    ],
)
def test_what_the_file_system_refuses_is_one_line(number, advice):
    with pytest.raises(MachineError) as said, writing.said("write results", "runs/results.jsonl"):
        raise OSError(number, os.strerror(number))
    assert str(said.value) == (
        f"expected to write results, got {os.strerror(number)} (runs/results.jsonl); {advice}, and"
        " the same command goes on"
    )
