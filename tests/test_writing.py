"""Files are there as a whole or not at all."""

import errno
import os
import resource
import signal

import pytest

from coop_jax import writing
from coop_jax.errors import MachineError


@pytest.fixture
def no_room():
    """Let no file of this process have more than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_replaced_as_a_whole_or_stays(tmp_path, no_room):
    path = tmp_path / "file"
    writing.write_whole(path, b"before")
    with pytest.raises(OSError) as refused:
        writing.write_whole(path, bytes(101))
    assert refused.value.errno == errno.EFBIG
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["file"]
    writing.write_whole(path, b"after")
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["file"]


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
