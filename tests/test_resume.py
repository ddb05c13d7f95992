"""A run that was stopped anywhere ends with the same bits as one that was not."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax import nnx
from test_train import problem

from coop_jax import results, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.methods import Learned
from coop_jax.saved.files import TENSORS

OWN = [{"seed": 1}, {"seed": 2, "epochs": 1, "batch_size": 3}, {"seed": 3}]
"""Settings of runs that are trained side by side; the second ends before the others."""


def begin(clip, tokenizer, mesh, folder=None, own=OWN):
    """The methods of several runs, and the loop that trains them."""
    problems = [problem(clip, tokenizer, n_ctx=3, **changes) for changes in own]
    with contextlib.ExitStack() as stack:
        runs = [
            train.Run(
                *(method, batches, images_of),
                None if folder is None else stack.enter_context(Checkpoints(folder / str(number))),
                begins=begun.append,
            )
            for number, (method, _, batches, images_of) in enumerate(problems)
            for begun in [[]]
        ]
        loop = train.fit(runs, clip, problems[0][1], mesh, images_per_chunk=5)
        kept = stack.pop_all()
    return [parts[0] for parts in problems], loop, kept


def values(methods):
    """All that the methods have learned, as bytes."""
    return [
        [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(nnx.state(method, Learned))]
        for method in methods
    ]


def stop_after(chunks, *arguments):
    """Train for so many chunks, which are saved, and part of the next."""
    _, loop, kept = begin(*arguments)
    for _ in range(chunks + 1):
        next(loop)
    loop.close()
    kept.close()


def flip(folder):
    """Change a byte of the numbers of a checkpoint."""
    path = max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[int(0.9 * len(content))] ^= 0xFF
    path.write_bytes(content)


def latest(folder, run):
    steps = [path for path in (folder / str(run)).iterdir() if path.name.isdigit()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def harm_nothing(folder):
    pass


def lose_one_save(folder):
    """As if the process had ended between the saves of two runs."""
    shutil.rmtree(latest(folder, 2)[0])


def damage_the_latest(folder):
    flip(latest(folder, 0)[0])


def damage_both(folder):
    for path in latest(folder, 2):
        flip(path)


def lose_all(folder):
    shutil.rmtree(folder / "2")


@pytest.fixture(scope="module")
def undisturbed(tiny_clip, tiny_tokenizer, one_device):
    methods, loop, _ = begin(tiny_clip, tiny_tokenizer, one_device)
    chunks = len(list(loop))
    assert chunks >= 6
    return values(methods)


@pytest.mark.parametrize(
    "harm", [harm_nothing, lose_one_save, damage_the_latest, damage_both, lose_all]
)
@pytest.mark.parametrize("chunks", [2, 4])
def test_runs_side_by_side_end_with_the_same_bits(
    tiny_clip, tiny_tokenizer, one_device, tmp_path, caplog, undisturbed, harm, chunks
):
    """The second run has ended after the third chunk."""
    arguments = tiny_clip, tiny_tokenizer, one_device, tmp_path
    stop_after(chunks, *arguments)
    assert [len(latest(tmp_path, run)) for run in range(3)] == [2, 2, 2]
    harm(tmp_path)
    methods, loop, kept = begin(*arguments)
    left = len(list(loop))
    kept.close()
    assert values(methods) == undisturbed
    assert len(caplog.messages) == harm.__name__.count("damage") * (1 + (harm is damage_both))
    assert all("is damaged" in message for message in caplog.messages)
    begin_again = harm in (damage_both, lose_all)
    total = left if begin_again else left + chunks - (harm is not harm_nothing)
    _, whole, kept = begin(*arguments[:3])
    assert total == len(list(whole))


def test_a_finished_stage_is_read_or_made_again(
    tiny_clip, tiny_tokenizer, one_device, tmp_path, caplog, undisturbed
):
    arguments = tiny_clip, tiny_tokenizer, one_device, tmp_path
    _, loop, kept = begin(*arguments)
    list(loop)
    kept.close()
    for damaged in (False, True):
        if damaged:
            flip(latest(tmp_path, 1)[0])
        methods, loop, kept = begin(*arguments)
        assert bool(list(loop)) == damaged
        kept.close()
        assert values(methods) == undisturbed


SMALL = (
    *("--config=quickstart", "--config.templates=('a photo of a {}.',)", "--config.shots=(2,16)"),
    *("--config.seeds=(1,2)", "--config.epochs=60", "--config.method.n_ctx=4"),
    *("--config.loggers=()", "--config.runs_at_once=2"),
)


def command(workdir, data):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "coop_jax.main",
            *SMALL,
            f"--workdir={workdir}",
            f"--config.data_dir={data}",
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(workdir):
    """What was learned, bit for bit, and the results without their times."""
    rows = [json.loads(line) for line in (workdir / results.FILE_NAME).read_bytes().splitlines()]
    for row in rows:
        del row["seconds"], row["sha256"]
    learned = {path.parent.name: path.read_bytes() for path in workdir.rglob(TENSORS)}
    metrics = {path.name: path.read_bytes() for path in workdir.rglob("metrics/*.jsonl")}
    return learned, rows, metrics


@pytest.mark.heavy
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_says_so_and_the_same_command_goes_on(tmp_path, number, code):
    data = tmp_path / "data"
    whole = command(tmp_path / "whole", data)
    assert whole.communicate(timeout=300) and whole.returncode == 0
    stopped = command(tmp_path / "stopped", data)
    metrics = tmp_path / "stopped" / "metrics" / "16_shots_seed_1.jsonl"
    while not metrics.exists() and stopped.poll() is None:
        time.sleep(0.02)
    began = time.monotonic()
    stopped.send_signal(number)
    errors = stopped.communicate(timeout=60)[1].splitlines()
    assert time.monotonic() - began < 10 and stopped.returncode == code
    name = {143: "stopped by SIGTERM", 130: "interrupted"}[code]
    assert errors[-1].startswith(f"{name}, saved after step ") and not any(
        "Traceback" in line for line in errors
    )
    assert errors[-1].endswith(" of each of 2 runs; the same command goes on where it stopped")
    again = command(tmp_path / "stopped", data)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "goes on after step" in said
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")
