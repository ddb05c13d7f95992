"""The README is a promise: its commands, and its Python, as they stand there."""

import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from makers import image_folder, write_hub_cache
from PIL import Image

from coop_jax import results

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    """The contents of the README's code blocks in this language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [
    command.strip()
    for line in "\n".join(blocks("bash")).splitlines()
    for command in line.split("&&")
    if command.strip()
]


def execute(containing, *, workdir, replace=(), add=(), environment=()):
    """Run the one README command with this text in it, its workdir and paths moved."""
    (command,) = (command for command in COMMANDS if containing in command)
    for old, new in replace:
        assert old in command
        command = command.replace(old, str(new))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "coop_jax.main"]
    words = [word for word in words[1:] if not word.startswith("--workdir=")]
    process = subprocess.run(
        [sys.executable, *words, f"--workdir={workdir}", *add],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **dict(environment)},
    )
    assert process.returncode == 0, process.stderr
    return process


def test_every_command_is_known_to_a_test_or_to_ci():
    known = [
        r"pip install -e \.",
        r"pip install -e '\.\[test\]'",
        "pytest",
        r"python -m coop_jax\.main --config=configs/quickstart\.py --workdir=\S+",
        r"python -m coop_jax\.main .*--config\.clip\.name=ViT-B/16 .*",
        r"python -m coop_jax\.main --config=configs/few_shot\.py .*dataset=/path/to/pictures .*",
    ]
    for command in COMMANDS:
        assert any(re.fullmatch(pattern, command) for pattern in known), command
    for pattern in known:
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), pattern
    ci = (ROOT / ".ci" / "run").read_text()
    assert "'.[test,lint]'" in ci and re.search(r"stage 'pytest' pytest$", ci, flags=re.MULTILINE)


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
    for text in ('"a photo of a {}."', "CoOp, M = 16, end", "nearest words", "few_shot.png"):
        assert text in process.stdout
    with Image.open(tmp_path / "run" / "few_shot.png") as picture:
        assert picture.width > 400


@pytest.mark.heavy
def test_openai_weights_by_name(tmp_path):
    write_hub_cache(tmp_path / "hub", "ViT-B/16")
    execute(
        "--config.clip.name=ViT-B/16",
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


@pytest.mark.heavy
def test_own_pictures(tmp_path):
    folder = image_folder(tmp_path / "pictures", ("circle", "star"), 8)
    execute(
        "--config.dataset=",
        workdir=tmp_path / "run",
        replace=[("/path/to/pictures", folder)],
        add=("--config.epochs=1", f"--config.data_dir={tmp_path / 'data'}"),
    )
    rows = results.read(tmp_path / "run" / results.FILE_NAME)
    assert [row.prompt for row in rows if row.shots == 0] == ["a photo of a {}."]
    assert {row.shots for row in rows} == {0, 1, 4} and {row.n_classes for row in rows} == {2}


def test_python(tmp_path):
    (code,) = blocks("python")
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    assert re.fullmatch(r"\[\[.+\]\n \[.+\]\]\n", process.stdout)
