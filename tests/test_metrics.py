"""What a training run leaves behind step by step, as TensorBoard itself reads it back."""

import json
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from makers import feature_arrays, refusal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coop_jax import config as config_module
from coop_jax import metrics, progress, protocols, results, train
from coop_jax.errors import InputError, MachineError
from coop_jax.run_log import Log

RUN = "2_shots_seed_1"


def scalars(folder):
    """TensorBoard's (step, value) pairs by tag."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def lines(workdir, run=RUN):
    """The rows of a run's JSONL file, each of which ends with its checksum."""
    text = (workdir / "metrics" / f"{run}.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        assert list(row)[-1] == "crc32"
        crc32 = row.pop("crc32")
        assert crc32 == f"{zlib.crc32(json.dumps(row).encode()):08x}"
    return rows


def quick(data_dir, **changes):
    """Two shots of the digits, one epoch, with the embedded CLIP."""
    config = config_module.default()
    config["method"]["n_ctx"] = 4
    few = {"shots": (2,), "seeds": (1,), "epochs": 4, "batch_size": 4, "data_dir": str(data_dir)}
    return config | few | changes


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


# A process that trains from some step on: how many steps it takes, in which chunks, and how many of
# all that are done then have a checkpoint.
processes = st.lists(
    st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.floats(0, 1)),
    min_size=1,
    max_size=4,
)


@given(processes)
def test_no_step_is_there_twice(given_processes):
    with tempfile.TemporaryDirectory() as name:
        workdir, truth, first = Path(name), [], 0
        for number, (chunks, share) in enumerate(given_processes):
            writer = metrics.Writer(workdir, RUN, ("tensorboard",), {})
            writer.resume(first)
            truth = truth[:first]
            for length in chunks:
                steps = range(len(truth), len(truth) + length)
                values = [{"loss": step + number / 8} for step in steps]
                writer.write(len(truth), values)
                truth += [row["loss"] for row in values]
            first = int(share * len(truth))
        writer.evaluated(len(truth), "digits/test", 50.0)
        assert lines(workdir) == [{"step": i, "loss": loss} for i, loss in enumerate(truth)]
        expected = {"loss": list(enumerate(truth)), "accuracy/digits/test": [(len(truth), 50.0)]}
        assert scalars(workdir / "tensorboard" / RUN) == expected


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda whole: whole[:-5], 3),
        (lambda whole: whole + b'{"step": 4, "lo', 4),
        (lambda whole: whole.replace(b'"step": 1', b'"stop": 1'), 1),
        (lambda whole: whole.replace(b'"loss": 2.0', b'"loss": 2.1'), 2),
        (lambda whole: whole.replace(b'{"step": 3', b'{ "step": 3'), 3),
        (lambda whole: b"\xff" * 100 + b"\n" + whole, 0),
        (lambda whole: b"", 0),
        (None, 0),
    ],
)
def test_lines_that_are_torn_or_lost_are_told(damage, kept, tmp_path, caplog):
    writer = metrics.Writer(tmp_path, RUN, (), {})
    writer.write(0, [{"loss": float(step)} for step in range(4)])
    damaged = damage and damage(writer.path.read_bytes())
    writer.path.unlink() if damaged is None else writer.path.write_bytes(damaged)
    writer.resume(4)
    writer.write(4, [{"loss": 4.0}])
    assert [row["step"] for row in lines(tmp_path)] == [*range(kept), 4]
    of = f"the metrics of {4 - kept} of the first 4 steps are lost; the training goes on"
    assert caplog.messages == [f"{writer.path}: {of}"] * (kept < 4)


def test_metrics_for_which_there_is_no_room_are_there_or_not(tmp_path, no_room):
    writer = metrics.Writer(tmp_path, RUN, ("tensorboard",), {})
    writer.write(0, [{}])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for step in (1, 2):
        with pytest.raises(MachineError, match="expected to write metrics, got File too large"):
            writer.write(step, [{"a loss with a long name": 0.5}] * step)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: content[: len(before[path])] for path, content in after.items()} == before
    assert all(content[-1:] == b"\n" for path, content in after.items() if path == writer.path)


