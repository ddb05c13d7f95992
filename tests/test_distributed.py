"""Two processes on one machine train together, and agree with one."""

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coop_jax import cluster_log, results
from coop_jax.__main__ import main
from coop_jax.saved import Saved

ROOT = Path(__file__).resolve().parents[1]


def start_run(workdir, data, *flags, devices=2):
    command = [
        *(sys.executable, "-m", "coop_jax.main", "--config=configs/quickstart.py"),
        *(f"--workdir={workdir}", f"--config.data_dir={data}", "--config.shots=(2,)"),
        *("--config.seeds=(1,2)", "--config.epochs=3", "--config.method.n_ctx=4"),
        *("--config.encode_batch_size=100", "--config.templates=('{}',)", *flags),
    ]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def a_coordinator():
    """A port of this machine that nothing listens on, for the first process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"--coordinator=127.0.0.1:{free.getsockname()[1]}"


def coordinated(start, workdir, data, *flags, second=(), **options):
    """Two processes that train together; the second one may have flags of its own."""
    coordinator = a_coordinator()
    return [
        start(
            workdir,
            data,
            *flags,
            *own,
            coordinator,
            "--processes=2",
            f"--process={number}",
            **options,
        )
        for number, own in enumerate(((), second))
    ]


@pytest.mark.heavy
def test_what_fails_in_the_first_process_ends_both(tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "two"
    few = ("--config.seeds=(1,)", "--config.epochs=1")
    list(map(finish, coordinated(start_run, workdir, data, *few)))
    shutil.rmtree(workdir / "saved")
    (workdir / "saved").write_text("in the way")
    few = ("--config.seeds=(1,2)", "--config.epochs=1")
    both = coordinated(start_run, workdir, data, *few)
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [2, 1], errors
    assert "expected a folder to save to" in errors[0].splitlines()[-1]
    assert "expected the first process to save what was learned" in errors[1].splitlines()[-1]


@pytest.mark.heavy
@pytest.mark.parametrize("class_specific", [False, True])
def test_two_processes_agree_with_one(tmp_path, class_specific):
    """Of two devices each; of one each, that has the contexts of half of the classes."""
    data = tmp_path / "data"
    flags = f"--config.method.class_specific={class_specific}", "--config.runs_at_once=2"
    start = functools.partial(start_run, devices=1 if class_specific else 2)
    finish(start(tmp_path / "one", data, *flags))
    first, second = map(finish, coordinated(start, tmp_path / "two", data, *flags))
    assert "CoOp" in first and "CoOp" not in second
    alone, together = (results.read(tmp_path / name / results.FILE_NAME) for name in ("one", "two"))
    assert len(alone) == len(together)
    for one, two in zip(alone, together, strict=True):
        assert (one.prompt, one.seed, one.hashes) == (two.prompt, two.seed, two.hashes)
        assert one.accuracy == pytest.approx(two.accuracy, abs=0.2)  # one of 540 images
    for seed in (1, 2):
        path = Path("metrics") / f"2_shots_seed_{seed}.jsonl"
        losses = [
            [json.loads(line)["loss"] for line in (tmp_path / name / path).read_text().splitlines()]
            for name in ("one", "two")
        ]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
        learned, other = (
            Saved.load(tmp_path / name / "saved" / path.stem).learned["context"]
            for name in ("one", "two")
        )
        assert learned.shape == ((10, 4, 96) if class_specific else (4, 96))
        np.testing.assert_allclose(other, learned, rtol=0, atol=1e-5 * np.abs(learned).max())
        (events,) = (tmp_path / "two" / "tensorboard" / path.stem).iterdir()
        assert events.name.startswith("events.out.tfevents")
    # What the first process sees of the disk is what both go by.
    stale = tmp_path / "stale"
    shutil.copytree(tmp_path / "two", stale)
    (stale / results.FILE_NAME).unlink()
    elsewhere = (f"--workdir={stale}",)
    again = coordinated(start, tmp_path / "two", data, *flags, second=elsewhere)
    report, nothing = map(finish, again)
    assert report.endswith(first[first.index(" digits, tiny:") :]) and "CoOp" not in nothing
    assert results.read(tmp_path / "two" / results.FILE_NAME) == together
    assert not (stale / results.FILE_NAME).exists()


def changed(path):
    """The time of a file's last change; 0 where it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def check_ended(process, message):
    """In time, with exit code 1, and one line in the place of what JAX says."""
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    *before, last = errors.splitlines()
    assert last.startswith(f"error: expected {message}"), errors
    assert all(line.startswith(("zero-shot", "coop, ")) for line in before), errors


