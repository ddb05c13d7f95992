"""Run the notebooks on a CPU, where they use the embedded CLIP, and keep what they show.

    python tools/run_notebooks.py [NOTEBOOKS...]

Pictures are kept in 64 colours, so that a notebook stays small enough to be read where it lies.
"""

import argparse
import base64
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "TFDS_DATA_DIR": "tensorflow_datasets",
}


def code(notebook: Any) -> list[Any]:
    """The cells that are run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook: Any) -> str:
    """A hash of the code, but for where the package is installed from."""
    lines = [line for cell in code(notebook) for line in cell.source.splitlines()]
    text = "\n".join(line for line in lines if not line.startswith("source = "))
    return hashlib.sha256(text.encode()).hexdigest()


def outputs(notebook: Any) -> Iterator[Any]:
    """All that the cells show."""
    return (output for cell in code(notebook) for output in cell.outputs)


def shrink(picture: str) -> str:
    """The same PNG, base64-encoded, in 64 colours."""
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        small, file = image.convert("RGB").quantize(64, dither=Image.Dither.NONE), io.BytesIO()
    small.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def execute(notebook: Any, folder: Path | str) -> None:
    """Run all cells in a folder; the notebook then has their outputs.

    Raises:
        CellExecutionError: of nbclient; a cell failed.
    """
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()


def keep(path: Path) -> None:
    """Run a notebook in a new folder and write it with its outputs.

    Raises:
        SystemExit: what it shows names a folder of this machine.
    """
    notebook = nbformat.read(path, as_version=4)
    metadata = notebook.metadata.copy()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    notebook.metadata = metadata | {"outputs_of": digest(notebook)}
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = shrink(output.data["image/png"])
    text = nbformat.writes(notebook) + "\n"
    for place in (folder, str(Path.home()), sys.prefix):
        if place in text:
            raise SystemExit(f"{path.name}: shows {place}; make the notebook show relative paths")
    path.write_text(text)
    print(f"{path.name}: {len(text) // 1000} kB")


def main() -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description="Run notebooks on a CPU and keep what they show.")
    everything = sorted((ROOT / "colab").glob("*.ipynb"))
    parser.add_argument("notebooks", nargs="*", type=Path, default=everything)
    os.environ.update(ENVIRONMENT)
    for path in parser.parse_args().notebooks:
        keep(path)


if __name__ == "__main__":
    main()
