"""Who may import whom (the contracts of pyproject.toml), and what is never imported."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from makers import write_image

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.saved import Saved

ROOT = Path(__file__).resolve().parents[1]


def run_python(code: str, *search_path: Path) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter that looks for packages in `search_path` first."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (*search_path, ROOT))),
        "JAX_PLATFORMS": "cpu",
    }
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def assert_clean(finished: subprocess.CompletedProcess[str]):
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_contracts_hold():
    assert_clean(
        run_python(
            """
            from importlinter.cli import lint_imports

            raise SystemExit(lint_imports(config_filename="pyproject.toml", no_cache=True))
            """
        )
    )


def test_every_dependency_is_imported():
    """What nothing imports need not be installed.

    `jax.export` imports flatbuffers for us.
    """
    not_imported = ["flatbuffers"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split("[^-\\w]", needed)[0] for needed in project["dependencies"]]
    called = {"absl-py": "absl", "orbax-checkpoint": "orbax", "pillow": "PIL"}
    called |= {"scikit-learn": "sklearn", "tensorflow-datasets": "tensorflow_datasets"}
    text = "\n".join(path.read_text() for path in (ROOT / "coop_jax").rglob("*.py"))
    imported = set(re.findall(r"^ *(?:import|from) (\w+)", text, flags=re.MULTILINE))
    assert len(names) > 20
    assert [name for name in names if called.get(name, name) not in imported] == not_imported


def forbid_torch_and_tensorflow(folder: Path):
    """Packages in a folder that end the process at once where they are imported.

    An installed copy must not be imported either, and no library's `except ImportError` may hide
    the attempt. Libraries may read the version.
    """
    for name in ("torch", "tensorflow"):
        package, metadata = folder / name, folder / f"{name}-2.20.0.dist-info"
        package.mkdir()
        (package / "__init__.py").write_text(
            "import os, sys, traceback\ntraceback.print_stack()\nsys.stderr.flush()\nos._exit(3)\n"
        )
        metadata.mkdir()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.20.0\n"
        )


@pytest.mark.heavy
def test_a_whole_run_imports_neither_torch_nor_tensorflow(tmp_path: Path):
    forbid_torch_and_tensorflow(tmp_path)
    flags = ("--config.shots=(1,)", "--config.seeds=(1,)", "--config.epochs=1")
    code = f"""
        from coop_jax.__main__ import main

        workdir, data_dir = {str(tmp_path / "run")!r}, {str(tmp_path / "data")!r}
        words = ["--config=quickstart", "--workdir", workdir, "--config.data_dir", data_dir]
        raise SystemExit(main(["run", *words, *{flags}]))
        """
    assert_clean(run_python(code, tmp_path))
    assert run_python("import torch", tmp_path).returncode == 3


def test_the_commands_for_data_import_neither_torch_nor_tensorflow(tmp_path: Path):
    forbid_torch_and_tensorflow(tmp_path)
    make = f"""
        import sys
        from pathlib import Path

        sys.path.insert(0, "tests")
        from makers import coop_data

        from coop_jax.__main__ import main

        data_dir = coop_data(Path({str(tmp_path)!r}), ["dtd"])
        assert main(["prepare", "dtd", f"--data-dir={{data_dir}}"]) == 0
        assert main(["check", "dtd", "eurosat", f"--data-dir={{data_dir}}"]) == 1
        """
    assert_clean(run_python(make, tmp_path))
    assert run_python("import tensorflow", tmp_path).returncode == 3


def test_clip_and_methods_work_without_data_and_config_libraries():
    assert_clean(
        run_python(
            """
            import importlib
            import pkgutil
            import sys

            BLOCKED = {"tensorflow_datasets", "grain", "ml_collections", "torch", "tensorflow"}

            class Blocker:
                def find_spec(self, name, path=None, target=None):
                    if name.partition(".")[0] in BLOCKED:
                        raise ImportError(f"{name} is blocked")

            sys.meta_path.insert(0, Blocker())

            import coop_jax.clip
            import coop_jax.methods

            for package in (coop_jax.clip, coop_jax.methods):
                for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                    # Those two drive the whole package.
                    if not module.name.endswith((".checks", ".subject")):
                        importlib.import_module(module.name)
            """
        )
    )


def test_commands_import_what_they_use_alone(tmp_path: Path):
    """scikit-learn, TFDS and the rest take seconds to import."""
    names = ("blue", "red")
    for name in names:
        for split in ("train", "test"):
            write_image(tmp_path / "two" / split / name / "0.png", np.random.default_rng(0))
    method = methods.create("coop", *clip_package.load("tiny"), names, {"n_ctx": 4})
    settings = {"name": "coop", "settings": {"n_ctx": 4}, "backbone": "tiny"}
    clip, _ = clip_package.load("tiny")
    Saved.of(method, clip=clip, classes=Classes(names), **settings).save(tmp_path / "mine")
    code = """
        import sys
        from coop_jax.__main__ import main

        heavy = set(
            "sklearn scipy transformers tensorflow_datasets array_record orbax matplotlib"
            " tensorboard huggingface_hub ml_collections".split()
        )

        def run(*words, unused=frozenset()):
            assert main(words) == 0
            found = (heavy | unused) & set(sys.modules)
            assert not found, (words[0], found)

        run("predict", "mine", "two/test/red/0.png", unused={"grain"})
        run("interpret", "mine", unused={"grain"})
        run("evaluate", "mine", "two", unused={"grain"})
        run("export", "mine", "mine.safetensors", unused={"grain"})
        fit = ("--clip=tiny", "--shots=1", "--epochs=1", "--set=n_ctx=4")
        run("fit", "two", "new", *fit, unused={"grain"})
        """
    finished = run_python(f"import os; os.chdir({str(tmp_path)!r})\n" + textwrap.dedent(code))
    assert_clean(finished)
