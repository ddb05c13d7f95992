"""The documentation says what is so: its links, names, commands, tables and examples.

CI builds the site besides, with warnings as errors: a link, or a name of the package in a
docstring, that leads nowhere is one.
"""

import importlib
import json
import pkgutil
import re
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from makers import DESCRIPTIONS, coop_data, image_folder, write_images

import coop_jax
from coop_jax import clip, command_line, methods, protocols
from coop_jax import config as config_module
from coop_jax.commands import COMMANDS
from coop_jax.config_files import load, load_all
from coop_jax.data import catalog, doctor, official
from coop_jax.templates import IMAGENET_80

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
TEXTS = {page: page.read_text() for page in PAGES}
EXAMPLE = "task_residual"
METHODS_PAGE = ROOT / "docs" / "adding-a-method.md"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page, language):
    """The contents of a page's code blocks in this language."""
    text = TEXTS[ROOT / "docs" / page]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def examples():
    """The examples of methods, by the name of their file."""
    codes = blocks("adding-a-method.md", "python")
    names = re.findall(r"As `(?:coop_jax/methods/)?(\w+)\.py`", TEXTS[METHODS_PAGE])
    return dict(zip(names, codes, strict=True))


def without_code(text):
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def table(page, first):
    """The rows, as lists of cells, of the page's table whose first column is called so."""
    lines = TEXTS[ROOT / "docs" / page].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the example of a method, as one file."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / f"{EXAMPLE}.py").write_text(examples()[EXAMPLE])
    return folder


@pytest.fixture
def example(folder, monkeypatch):
    """The example lies where methods are looked for."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"coop_jax.methods.{EXAMPLE}", None)
    if hasattr(methods, EXAMPLE):
        delattr(methods, EXAMPLE)


# Links and names.


def anchors(path):
    """What the headings of a Markdown file are called in links."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@every_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", without_code(TEXTS[page])):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


@every_page
def test_diagrams_and_formulas_fit_the_column(page):
    """The site's column holds 90 characters of code; what is wider must be scrolled."""
    assert all(len(line) <= 90 for block in blocks(page, "text") for line in block.splitlines())


@every_page
def test_names_of_the_package_exist(page):
    for name in set(re.findall(r"\bcoop_jax(?:\.[A-Za-z_]\w*)+", TEXTS[page])):
        assert pkgutil.resolve_name(name) is not None


@every_page
def test_named_files_exist(page):
    folders = "benchmarks|coop_jax|configs|docs|tests|tools"
    for path in set(re.findall(rf"`((?:{folders})/[\w./-]+)(?::[\w,]+)?`", TEXTS[page])):
        assert (ROOT / path).exists() or Path(path).stem == EXAMPLE, path


def test_every_module_is_in_the_reference():
    pages = "\n".join(text for page, text in TEXTS.items() if page.parent.name == "reference")
    shown = set(re.findall(r"^\.\. auto(?:module|function):: (\S+)$", pages, flags=re.MULTILINE))
    shown |= {name.rpartition(".")[0] for name in shown}
    found = {module.name for module in pkgutil.walk_packages(coop_jax.__path__, "coop_jax.")}
    # A method is one file, and nothing else is edited for it.
    own = {name for name in found if name.startswith("coop_jax.methods.")}
    hidden = {name for name in found if name.endswith("__main__")} | {"coop_jax.assets"}
    hidden |= {name for name in found if name.startswith("coop_jax.commands")}  # they have --help
    assert not found - shown - own - hidden


def test_every_method_has_a_page_that_is_named():
    pages = {page.stem for page in PAGES if page.parent.name == "methods"}
    assert pages == set(methods.available())
    index = TEXTS[ROOT / "docs" / "index.md"]
    assert set(re.findall(r"\]\(methods/(\w+)\.md\)", index)) == pages
    assert set(re.findall(r"^methods/(\w+)$", index, flags=re.MULTILINE)) == pages
    learn = pages - {methods.ZERO_SHOT}
    read_me = (ROOT / "README.md").read_text()
    assert set(re.findall(r"\]\(docs/methods/(\w+)\.md\)", read_me)) == learn


def test_docstrings_begin_with_what_is_done():
    code = "\n".join(path.read_text() for path in (ROOT / "coop_jax").rglob("*.py"))
    assert not re.findall(r'"""(?:What|How|Where|Whether|Which|Why)\b.*', code)


def test_docstrings_name_sections_that_the_protocol_has():
    text = TEXTS[ROOT / "docs" / "protocol.md"]
    sections = set(re.findall(r"^##+ ([\d.]*\d)\.? ", text, flags=re.MULTILINE))
    code = "\n".join(path.read_text() for path in (ROOT / "coop_jax").rglob("*.py"))
    named = re.findall(r"protocol,?\s+(?:sections?\s+)?(\d[\d.]*\d|\d)", code)
    assert len(named) > 20 and set(named) <= sections


