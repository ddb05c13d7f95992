"""Two processes on one machine train together, and agree with one."""

import functools
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from coop_jax import results
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


def coordinated(start, workdir, data, *flags):
    """Two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        start(workdir, data, *flags, coordinator, "--processes=2", f"--process={number}")
        for number in range(2)
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
    assert [process.returncode for process in both] == [2, 2], errors
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
            [
                float(line.rsplit(" ", 1)[1].rstrip("}"))
                for line in (tmp_path / name / path).read_text().splitlines()
            ]
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