@pytest.mark.heavy
def test_the_others_end_when_one_is_gone_and_the_same_commands_go_on(tmp_path):
    """While they train: the first, whose coordination service is gone too, and then another."""
    data, whole, broken = tmp_path / "data", tmp_path / "whole", tmp_path / "broken"
    few = ("--config.seeds=(1,)", "--config.epochs=900", "--config.shots=(1,)")
    list(map(finish, coordinated(start_run, whole, data, *few, devices=1)))
    metrics = broken / "metrics" / "1_shots_seed_1.jsonl"
    for number, way in ((0, signal.SIGKILL), (1, signal.SIGSTOP)):
        before, end = changed(metrics), time.monotonic() + 200
        both = coordinated(start_run, broken, data, *few, devices=1)
        try:
            while changed(metrics) == before:
                assert time.monotonic() < end and both[number].poll() is None
                time.sleep(0.05)
            both[number].send_signal(way)
            check_ended(both[1 - number], "all processes to go on")
        finally:
            for process in both:
                process.kill()
                process.communicate()
    list(map(finish, coordinated(start_run, broken, data, *few, devices=1)))
    first, again = (results.read(workdir / results.FILE_NAME) for workdir in (whole, broken))
    assert [(row.prompt, row.accuracy) for row in again] == [
        (row.prompt, row.accuracy) for row in first
    ]
    undisturbed, resumed = (
        Saved.load(workdir / "saved" / "1_shots_seed_1").learned["context"]
        for workdir in (whole, broken)
    )
    np.testing.assert_array_equal(resumed, undisturbed)


@pytest.mark.heavy
def test_an_error_of_one_process_alone_ends_the_others(tmp_path):
    nowhere = ("--config.clip.name=/nowhere",)
    folders = tmp_path / "two", tmp_path / "data"
    first, second = coordinated(start_run, *folders, second=nowhere, devices=1)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 2 and "/nowhere" in errors.splitlines()[-1], errors
    check_ended(first, "all processes to go on")


@pytest.mark.heavy
@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_do_not_come_are_waited_for_as_long_as_is_said(tmp_path, number):
    flags = (a_coordinator(), "--processes=2", f"--process={number}", "--timeout=1")
    alone = start_run(tmp_path / "two", tmp_path, *flags)
    check_ended(alone, "all 2 processes within 1 seconds")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--processes=2", "got --processes without --coordinator and --process"),
        ("--timeout=9", "--timeout: expected it for one of several processes, got 9"),
        ("--coordinator=host.invalid:1 --processes=2 --process=0", "got 'host.invalid' ("),
        ("--coordinator=[x:1 --processes=2 --process=0", "got '[x' ("),
        ("--coordinator=localhost:70000 --processes=2 --process=0", "got 'localhost:70000'"),
        ("--coordinator=localhost:0 --processes=2 --process=0", "got 'localhost:0'"),
        ("--coordinator=localhost:9 --processes=2 --process=2", "got 2;"),
        ("--distributed --timeout=0", "--timeout: expected a whole number of at least 1"),
    ],
)
def test_what_no_cluster_can_be_is_refused_at_once(flags, message, tmp_path, capsys):
    words = ["run", "--config=quickstart", f"--workdir={tmp_path / 'run'}", *flags.split()]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run").exists()


ENDS = (
    b"F1126 22:19:00.8 42 client.h:86] Terminating process because the JAX distributed service"
    b" detected fatal errors. absl::Status: UNAVAILABLE: "
)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"W1126 22:19:00.8 42 x.cc:1] slow\n", b"W1126 22:19:00.8 42 x.cc:1] slow\n"),
        (b"E1126 22:19:00.8 42 coordination_service_agent.cc:2] Lost\nmore\n\nx\n", b"x\n"),
        (
            ENDS + b"It died. And more.\n*** stack ***\n@ 0x1 main()\n",
            b"error: 2 (UNAVAILABLE: It died)\n",
        ),
        (
            ENDS + b"Unhealthy (stopped sending heartbeats):\n/job:worker/task:13\nmore",
            b"error: 2 (UNAVAILABLE: Unhealthy (stopped sending heartbeats): process 13)\n",
        ),
        (ENDS + b"first\n" + ENDS + b"second\n", b"error: 2 (UNAVAILABLE: first)\n"),
        (cluster_log.GONE + b"a reason\n" + ENDS + b"\n", b"error: 2 (a reason)\n"),
        (cluster_log.SAY + b"\n" + ENDS + b"after its own line\n", b""),
    ],
)
def test_the_reader_of_the_log_says_why_a_process_ends(log, said):
    told = cluster_log.SAY + b"1\n" + cluster_log.SAY + b"2\n"
    command = [sys.executable, "-I", "-S", cluster_log.__file__]
    read = subprocess.run(command, input=told + log, capture_output=True, check=True)
    assert read.stderr == said
    assert read.stdout == b"." * (b"detected" in log)


@pytest.mark.heavy
def test_a_signal_to_one_process_saves_and_stops_both(tmp_path):
    """At the same step; the same commands go on from there."""
    data, workdir = tmp_path / "data", tmp_path / "two"
    flags = "--config.shots=(16,)", "--config.epochs=60", "--config.runs_at_once=2"
    start = functools.partial(start_run, devices=1)
    both = coordinated(start, workdir, data, *flags)
    metrics = workdir / "metrics" / "16_shots_seed_1.jsonl"
    while not metrics.exists() and both[0].poll() is None:
        time.sleep(0.05)
    both[1].send_signal(signal.SIGTERM)
    lines = [process.communicate(timeout=60)[1].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [143, 143], lines
    (first, saved), (second, same) = (line.split(", saved after ") for line in lines)
    assert (first, second) == ("stopped with another process", "stopped by SIGTERM")
    assert saved == same and "of each of 2 runs; the same command goes on" in saved
    again = coordinated(start, workdir, data, *flags)
    said = [process.communicate(timeout=300)[1] for process in again]
    assert [process.returncode for process in again] == [0, 0], said
    assert "goes on after step" in said[0]