def test_ci_builds_the_site_as_the_page_says():
    (command,) = (line for line in commands() if line.startswith("sphinx-build "))
    *options, _, _ = shlex.split(command)
    (stage,) = re.findall(r"^stage 'docs' (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert shlex.split(stage)[2 : 2 + len(options)] == options  # within which environment


# Commands and settings.


NAMES = "|".join(COMMANDS)


def commands():
    """Every command of the site's pages: lines of bash blocks, and what stands in the text."""
    found = []
    for page, text in TEXTS.items():
        if page.name == "CONTRIBUTING.md":  # tests/test_contributing.py
            continue
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        inline = re.findall(rf"`(coop_jax\s+(?:{NAMES})\s[^`]+)`", without_code(text))
        found += [" ".join(line.split()) for line in (*lines, *inline) if line.strip()]
    return list(dict.fromkeys(found))


def check_command(name, words):
    """The command can be typed so, as far as can be seen without running it."""
    module = importlib.import_module(COMMANDS[name][0])
    if not words or words == ["--help"]:
        return
    chosen = command_line.Parser(name, module).read(words)
    for config in getattr(chosen, "configs", [getattr(chosen, "config", None)]):
        if config:
            for each in load_all(config, chosen.settings).values():
                config_module.check(each)


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, monkeypatch, example):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if "coop_jax" in words:
        at = words.index("coop_jax")
        assert all(re.match(r"srun$|--|[A-Z_]+=", word) for word in words[:at])
        check_command(words[at + 1], words[at + 2 :])
    elif words[:3] == ["pip", "install", "-e"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert set(re.findall(r"\w+", words[3])) <= set(project["optional-dependencies"])
    elif words[0] == "python" and words[1].startswith("tools/"):
        options = {word.partition("=")[0] for word in words[2:]}
        assert all(f'"{option}"' in (ROOT / words[1]).read_text() for option in options)
    elif words[0] in ("pytest", "cp"):
        assert all((ROOT / word).exists() for word in words[1:] if re.match("tests/|docs/", word))
    else:
        assert command == "sphinx-build -W --keep-going -n -c docs . site"


RUNS = {
    name: [
        shlex.split(line)[2:]
        for block in blocks(f"methods/{name}.md", "bash")
        for line in block.splitlines()
        if line.startswith(("coop_jax run --config=few_shot:", "coop_jax run --config=quickstart:"))
    ]
    for name in methods.available()
}
"""The words of the commands on each method's page that run it by its name, whatever the paper."""


def read_run(name, words):
    """Return the config that such a command names, with its settings."""
    chosen = command_line.Parser("run", importlib.import_module(COMMANDS["run"][0])).read(words)
    config = load(chosen.config, chosen.settings)
    assert config["method"]["name"] == name
    if config["method"].get("sentences"):
        config["method"] |= {"sentences": DESCRIPTIONS}
    return config


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (name, words)
        for name, runs in RUNS.items()
        for words in runs
        if words[0].startswith("--config=quickstart:")
    ],
)
def test_quickstarts_of_methods_fit_the_embedded_clip(name, words):
    settings = read_run(name, words)["method"]
    del settings["name"]
    tiny, tokenizer = clip.load("tiny")
    assert methods.create(name, tiny, tokenizer, ("one", "two"), settings).logits


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coop_data(tmp_path_factory.mktemp("data"), ["dtd"])


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name, runs in RUNS.items() if runs])
def test_the_command_of_a_method(name, data, tmp_path):
    """The first one, cut down to what a test can wait for and to the layers that there are."""
    config = read_run(name, RUNS[name][0])
    config["clip"]["name"] = "tiny"
    config |= {"dataset": "dtd", "data_dir": str(data), "shots": (2,), "seeds": (1,), "epochs": 1}
    most = {"depth": 2, "depth_text": 2, "depth_vision": 2, "first": 2, "last": 3, "layer": 3}
    most["views"] = 10
    method = config["method"]
    method |= {key: min(method[key], value) for key, value in most.items() if key in method}
    _, plan, rows = protocols.run(config, tmp_path / "run")
    learned = [row for row in rows if row.method == name]
    assert [row.split for row in learned] == [target.split for target in plan.targets]
    for row in learned:
        assert 0 <= row.accuracy <= 100
        is_said = {word: word in said_uses(name) for word in ("validation", "unlabel", "test")}
        assert is_said == {word: word in " ".join(row.uses) for word in is_said}


