"""The README is a promise: its commands, and its Python, as they stand there."""

import os
import re
import shlex
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import record_presets
from makers import coop_data, image_folder, write_hub_cache
from PIL import Image
from reference import FOLDER

from coop_jax import protocols, report, results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "docs" / "experiments.md").read_text()


def blocks(language):
    """The contents of the code blocks in this language, of the README and the experiments' page."""
    return re.findall(rf"```{language}\n(.*?)```", README + EXPERIMENTS, flags=re.DOTALL)


COMMANDS = dict.fromkeys(
    command.strip()
    for line in "\n".join(blocks("bash")).splitlines()
    for command in line.split("&&")
    if command.strip()
)


def execute(containing, *, workdir, replace=(), add=(), environment=()):
    """Run the one README command with this text in it, its workdir and paths moved."""
    (command,) = (command for command in COMMANDS if containing in command)
    for old, new in replace:
        assert old in command
        command = command.replace(old, str(new))
    module, *words = module_of(shlex.split(command))
    words = [word for word in words if not word.startswith("--workdir=")] + [*add]
    return run_python(module, *words, f"--workdir={workdir}", environment=environment)


def module_of(words):
    """What to run behind `python -m`."""
    return words if words[0] == "coop_jax" else words[words.index("-m") + 1 :]


def run_python(module, *words, environment=(), code=0, folder=ROOT):
    """Run a command of the package, from the repository's root unless a folder is named."""
    process = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **dict(environment)},
    )
    assert process.returncode == code, process.stdout + process.stderr
    return process


def run_command(beginning, *, replace, code=0, add=()):
    """Run the README's one command that begins so, paths moved."""
    (command,) = (command for command in COMMANDS if command.startswith(f"coop_jax {beginning}"))
    for old, new in replace:
        command = command.replace(old, str(new))
    return run_python(*shlex.split(command), *add, code=code)


def test_every_command_is_known_to_a_test_or_to_ci():
    known = [
        r"pip install -e \.",
        r"pip install -e '\.\[test\]'",
        "pytest",
        r"python -m coop_jax\.main --config=configs/quickstart\.py --workdir=\S+",
        r"coop_jax run --config=quickstart --config\.clip\.name=ViT-B/16 .*",
        r"coop_jax run --config=compare:digits --workdir=/tmp/compare",
        r"coop_jax check dtd eurosat --data-dir=\$DATA",
        r"coop_jax check /path/to/photographs",
        r"coop_jax prepare dtd eurosat --data-dir=\$DATA",
        r"coop_jax report .*",
        r"coop_jax sweep .*",
        r"coop_jax run --config=few_shot .*=/path/to/photographs .*",
        r"coop_jax run --config=coop_few_shot:dtd .*",
        r"coop_jax run --config=cocoop_base_to_new:dtd,cocoop .*",
        r"coop_jax fit photographs my_prompt --clip ViT-B/16",
        r"coop_jax predict my_prompt new_photographs --top 3",
        r"coop_jax export my_prompt weights\.safetensors",
        r"coop_jax evaluate my_prompt photographs --csv per_image\.csv --png confusion\.png",
    ]
    for command in COMMANDS:
        assert any(re.fullmatch(pattern, command) for pattern in known), command
    for pattern in known:
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), pattern
    ci = (ROOT / ".ci" / "run").read_text()
    assert "'.[test,lint,docs," in ci
    assert re.search(r"stage 'pytest' .*pytest$", ci, flags=re.MULTILINE)


