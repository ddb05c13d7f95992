"""What those who join need: commands that are run, forms, hooks, a citation, one address."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CI = (ROOT / ".ci" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def page(name):
    return (ROOT / name).read_text()


def commands(name):
    """The lines of a page's bash blocks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page(name), flags=re.DOTALL | re.MULTILINE)
    return "".join(blocks).splitlines()


def read_yaml(name):
    return yaml.safe_load(page(name))


def test_ci_or_a_test_runs_every_command():
    by_ci = {
        "python3 -m venv .venv": r"-m venv ",
        "source .venv/bin/activate": r"VIRTUAL_ENV=",
        "pip install -c constraints.txt -e '.[test,lint,docs]'": r"-e '\.\[test,lint,docs,",
        "sphinx-build -W --keep-going -n -c docs . site": r"sphinx-build -W --keep-going -n ",
        "pytest -n 0 tests/test_methods.py": r"^stage 'pytest' .* pytest$",
    }
    for command, stage in by_ci.items():
        assert re.search(stage, CI, flags=re.MULTILINE), command
    method = set(commands("docs/adding-a-method.md"))  # tests/test_docs.py runs them
    by_tests = {
        "pre-commit install",  # below
        "python tools/run_notebooks.py",  # tests/test_notebooks.py
        ".ci/run",
    }
    said = commands("CONTRIBUTING.md")
    assert set(said) == {*by_ci, *by_tests, *method}


def test_the_workflow_runs_ci_on_every_python():
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["checks"]
    pythons = job["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    assert pythons == [f"3.{11 + i}" for i in range(len(pythons))]
    (step,) = (step for step in job["steps"] if "run" in step)
    assert step == {"run": ".ci/run", "env": {"PYTHON": "python${{ matrix.python }}"}}
    assert "${PYTHON:-}" in CI


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_issue_forms(form):
    read = read_yaml(f".github/ISSUE_TEMPLATE/{form}.yml")
    assert {"name", "description", "body"} <= set(read)
    names = [field["id"] for field in read["body"]]
    assert len(set(names)) == len(names)
    for field in read["body"]:
        assert field["type"] in ("textarea", "input", "dropdown")
        assert field["attributes"]["label"]


def test_the_bug_form_asks_for_versions_and_devices():
    (command,) = re.findall(r"`(coop_jax [^`]*)`", page(".github/ISSUE_TEMPLATE/bug.yml"))
    assert command == "coop_jax --version --verbose"  # tests/test_command_line.py runs it


def test_the_citation_is_of_this_version():
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0" and citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["abstract"] == PROJECT["description"]
    for paper in citation["references"]:
        assert paper["authors"][0]["family-names"] == "Zhou" and paper["doi"].startswith("10.")
    assert [paper["notes"] for paper in citation["references"]] == ["CoOp", "CoCoOp"]


ADDRESS = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")


def git(folder, *words):
    return subprocess.check_output(["git", *words], cwd=folder, text=True)


@pytest.fixture
def repository(tmp_path):
    """A git repository with this one's settings and a badly formatted file."""
    names = ".pre-commit-config.yaml", "pyproject.toml", "README.md", "tools/set_repository.py"
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "new.py").write_text('"""A module."""\nimport sys, os\nx = os.sep+sys.prefix\n')
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    return tmp_path


def test_a_new_address_goes_everywhere(repository):
    address = ["tools/set_repository.py", "someone/prompts"]
    subprocess.run([sys.executable, *address], cwd=repository, check=True, capture_output=True)
    for name in ("pyproject.toml", "README.md"):
        moved = (repository / name).read_text()
        assert ADDRESS in page(name) and ADDRESS not in moved
        assert moved.replace("someone/prompts", ADDRESS) == page(name)


def test_every_link_to_the_repository_has_its_address():
    for path in (ROOT / "README.md", *(ROOT / "colab").glob("*.ipynb")):
        links = re.findall(r"colab\.research\.google\.com/github/([\w./-]+)", path.read_text())
        assert links
        for link in links:
            assert link.startswith(f"{ADDRESS}/blob/main/colab/")
            assert (ROOT / link.removeprefix(f"{ADDRESS}/blob/main/")).is_file()


@pytest.mark.heavy
def test_a_commit_is_formatted_as_ci_wants_it(repository):
    pytest.importorskip("pre_commit", reason="needs the extra lint")
    run = [sys.executable, "-m", "pre_commit"]
    subprocess.run([*run, "install"], cwd=repository, check=True, capture_output=True)
    commit = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-m", "Add a module"]
    process = subprocess.run(commit, cwd=repository, capture_output=True, text=True)
    assert process.returncode == 1 and "files were modified by this hook" in process.stderr
    mended = (repository / "new.py").read_text()
    assert mended == '"""A module."""\n\nimport os\nimport sys\n\nx = os.sep + sys.prefix\n'
    git(repository, "add", "--all")
    subprocess.run(commit, cwd=repository, check=True, capture_output=True)