def said_uses(name):
    """Return, in bold, what a method's page says that it learns from besides labelled images."""
    return " ".join(re.findall(r"\*\*([a-z ]+)\*\*", TEXTS[ROOT / "docs/methods" / f"{name}.md"]))


@every_page
def test_settings_exist(page):
    known = {*config_module.flat(config_module.default())}
    known |= {f"method.{name}" for method in methods.available() for name in setting_names(method)}
    named = re.findall(r"--config\.([\w.]+)", TEXTS[page])
    assert set(named) - {"KEY"} <= known


def setting_names(method):
    return methods.default_config(method)


# Tables.


def value(text):
    """The value of a setting as a table shows it."""
    return eval(text, {"__builtins__": {}, "IMAGENET_80": IMAGENET_80})


@pytest.mark.parametrize("name", methods.available())
def test_settings_and_defaults_of_a_method(name):
    defaults = methods.default_config(name)
    if not defaults:
        assert "## Settings\n\nNone." in TEXTS[ROOT / "docs" / "methods" / f"{name}.md"]
        return
    rows = table(f"methods/{name}.md", "setting")
    said = {row[0].strip("`"): value(row[1].strip("`")) for row in rows}
    assert said == defaults


def test_settings_and_defaults_of_a_run():
    config = config_module.default()
    rows = table("settings.md", "setting")
    said = {row[0].strip("`"): value(row[1].strip("`")) for row in rows}
    expected = {}
    for name in config_module.flat(config):
        group, _, key = name.rpartition(".")
        expected[name] = config[group][key] if group else config[name]
    own = {f"method.{name}" for name in methods.default_config("coop")}
    assert said == {name: expected[name] for name in expected if name not in own}


def test_the_papers_datasets():
    said = {
        name.strip("`"): (prompt.strip('"'), *(int(cell.replace(",", "")) for cell in numbers))
        for name, *numbers, _, prompt in table("protocol.md", "name")
    }
    assert said == {
        name: (row.template, row.n_classes, *row.sizes) for name, row in official.OFFICIAL.items()
    }
    for name, *_, split, _ in table("protocol.md", "name"):
        row = official.OFFICIAL[name.strip("`")]
        assert (split == "split file") == (row.split_file is not None)


# Examples.


def test_python_of_the_reference():
    (code,) = blocks("reference/clip.md", "python")
    names = {}
    exec(code, names)
    assert np.isfinite(names["texts"]).all() and len(names["texts"]) == 2


@pytest.mark.heavy
def test_python_of_tda(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path / "photographs", ("circle", "star"), 8)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("methods/tda.md", "python")
    exec(code.replace("ViT-B/16", "tiny"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


@pytest.mark.heavy
def test_the_example_of_a_method_learns(example, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    changes = {
        "shots": "(8,)",
        "seeds": "(1,)",
        "epochs": 10,
        "optimizer.learning_rate": 0.02,
        "templates": "('a photo of a {}.',)",
        "data_dir": tmp_path,
    }
    settings = [f"{name}={value}" for name, value in changes.items()]
    config = load(f"configs/quickstart.py:{EXAMPLE}", settings)
    _, _, (before, after) = protocols.run(config, tmp_path / "run")
    assert (before.method, after.method) == ("zero_shot", EXAMPLE)
    assert after.accuracy > before.accuracy + 5


def test_the_example_of_a_dataset(tmp_path, monkeypatch):
    (code,) = blocks("adding-a-dataset.md", "json")
    ((name, record),) = json.loads(code).items()
    row = official.row(record)
    rows = {
        split: [[f"{bird}/{split}_{number}.jpg", label, bird] for number in range(2)]
        for split in ("train", "val", "test")
        for label, bird in enumerate(["Indigo_Bunting"])
    }
    rows = {split: [*found, [f"{split}.jpg", 1, "Ovenbird"]] for split, found in rows.items()}
    root = tmp_path / row.folder
    write_images(root / row.images, [path for part in rows.values() for path, _, _ in part])
    (root / row.split_file.name).write_text(json.dumps(rows))
    monkeypatch.setitem(official.OFFICIAL, name, row)
    dataset = catalog.load(name, tmp_path)
    assert dataset.classes.names == ("Indigo Bunting", "Ovenbird")
    assert dataset.templates == ("a photo of a {}, a type of bird.",)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [3, 3, 3]
    text = TEXTS[ROOT / "docs" / "adding-a-dataset.md"]
    assert f"`git hash-object {row.split_file.name}`" in text
    problems = doctor.examine(name, tmp_path).problems
    assert any(row.split_file.git_hash in problem for problem in problems)
    assert any("expected 200 classes, got 2" in problem for problem in problems)