@pytest.mark.heavy
def test_quickstart_shows_what_it_promises(tmp_path):
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    process = execute(
        "--workdir=/tmp/quickstart", workdir=tmp_path / "run", environment=nowhere.items()
    )
    rows = results.read(tmp_path / "run" / results.FILE_NAME)
    zero_shot = [row.accuracy for row in rows if row.method == "zero_shot"]
    learned = {
        shots: [row.accuracy for row in results.find(rows, method="coop", shots=shots)]
        for shots in (1, 2, 4, 8, 16)
    }
    assert all(len(accuracies) == 3 for accuracies in learned.values())
    best = max(zero_shot)
    assert best >= 30
    assert statistics.fmean(learned[16]) >= best + 8
    for text in ('"a photo of a {}."', "CoOp, M = 16, end", "nearest words", "report.png"):
        assert text in process.stdout
    with Image.open(tmp_path / "run" / "report.png") as picture:
        assert picture.width > 400


@pytest.mark.heavy
def test_comparison_shows_every_method_that_is_named(tmp_path):
    process = execute(
        "compare:digits",
        workdir=tmp_path / "run",
        replace=[("compare:digits", "compare:digits,clap,linear_probe,coop,tpt")],
        add=("--config.max_steps=2", "--config.seeds=(1,)"),
    )
    for text in ("CoOp, M = 16", "CLAP", "TPT", "linear-probe", "false discovery", "report.png"):
        assert text in process.stdout
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000


@pytest.mark.heavy
def test_openai_weights_by_name(tmp_path):
    write_hub_cache(tmp_path / "hub", "ViT-B/16")
    execute(
        "quickstart --config.clip.name=ViT-B/16",
        workdir=tmp_path / "run",
        add=(
            "--config.shots=(1,)",
            "--config.seeds=(1,)",
            "--config.epochs=1",
            "--config.method.n_ctx=2",
            "--config.templates=('{}',)",
        ),
        environment={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}.items(),
    )
    (row,) = results.find(results.read(tmp_path / "run" / results.FILE_NAME), method="coop")
    assert row.backbone == "ViT-B/16" and row.dataset == "digits"