def test_a_run_that_stopped_between_checkpoints(data_dir, tmp_path):
    config = quick(data_dir)
    experiment = protocols.Experiment(config, tmp_path)
    experiment.claim_workdir()
    run, frozen = experiment.run(2, 1, "all"), experiment.frozen
    with progress.track(run.steps) as tracker, run.checkpoints(0) as checkpoints:
        log, member = Log(experiment, run, tracker), run.member(0, checkpoints)
        log.begins(member.batches.steps, 0, member.batches)
        fit = train.fit([member], frozen.clip, run.stages[0], frozen.mesh, images_per_chunk=20)
        for _ in range(2):
            for done in next(fit):
                log.note(done)
        fit.close()
        log.close()
    assert (run.steps, len(lines(tmp_path))) == (20, 10)

    _, _, rows = protocols.run(config, tmp_path)
    (learned,) = results.find(rows, method="coop")
    shown, kept = scalars(tmp_path / "tensorboard" / RUN), lines(tmp_path)
    assert [row["step"] for row in kept] == list(range(20))
    assert [row["epoch"] for row in kept] == [step // 5 for step in range(20)]
    assert [row["learning_rate"] for row in kept] == pytest.approx(member.batches.rate.tolist())
    for key in ("epoch", "learning_rate", "loss"):
        expected = [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in kept]
        assert shown.pop(key) == expected
    assert shown == {"accuracy/digits/test": [(20, pytest.approx(learned.accuracy, rel=1e-6))]}

    # All is done: the same command changes nothing.
    before = {path: path.read_bytes() for path in tmp_path.glob("[mt]*/**/*") if path.is_file()}
    protocols.run(config, tmp_path)
    after = {path: path.read_bytes() for path in tmp_path.glob("[mt]*/**/*") if path.is_file()}
    assert before == after and len(before) == 3


def test_no_logger_and_one_that_joins(data_dir, tmp_path):
    protocols.run(quick(data_dir, loggers=(), epochs=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert len(lines(tmp_path)) == 5


def test_a_method_in_closed_form_has_its_accuracy(data_dir, tmp_path):
    config = config_module.default("linear_probe") | {"shots": (2,), "seeds": (1,)}
    _, _, rows = protocols.run(config | {"data_dir": str(data_dir)}, tmp_path)
    (learned,) = results.find(rows, method="linear_probe")
    expected = [(1, pytest.approx(learned.accuracy, rel=1e-6))]
    assert scalars(tmp_path / "tensorboard" / RUN) == {"accuracy/digits/test": expected}


PREPARED = """
import jax.numpy as jnp
from coop_jax.methods import Learned, Stage, base

NAME, PAPER = "prepared head", "nobody, nowhere"


def default_config():
    return {}


class Method(base.Method):
    def __init__(self, given, config):
        shape = (given.clip.config.embedding, len(given.classes))
        self.weight = Learned(jnp.zeros(shape))

    def stages(self, config):
        return Stage(epochs=0), Stage.of(config)

    def logits(self, clip, texts, images):
        return images.features @ self.weight[...]
"""
"""A method with a stage without steps before the one that has some."""


class EndedError(Exception):
    """What ends a run."""


def test_steps_are_counted_from_0_after_a_stage_without_steps(
    write_features, tmp_path, monkeypatch
):
    (tmp_path / "head.py").write_text(PREPARED)
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    config = config_module.default(str(tmp_path / "head.py"))
    few = {"dataset": str(path), "shots": (2,), "seeds": (1,), "epochs": 3, "batch_size": 4}

    def stop(*_):
        raise EndedError

    # All steps are done and kept, and then the process ends before the accuracy.
    with monkeypatch.context() as patched, pytest.raises(EndedError):
        patched.setattr("coop_jax.experiment.Experiment.save", stop)
        protocols.run(config | few, workdir)
    before = lines(workdir)
    assert [row["step"] for row in before] == list(range(6))
    protocols.run(config | few, workdir)
    assert lines(workdir) == before
    assert scalars(workdir / "tensorboard" / RUN)["loss"] == [
        (row["step"], pytest.approx(row["loss"])) for row in before
    ]


@pytest.mark.parametrize("loggers", ["tensorboard", ("csv",), ("tensorboard", 3), 3])
def test_other_loggers_are_refused(loggers):
    expected = r"config\.loggers: expected some of tensorboard, wandb, or none, got "
    with pytest.raises(InputError, match=expected):
        config_module.check(config_module.default() | {"loggers": loggers})


def test_a_library_that_is_not_installed(monkeypatch, data_dir, tmp_path):
    workdir = tmp_path / "run"
    monkeypatch.setattr(sys, "path", [])
    message = refusal(protocols.run, quick(data_dir), workdir)
    assert "the library tensorboard" in message and "pip install tensorboard" in message
    assert not workdir.exists()


def records(path):
    """The records of a Weights & Biases file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, found = path.read_bytes(), []
    place, block, whole = 7, 1 << 15, b""
    while place < len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            found.append(Record.FromString(whole))
            whole = b""
    return found


def test_weights_and_biases_without_a_network(monkeypatch, data_dir, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = quick(data_dir, loggers=("wandb",), epochs=1)
    _, _, rows = protocols.run(config, tmp_path)
    (learned,) = results.find(rows, method="coop")
    kept = lines(tmp_path)

    # As if the process had stopped when two of the five steps had their checkpoint.
    again = metrics.Writer(tmp_path, RUN, ("wandb",), config)
    again.resume(2)
    again.write(2, [{"loss": float(step)} for step in range(2, 6)])
    again.close()

    first, second = map(records, sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    ids = {record.run.run_id for record in (*first, *second) if record.HasField("run")}
    assert len(ids) == 1
    losses = [
        json.loads(item.value_json)
        for record in (*first, *second)
        for item in record.history.item
        if "loss" in (item.key, *item.nested_key)
    ]
    assert losses == [*(row["loss"] for row in kept), 5.0]
    summaries = [
        (item.key or item.nested_key[0], json.loads(item.value_json))
        for record in first
        for item in record.summary.update
    ]
    assert ("accuracy/digits/test", learned.accuracy) in summaries
