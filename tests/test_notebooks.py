"""The notebooks run from top to bottom on a CPU, as they are, and show what they say."""

import base64
import io
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from test_docs import examples

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import run_notebooks

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder; its outputs, and what an expression in the end is."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for name, value in run_notebooks.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "notebook"
    folder.mkdir()

    def execute(name, **expressions):
        notebook = read(name)
        pairs = ", ".join(f"{key!r}: {value}" for key, value in expressions.items())
        last = f"import json\nprint(json.dumps({{{pairs}}}))"
        notebook.cells.append(nbformat.v4.new_code_cell(last))
        run_notebooks.execute(notebook, folder)
        *outputs, found = run_notebooks.outputs(notebook)
        return outputs, json.loads(found.text)

    return execute


def pictures(outputs):
    """The pictures among outputs, none of them empty."""
    encoded = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    found = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in encoded]
    for picture in found:
        assert picture.width > 400 and np.std(picture) > 10
    return found


def texts(outputs):
    """All that is printed."""
    shown = [
        output.text if "text" in output else output.data.get("text/plain", "") for output in outputs
    ]
    return re.sub(r"\x1b\[[\d;]*m", "", "".join(shown))


@pytest.mark.heavy
def test_quickstart(run):
    mean = "float(np.mean([row.accuracy for row in rows if row.shots == {}]))"
    outputs, found = run(
        "quickstart",
        before=mean.format(0),
        after=mean.format("max(shots)"),
        restored="float(accuracy)",
        recorded="[row.accuracy for row in rows if row.shots == max(shots)][0]",
    )
    assert found["after"] > found["before"] + 5
    assert found["restored"] == pytest.approx(found["recorded"])
    assert len(pictures(outputs)) == 7
    said = texts(outputs)
    assert "(CPU)" in said and "digits: TFDS copy" in said
    assert "CoOp, M = 16, end" in said and "nearest words, 16 shots" in said


@pytest.mark.heavy
def test_own_photographs(run):
    outputs, found = run("own_photographs", before="before", after="after", same="bool(same)")
    assert found["after"] > found["before"] + 0.05 and found["same"]
    assert len(pictures(outputs)) == 5
    said = texts(outputs)
    counts = re.search(r"10 classes; (\d+) images for training, (\d+) for testing", said)
    assert counts and 150 < int(counts[1]) < 250 and 70 < int(counts[2]) < 170
    assert "learned.safetensors, method.json" in said and "mostly taken for" in said


@pytest.mark.heavy
def test_add_a_method(run):
    mean = (
        "float(np.mean([row.accuracy for row in rows if row.method == {!r} and row.shots in {}]))"
    )
    outputs, found = run(
        "add_a_method",
        before=mean.format("zero_shot", "(0,)"),
        coop=mean.format("coop", "(16,)"),
        residual=mean.format("task_residual", "(16,)"),
    )
    assert min(found["coop"], found["residual"]) > found["before"] + 5
    assert len(pictures(outputs)) == 2
    assert "task_residual, 16 shots, seed 2" in texts(outputs)


def test_the_method_is_the_one_of_the_documentation():
    code = examples()["task_residual"]
    (cell,) = (cell for cell in read("add_a_method").cells if cell.source.startswith("%%writefile"))
    assert cell.source.split("\n", 1)[1].strip() == code.strip()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_with_the_outputs_of_their_code(name):
    """After a change of a notebook's code: `python tools/run_notebooks.py`."""
    notebook, text = read(name), NOTEBOOKS[name].read_text()
    nbformat.validate(notebook)
    assert text == nbformat.writes(notebook) + "\n"
    assert len(text) < 300_000
    counts = [cell.execution_count for cell in run_notebooks.code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.outputs_of == run_notebooks.digest(notebook)
    outputs = list(run_notebooks.outputs(notebook))
    assert len(pictures(outputs)) >= 2 and "(CPU)" in texts(outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert not re.search(r"(?<![\w.])/(home|mnt|root|tmp|usr|work|Users)/", json.dumps(outputs))


def test_every_notebook_has_a_test():
    assert set(NOTEBOOKS) == {"quickstart", "own_photographs", "add_a_method"}