PAPER = re.findall(
    r"`coop_jax run --config=(\w+):([\w,]+) --config\.data_dir=\$DATA"
    r" --workdir=/tmp/runs/\w+`",
    EXPERIMENTS,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"))


def test_the_table_of_the_papers_has_every_config():
    assert len(PAPER) == EXPERIMENTS.count("`coop_jax run --config=")
    shown = re.findall(r"--config=(\w+):([\w,]+) --config\.data_dir=\$DATA --workdir=", README)
    assert len(shown) == 2 and set(shown) <= set(PAPER)
    assert {file for file, _ in PAPER} == {name.partition(":")[0] for name in record_presets.NAMES}


@pytest.mark.heavy
@pytest.mark.parametrize(("file", "argument"), PAPER)
def test_paper_command(file, argument, data, tmp_path):
    config = record_presets.small(f"{file}:{argument}", data)
    _, plan, rows = protocols.run(config, tmp_path / "run")
    learned = results.find(rows, method=config["method"]["name"])
    assert [row.dataset for row in learned] == [target.dataset.name for target in plan.targets]
    assert {row.protocol for row in rows} == {config["protocol"]}
    (sheet,) = report.tables(rows)
    assert len(sheet.body()) >= 2


@pytest.mark.heavy
def test_doctor_sweep_main_and_report(data, tmp_path):
    """The commands themselves, from the dataset to the report of two runs."""
    run_command("check dtd", replace=[("$DATA", data)], code=1)
    prepared = run_command("prepare dtd", replace=[("$DATA", data)])
    assert prepared.stdout.count(f"prepared copy {data}") == 2
    small = [
        f"--config.{key}={value}"
        for key, value in {
            "clip.name": "tiny",
            "data_dir": data,
            "shots": "(2,)",
            "seeds": "(1,)",
            "epochs": 1,
        }.items()
    ]
    run_command("sweep", replace=[("/tmp/sweep", tmp_path / "sweep"), ("$DATA", data)], add=small)
    rows = results.read(tmp_path / "sweep" / results.FILE_NAME)
    assert {row.method for row in rows} == {"zero_shot", "coop", "linear_probe"}

    for dataset in ("dtd", "eurosat"):
        config = f"--config=coop_few_shot:{dataset}"
        workdir = tmp_path / "runs" / dataset
        run_python("coop_jax", "run", config, f"--workdir={workdir}", *small)
    process = run_command("report", replace=[("/tmp/runs", tmp_path / "runs")])
    assert "average over 2 datasets" in process.stdout
    assert (tmp_path / "runs" / "report.csv").read_text().count("CoOp, M = 16") == 3
    for name in ("report-few_shot-test-tiny.png", "report-gains-few_shot-test-tiny.png"):
        with Image.open(tmp_path / "runs" / name) as picture:
            assert picture.width > 400


@pytest.fixture
def photographs(tmp_path):
    """CIFAR-10's in folders, where the reference folder has them; else small random ones."""
    archive, folder = FOLDER / "cifar10" / "cifar10_200.tar", tmp_path / "photographs"
    if not archive.is_file():
        return image_folder(folder, ("circle", "star"), 8)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder


@pytest.mark.heavy
def test_own_photographs(photographs, tmp_path):
    classes = sorted(path.name for path in (photographs / "train").iterdir())
    place = [("/path/to/photographs", photographs)]
    checked = run_command("check /path/to/photographs", replace=place)
    assert f"all {len(list(photographs.rglob('*.jpg')))} images can be read" in checked.stdout
    process = execute(
        "--config.dataset=",
        workdir=tmp_path / "run",
        replace=[*place, ("ViT-B/16", "tiny")],
        add=("--config.epochs=1", f"--config.data_dir={tmp_path / 'data'}"),
    )
    rows = results.read(tmp_path / "run" / results.FILE_NAME)
    assert [row.prompt for row in rows if row.shots == 0] == ["a photo of a {}."]
    assert {row.shots for row in rows} == {0, 1, 4}
    assert {row.n_classes for row in rows} == {len(classes)}
    assert "CoOp, M = 16, end" in process.stdout and "nearest words" in process.stdout


@pytest.fixture
def own_folder(tmp_path):
    """A folder with photographs of two classes, and new ones."""
    image_folder(tmp_path / "photographs", ("circle", "star"), 8)
    new = tmp_path / "new_photographs"
    new.mkdir()
    for number, name in enumerate(("cat.jpg", "dog.jpg")):
        Image.new("RGB", (40, 30), (200 * number, 90, 30)).save(new / name)
    return tmp_path


@pytest.mark.heavy
def test_photographs_to_a_classifier(own_folder):
    """The commands of "Your photographs", one after the other."""

    def run(name, *add):
        (command,) = (command for command in COMMANDS if command.startswith(f"coop_jax {name} "))
        words = shlex.split(command.replace("ViT-B/16", "tiny"))[1:]
        return run_python("coop_jax", *words, *add, folder=own_folder).stdout

    run("fit", "--epochs", "2", "--shots", "2")
    assert {path.name for path in (own_folder / "my_prompt").iterdir()} == {
        "method.json",
        "learned.safetensors",
    }
    lines = [line.split("\t") for line in run("predict").splitlines()]
    assert [Path(line[0]).name for line in lines] == ["cat.jpg"] * 2 + ["dog.jpg"] * 2
    assert {line[1] for line in lines} == {"circle", "star"}
    run("export")
    assert (own_folder / "weights.safetensors").stat().st_size > 2 * 64 * 4
    run("evaluate")
    assert len((own_folder / "per_image.csv").read_text().splitlines()) > 4
    with Image.open(own_folder / "confusion.png") as picture:
        assert picture.width > 300


@pytest.mark.heavy
def test_python(own_folder):
    (code,) = (block for block in blocks("python") if "Classifier(" in block)
    code = code.replace('"ViT-B/16"', '"tiny", epochs=2, shots=2')
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=own_folder
    )
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(r"[01]\.\d+ \['(circle|star)'\]\n\[\[.+\]\]\n", process.stdout)
