"""Sweeps: many configs in one process and on a local Ray cluster, with the embedded CLIP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from makers import coop_data

from coop_jax import protocols, results
from coop_jax.__main__ import main as family
from coop_jax.sweep.__main__ import FAILURES
from coop_jax.sweep.execute import _warn_about_nodes
from coop_jax.sweep.groups import Group

ROOT = Path(__file__).resolve().parents[1]
FEW_SHOT = ROOT / "configs" / "coop_few_shot.py"
DTD, EUROSAT = f"{FEW_SHOT}:dtd", f"{FEW_SHOT}:eurosat,middle"
DTD_NAME, EUROSAT_NAME = "coop_few_shot_dtd", "coop_few_shot_eurosat_middle"


def words(data, workdir, *configs):
    """What to type for a sweep that takes seconds."""
    settings = {
        "data_dir": data,
        "clip.name": "tiny",
        "method.n_ctx": 2,
        "shots": "(2,)",
        "seeds": "(1,)",
        "epochs": 1,
    }
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    return [*configs, f"--workdir={workdir}", *overrides]


def collected(workdir):
    return results.read(workdir / results.FILE_NAME)


def main(words):
    return family(["sweep", *words])


def position(row):
    return row.settings.get("class_token_position", "")


def numbers(workdir):
    """What does not depend on when and in which order the results were made."""
    return sorted(
        (
            row.dataset,
            row.method,
            row.settings.get("class_token_position", ""),
            row.accuracy,
            row.macro_f1,
        )
        for row in collected(workdir)
    )


def truncate_images(folder):
    for path in folder.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:300])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"), ["dtd", "eurosat"])


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):
    """The workdir of a finished sweep."""
    workdir = tmp_path_factory.mktemp("sweeps") / "sweep"
    assert main(words(data, workdir, DTD, EUROSAT)) == 0
    return workdir


@pytest.mark.heavy
def test_two_groups_make_one_file(data, swept, capsys):
    rows = collected(swept)
    assert [(row.dataset, row.method, position(row)) for row in rows] == [
        ("dtd", "zero_shot", ""),
        ("dtd", "coop", "end"),
        ("eurosat", "zero_shot", ""),
        ("eurosat", "coop", "middle"),
    ]
    folders = sorted(path.name for path in (swept / "groups").iterdir())
    assert folders == [DTD_NAME, EUROSAT_NAME]
    before = (swept / results.FILE_NAME).read_bytes()
    assert main(words(data, swept, DTD, EUROSAT)) == 0
    assert (swept / results.FILE_NAME).read_bytes() == before
    said = capsys.readouterr()
    assert "2 of 2 groups are finished" in said.err
    assert f"results: {swept / results.FILE_NAME}" in said.out


@pytest.mark.heavy
def test_a_group_is_finished_and_recorded_once(data, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    assert main(words(data, workdir, DTD)) == 0
    first = (workdir / results.FILE_NAME).read_text()
    group = workdir / "groups" / DTD_NAME / results.FILE_NAME
    zero_shot, learned = group.read_text().splitlines(keepends=True)
    group.write_text(zero_shot)
    assert main(words(data, workdir, DTD)) == 0
    assert "1 results" not in capsys.readouterr().err
    assert numbers(workdir)[0][:4] == ("dtd", "coop", "end", json.loads(learned)["accuracy"])
    (saved,) = (group.parent / "saved").iterdir()
    before = {path.name: path.read_bytes() for path in saved.glob("*.safetensors")}
    shutil.rmtree(saved)
    assert main(words(data, workdir, DTD)) == 0
    assert {path.name: path.read_bytes() for path in saved.glob("*.safetensors")} == before
    group.write_text(zero_shot + learned + learned)
    assert main(words(data, workdir, EUROSAT)) == 0
    assert (workdir / results.FILE_NAME).read_text().startswith(first)
    assert len(collected(workdir)) == 4


REFUSALS = [
    ([f"{FEW_SHOT}:dtx"], [], r"coop_few_shot.py:dtx: --config=FILE:dtx: expected one word"),
    ([f"{FEW_SHOT}:sun397"], [], "coop_few_shot.py:sun397: "),
    (
        ["configs/nothing.py"],
        [],
        "configs/nothing.py: --config: expected one of cocoop_base_to_new",
    ),
    ([f"{FEW_SHOT}:dtd,end"], [], "expected configs that differ"),
    ([DTD], [], "expected configs that differ"),
    ([], ["--config.batchsize=3"], "did you mean batch_size?"),
    ([], ["--config.epochs=many"], "--config.epochs: expected a whole number, got 'many'"),
    ([], ["--config.shots=(0,)"], "config.shots: expected different positive whole numbers"),
    ([], ["--config.protocol=best"], "config.protocol: expected one of few_shot"),
    ([], ["--config.clip.name=RN5"], "MODEL/TAG of open_clip, got 'RN5'"),
    ([], ["--gpus=1"], "expected --ray with --gpus"),
    ([], ["--ray=nonsense:port"], "expected the address of a Ray cluster, got --ray=nonsense:port"),
]


@pytest.mark.parametrize(("configs", "flags", "message"), REFUSALS)
def test_bad_input_is_refused_before_anything_starts(
    data, tmp_path, capsys, configs, flags, message
):
    if "--ray" in "".join(flags):
        pytest.importorskip("ray")
    workdir = tmp_path / "sweep"
    assert main([*words(data, workdir, DTD, EUROSAT, *configs), *flags]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ") and message in last
    assert not workdir.exists()


@pytest.mark.heavy
def test_a_workdir_of_something_else_is_refused(data, swept, tmp_path, capsys):
    other = words(data, swept, DTD)
    assert main([*other, "--config.batch_size=8"]) == 2
    assert "got another config's (different: batch_size)" in capsys.readouterr().err
    assert main(words(data, swept / "groups" / DTD_NAME, DTD)) == 2
    assert "expected --workdir as a new folder or an earlier sweep's" in capsys.readouterr().err


def test_without_ray(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*words(data, tmp_path / "sweep", DTD), "--ray"]) == 2
    assert "pip install 'coop_jax[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.heavy
def test_a_failing_group_leaves_the_others(tmp_path, capsys, monkeypatch):
    data, workdir = coop_data(tmp_path / "data", ["dtd", "eurosat"]), tmp_path / "sweep"
    truncate_images(data / "dtd")
    assert main(words(data, workdir, DTD, EUROSAT)) == FAILURES
    said = capsys.readouterr()
    assert "groups that failed" in said.out and f"{DTD_NAME}: failed: " in said.err
    assert {row.dataset for row in collected(workdir)} == {"eurosat"}

    def crash(config, workdir):
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(protocols, "run", crash)
        assert main(words(data, workdir, DTD)) == FAILURES
    assert "failed: RuntimeError: out of memory" in capsys.readouterr().err
    assert "Traceback" in (workdir / "logs" / f"{DTD_NAME}.txt").read_text()
    coop_data(data, ["dtd"])
    assert main(words(data, workdir, DTD, EUROSAT)) == 0
    assert len(collected(workdir)) == 4


def test_names_tell_groups_apart():
    names = {
        Group(chosen, {}, Path()).name
        for chosen in ("configs/a.py", "a.py:", "b.py:dtd,vit_b16", "b.py: dtd, vit_b16 ")
    }
    assert names == {"a", "b_dtd_vit_b16"}


def test_what_ray_is_silent_about(caplog):
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}]
    _warn_about_nodes(nodes, {"CPU": 1, "GPU": 0})
    assert caplog.messages == ["the cluster has a GPU, but groups are given none: add --gpus=1"]
    caplog.clear()
    _warn_about_nodes(nodes, {"CPU": 1, "GPU": 1})
    assert not caplog.messages
    _warn_about_nodes(nodes, {"CPU": 1, "GPU": 4})
    assert caplog.messages == ["no node has CPU 1, GPU 4: groups wait until one joins the cluster"]


def test_help_is_quick():
    code = (
        "import sys; from coop_jax.__main__ import main\n"
        "try: main(['sweep', '--help'])\n"
        "finally: assert not {'jax', 'ray', 'absl'} & set(sys.modules)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "storage that all nodes see" in process.stdout


@pytest.mark.heavy
def test_on_ray_a_killed_worker_s_group_is_tried_again(data, swept, tmp_path):
    pytest.importorskip("ray")
    workdir = tmp_path / "sweep"
    truncate_images(coop_data(data, ["ucf101"]) / "ucf101")
    arguments = [*words(data, workdir, f"{FEW_SHOT}:ucf101", DTD, EUROSAT), "--ray=local"]
    command = [sys.executable, "-m", "coop_jax.sweep", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as sweep:
        started = workdir / "groups" / DTD_NAME / results.FILE_NAME
        while not started.exists():
            assert sweep.poll() is None, sweep.stderr.read()
            time.sleep(0.01)
        log = workdir / "logs" / f"{DTD_NAME}.txt"
        first = log.read_text().split(": process ")[1]
        os.kill(int(first.split()[0]), signal.SIGKILL)
        out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == FAILURES, out + err
    assert log.read_text().count(": process ") == 2
    broken = (workdir / "logs" / "coop_few_shot_ucf101.txt").read_text()
    assert broken.count(": process ") == 1, "bad input is not tried again"
    assert "coop_few_shot_ucf101: failed: " in err and "groups that failed" in out
    assert f"{DTD_NAME}: 2 results" in err and f"{EUROSAT_NAME}: 2 results" in err
    assert numbers(workdir) == numbers(swept)
