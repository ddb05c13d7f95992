"""The command as a user types it, above all when the input is wrong."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from makers import image_folder
from PIL import Image
from safetensors.numpy import load_file, save_file

from coop_jax import results
from coop_jax.__main__ import main
from coop_jax.clip import source
from coop_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """One prepared dataset for all commands."""
    return tmp_path_factory.mktemp("data")


def run(*arguments, config="quickstart"):
    """Run the command in this process; what a process of its own would have left."""
    out, err = io.StringIO(), io.StringIO()
    words = ["run", f"--config={config}", *map(str, arguments)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def quick(data_dir):
    """Flags that make the quickstart a matter of seconds."""
    return (
        f"--config.data_dir={data_dir}",
        "--config.shots=(1,2)",
        "--config.seeds=(1,)",
        "--config.epochs=2",
        "--config.method.n_ctx=4",
    )


def check_refused(process, message):
    """One line that says it, exit code 2, and no traceback."""
    assert process.returncode == 2, process.stderr
    *before, last = process.stderr.strip().splitlines()
    assert last.startswith("error: ") and re.search(message, last), process.stderr
    assert all(line.startswith("no val folder") for line in before), process.stderr


@pytest.mark.heavy
def test_a_run_resumes_and_refuses_another_config(tmp_path, data_dir):
    workdir = tmp_path / "run"
    first = run(*quick(data_dir), f"--workdir={workdir}")
    assert first.returncode == 0, first.stderr
    rows = results.read(workdir / results.FILE_NAME)
    assert [(row.shots, row.seed) for row in rows if row.method == "coop"] == [(1, 1), (2, 1)]
    learned = results.find(rows, method="coop")
    assert all(row.settings["n_ctx"] == 4 and row.epochs == 2 for row in learned)
    assert "nearest words" in first.stdout and "CoOp" in first.stdout
    assert re.search(r"\[\d:\d\d:\d\d elapsed, \d:\d\d:\d\d left\]", first.stderr)
    with Image.open(workdir / "report.png") as picture:
        assert picture.width > 400

    content = (workdir / results.FILE_NAME).read_text().splitlines()
    again = run(*quick(data_dir), f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr
    assert (workdir / results.FILE_NAME).read_text().splitlines() == content
    assert again.stdout == first.stdout

    (workdir / results.FILE_NAME).write_text("\n".join(content[:-1]) + "\n")
    resumed = run(*quick(data_dir), f"--workdir={workdir}")
    assert resumed.returncode == 0, resumed.stderr
    last, before = (
        json.loads(line)
        for line in ((workdir / results.FILE_NAME).read_text().splitlines()[-1], content[-1])
    )
    assert last["accuracy"] == before["accuracy"] and last["hashes"] == before["hashes"]

    other = run(*quick(data_dir), f"--workdir={workdir}", "--config.batch_size=8")
    check_refused(other, r"another config's \(different: batch_size\)")
    assert len((workdir / results.FILE_NAME).read_text().splitlines()) == len(content)


@pytest.mark.heavy
def test_a_killed_run_continues_as_if_it_had_not_been(tmp_path, data_dir):
    flags = (
        f"--config.data_dir={data_dir}",
        "--config.shots=(16,)",
        "--config.seeds=(1,)",
        "--config.epochs=100",
        "--config.method.n_ctx=4",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*flags, f"--workdir={whole}").returncode == 0
    command = [sys.executable, "-m", "coop_jax.main", "--config=configs/quickstart.py", *flags]
    process = subprocess.Popen([*command, f"--workdir={killed}"], cwd=ROOT)
    checkpoints = killed / "checkpoints" / "16_shots_seed_1" / "stage_1"
    while not list(checkpoints.glob("[0-9]*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not results.find(results.read(killed / results.FILE_NAME), method="coop")
    assert run(*flags, f"--workdir={killed}").returncode == 0
    first, second = (
        results.find(results.read(folder / results.FILE_NAME), method="coop")[0]
        for folder in (whole, killed)
    )
    assert first.accuracy == second.accuracy
    name = Path("metrics") / "16_shots_seed_1.jsonl"
    assert (whole / name).read_text() == (killed / name).read_text()
    assert len((whole / name).read_text().splitlines()) == 500

    shutil.rmtree(killed / "checkpoints")
    finished = run(*flags, f"--workdir={killed}")
    assert finished.returncode == 0 and "nearest words" in finished.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.batchsize=3"], "batchsize"),
        (["--config.batch_size=many"], "batch_size"),
        (["--config.optimizer.lr=3"], "lr"),
        (["--config.method.name=coopp"], "expected a method, one of .*cocoop, coop.* got 'coopp'"),
        (["extra"], "expected coop_jax run's own options, got extra"),
        (["--config.shots=('a',)"], "config.shots: expected different positive whole numbers"),
    ],
)
def test_bad_flags(tmp_path, data_dir, flags, message):
    process = run(f"--workdir={tmp_path / 'run'}", f"--config.data_dir={data_dir}", *flags)
    check_refused(process, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "got --processes without --coordinator and --process; give all three"),
        (["--processes=2", "--process=0"], "without --coordinator; "),
        (["--process=0", "--distributed"], "without --coordinator and --processes; "),
        (["--coordinator=localhost:1"], "without --processes and --process; "),
        (["--coordinator=host", "--processes=2", "--process=0"], "expected HOST:PORT, got 'host'"),
        (["--coordinator=host:1", "--processes=2", "--process=2"], "--process: expected 0 to 1 of"),
    ],
)
def test_one_of_several_processes_is_said_as_a_whole(tmp_path, flags, message):
    check_refused(run(f"--workdir={tmp_path / 'run'}", *flags), message)
    assert not (tmp_path / "run").exists()


def test_no_workdir():
    check_refused(run(), "expected --workdir, got none")


def test_no_such_config_file(tmp_path):
    process = run(f"--workdir={tmp_path}", config="configs/nothing.py")
    check_refused(process, "configs/nothing.py")


def test_a_folder_with_something_else_in_it(tmp_path, data_dir):
    (tmp_path / "thesis.tex").write_text("precious")
    check_refused(run(f"--workdir={tmp_path}"), "has files and no config.json")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_configs_that_are_none(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    check_refused(run(workdir, config=ROOT / "README.md"), "expected a Python file with get_config")
    check_refused(run(workdir, config="quickstart:zeroshot"), "got 'zeroshot'")
    check_refused(run(workdir, config="quickstart:zero_shot"), "zero_shot learns nothing")
    check_refused(run(workdir, config="coop_few_shot:dtd,pets"), "dataset: imagenet, .*got 'pets'")


def test_weights_of_the_wrong_shape(tmp_path):
    folder = Path(shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip"))
    tensors = load_file(folder / "model.safetensors")
    tensors["text_projection.weight"] = tensors["text_projection.weight"][:5]
    tensors["logit_scale"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    process = run(f"--workdir={tmp_path / 'run'}", f"--config.clip.name={folder}")
    check_refused(
        process,
        r"got 2 that .*logit_scale: expected \[\], got \[3\]; text_projection\.weight: exp",
    )


def test_equal_class_names(tmp_path):
    folder = image_folder(tmp_path / "pictures", ("big_star", "big star"), 2)
    process = run(
        f"--config.dataset={folder}",
        f"--config.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    check_refused(process, r"expected different class names, got 'big star' \(2 times\)")


def test_a_folder_without_classes(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "pictures" / split).mkdir(parents=True)
    process = run(f"--config.dataset={tmp_path / 'pictures'}", f"--workdir={tmp_path / 'run'}")
    check_refused(process, "expected image files .* in every class's folder of .*, got test")


@pytest.mark.heavy
def test_changed_pictures_are_not_resumed(tmp_path):
    folder = image_folder(tmp_path / "pictures", ("circle", "star"), 3)
    flags = (
        f"--config.dataset={folder}",
        f"--config.data_dir={tmp_path / 'data'}",
        "--config.shots=(1,)",
        "--config.seeds=(1,)",
        "--config.epochs=1",
        f"--workdir={tmp_path / 'run'}",
    )
    assert run(*flags).returncode == 0
    (folder / "test" / "star" / "0.jpg").unlink()
    check_refused(run(*flags), "expected results of the same data as now")


@pytest.mark.heavy
def test_changed_weights_are_not_resumed(tmp_path, data_dir):
    folder = Path(shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip"))
    flags = (
        *quick(data_dir),
        f"--workdir={tmp_path / 'run'}",
        f"--config.clip.name={folder}",
    )
    assert run(*flags).returncode == 0
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = np.asarray(1, np.float32)
    save_file(tensors, folder / "model.safetensors")
    check_refused(run(*flags), "expected results of the same weights as now")


def test_truncated_weights(tmp_path, data_dir):
    folder = Path(shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    process = run(*quick(data_dir), f"--workdir={tmp_path / 'run'}", f"--config.clip.name={folder}")
    check_refused(process, "truncated or damaged")


def test_a_traceback_on_request(tmp_path):
    with pytest.raises(InputError, match=r"config\.shots"):
        run(f"--workdir={tmp_path / 'run'}", "--config.shots=(0,)", "--traceback")


def test_fewer_images_than_shots_are_all_used(tmp_path):
    folder = image_folder(tmp_path / "pictures", ("circle", "star"), 3)
    process = run(
        f"--config.dataset={folder}",
        f"--config.data_dir={tmp_path / 'data'}",
        "--config.shots=(8,)",
        "--config.seeds=(1,)",
        "--config.epochs=1",
        f"--workdir={tmp_path / 'run'}",
    )
    assert process.returncode == 0, process.stderr
    assert "fewer training images than 8 shots: all of them are used ('circle' 3" in process.stderr


def test_a_class_name_that_does_not_fit(tmp_path):
    folder = image_folder(tmp_path / "pictures", ("circle", "x-" * 40), 2)
    process = run(
        f"--config.dataset={folder}",
        f"--config.data_dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    check_refused(process, "expected at most 77 tokens, got .*x-x-x-")
