"""What commands do with a saved method besides classifying: words, other software, the hub."""

import dataclasses
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from makers import image_folder
from safetensors.numpy import load_file

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.clip import source
from coop_jax.saved import Saved

NAMES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def tiny():
    return clip_package.load("tiny")[0]


@pytest.fixture(scope="module")
def mine(tiny, tmp_path_factory):
    """A prompt whose context is as it was drawn."""
    folder, settings = tmp_path_factory.mktemp("prompts") / "mine", {"n_ctx": 4}
    tokenizer = clip_package.Tokenizer(source.EMBEDDED_FOLDER)
    method = methods.create("coop", tiny, tokenizer, NAMES, settings)
    said = {"name": "coop", "settings": settings, "clip": tiny, "backbone": "tiny"}
    learned = Saved.of(method, **said, classes=Classes(NAMES), training={"epochs": 40})
    learned.save(folder)
    return folder


@pytest.fixture
def class_specific(tiny, tmp_path):
    """A prompt in which every class has its own context: the embeddings of a word and a number."""
    tokenizer = clip_package.Tokenizer(source.EMBEDDED_FOLDER)
    words = [tokenizer.ids("circle star"), tokenizer.ids("seven square")]
    learned = Saved(
        method="coop",
        settings={
            "n_ctx": 2,
            "class_token_position": "end",
            "class_specific": True,
            "context_init": "",
        },
        learned={"context": np.asarray(tiny.text.token_embedding[...])[np.asarray(words)]},
        backbone="tiny",
        fingerprint=clip_package.fingerprint(tiny),
        classes=Classes(("cat", "sea_lion")),
        training={},
        per_class=("context",),
    )
    learned.save(tmp_path / "specific")
    return tmp_path / "specific"


def test_interpret_names_the_words_of_a_context(mine, tiny, run, monkeypatch):
    code, out, err = run("interpret", mine, "--top", "2")
    assert (code, err) == (0, [])
    rows = [line.split("\t") for line in out]
    assert [row[0] for row in rows] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    tokenizer = clip_package.Tokenizer(source.EMBEDDED_FOLDER)
    context, table = Saved.load(mine).learned["context"], tiny.text.token_embedding[...]
    for number, word, distance in rows:
        vector = table[tokenizer.words().index(word)]
        expected = np.linalg.norm(vector - context[int(number) - 1])
        assert word.isalpha() and float(distance) == pytest.approx(expected, abs=1e-3)
    _, tokens, _ = run("interpret", mine, "--top", "2", "--all-tokens")
    nearest = [float(row.split("\t")[2]) for row in tokens]
    of_words = [float(row[2]) for row in rows]
    assert all(one <= other for one, other in zip(nearest, of_words, strict=True))
    assert any(one < other for one, other in zip(nearest, of_words, strict=True))
    _, every, _ = run("interpret", mine, "--top=100000")
    assert len(every) == 4 * sum(word.isalpha() for word in tokenizer.words())
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, shown, _ = run("interpret", mine, "--top=1")
    assert any(f"{rows[0][1]} ({rows[0][2]})" in line for line in shown)


def test_interpret_knows_the_contexts_of_classes(class_specific, run, refused, mine):
    code, out, _ = run("interpret", class_specific, "--top=1")
    assert code == 0
    assert [line.split("\t")[:3] for line in out] == [
        ["cat", "1", "circle"],
        ["cat", "2", "star"],
        ["sea_lion", "1", "seven"],
        ["sea_lion", "2", "square"],
    ]
    for name in ("sea_lion", "sea lion"):
        assert run("interpret", class_specific, "--top=1", f"--class={name}")[1] == out[2:]
    assert "cat, sea_lion" in refused("interpret", class_specific, "--class=dog")
    image = source.EMBEDDED_FOLDER / "README.md"
    assert "class-specific" in refused("predict", class_specific, image, "--classes=cat,dog")
    assert "all classes share" in refused("interpret", mine, "--class=red")


def test_interpret_names_the_prompts_of_a_method_that_has_several(tiny, run, refused, tmp_path):
    tokenizer, settings = (
        clip_package.Tokenizer(source.EMBEDDED_FOLDER),
        {"local_prompts": 1, "top_k": (1,)},
    )
    for name, chosen in (("gallop", settings), ("tip_adapter", {})):
        method = methods.create(name, tiny, tokenizer, NAMES, chosen)
        said = {"name": name, "settings": chosen, "clip": tiny, "backbone": "tiny"}
        Saved.of(method, **said, classes=Classes(NAMES)).save(tmp_path / name)
    code, out, _ = run("interpret", tmp_path / "gallop", "--top=1")
    assert code == 0 and len(out) == 5 * len(tokenizer.ids("A photo of a"))
    assert {line.split("\t")[0] for line in out} == {
        *(f"global prompt {number}" for number in range(1, 5)),
        "local prompt 1",
    }
    assert "which has alpha, beta, keys" in refused("interpret", tmp_path / "tip_adapter")
    assert "all classes share" in refused("interpret", tmp_path / "gallop", "--class=red")


def test_interpret_shows_classes_of_one_name_all(class_specific, run, tmp_path):
    learned = Saved.load(class_specific)
    missiles = Classes(("missile", "missile"), ("a", "b"))
    dataclasses.replace(learned, classes=missiles).save(tmp_path / "missiles")
    for option in ((), ("--class=missile",)):
        _, out, _ = run("interpret", tmp_path / "missiles", "--top=1", *option)
        words = [line.split("\t")[2] for line in out]
        assert words == ["circle", "star", "seven", "square"]


def test_what_has_no_context_is_not_interpreted(class_specific, refused, tmp_path, tiny):
    learned = Saved.load(class_specific)
    probe = {"weight": np.zeros((2, 96), np.float32), "bias": np.zeros(2, np.float32)}
    fields = {**vars(learned), "method": "linear_probe", "settings": {}, "learned": probe}
    Saved(**{**fields, "per_class": ("weight", "bias")}).save(tmp_path / "probe")
    assert "bias, weight" in refused("interpret", tmp_path / "probe")


def test_export_writes_what_the_ending_says(mine, run, refused, tmp_path):
    weights, program = tmp_path / "weights.safetensors", tmp_path / "classifier.stablehlo"
    assert run("export", mine, weights)[:2] == (0, [f"saved {weights}"])
    assert load_file(weights)["weight"].shape == (3, 96)
    assert run("export", mine, program, "--classes=red,green,blue")[0] == 0
    assert program.stat().st_size > 10**6
    assert json.loads((tmp_path / "classifier.json").read_text())["classes"] == [
        "red",
        "green",
        "blue",
    ]
    assert "which is there" in refused("export", mine, weights)
    program.unlink()
    assert "classifier.json, which is there" in refused("export", mine, program)
    assert "ends in" in refused("export", mine, tmp_path / "weights.pt")


@pytest.mark.torch
def test_the_official_codes_files_go_out_and_in(mine, run, refused, tmp_path):
    file, again = tmp_path / "new" / "prompt_learner" / "model.pth.tar-40", tmp_path / "again"
    code, out, _ = run("export", mine, file)
    assert code == 0 and "TRAINER.COOP.N_CTX 4" in out[0] and "CTX_INIT ''" in out[0]
    assert f"--model-dir {tmp_path / 'new'} --load-epoch 40 " in out[0]
    assert "which is there" in refused("export", mine, file)
    assert "model.pth.tar-40 is a file" in refused(
        "export", mine, file / "prompt_learner" / file.name
    )
    assert "leave it out" in refused("export", mine, tmp_path / "m.pth.tar-1", "--classes=a,b")
    data = image_folder(tmp_path / "colours", NAMES, 1)
    given = ("--clip=tiny", f"--classes=dataset:{data}")
    code, out, _ = run("import", file, again, *given)
    assert (code, out) == (0, [f"saved {again}: coop, 3 classes"])
    image = data / "test" / "red" / "0.jpg"
    assert run("predict", again, image) == run("predict", mine, image)
    assert Saved.load(again).training["epochs"] == 40
    assert "absent" in refused("import", tmp_path / "absent", tmp_path / "other", *given)
    assert "holds something else" in refused("import", file, mine, *given)


class Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.torch
def test_import_runs_nothing(refused, tmp_path):
    pickled = pickle.dumps(Touch(tmp_path / "marker"), protocol=2)
    with zipfile.ZipFile(tmp_path / "model.pth.tar-1", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    given = ("--clip=tiny", "--classes=blue,red")
    line = refused("import", tmp_path / "model.pth.tar-1", tmp_path / "new", *given)
    assert "posix.system" in line and "was not run" in line
    assert not (tmp_path / "marker").exists() and not (tmp_path / "new").exists()
    pickle.loads(pickled)
    assert (tmp_path / "marker").exists(), "the pickle was not hostile"


def test_push_and_pull(server, mine, run, refused, tmp_path):
    code, out, _ = run("push", mine, "somebody/colours")
    assert (code, out) == (0, [f"{server.endpoint}/somebody/colours"])
    pulled = tmp_path / "pulled"
    assert run("pull", "somebody/colours", pulled)[:2] == (0, [f"saved {pulled}"])
    for name in ("method.json", "learned.safetensors"):
        assert (pulled / name).read_bytes() == (mine / name).read_bytes()
    assert run("interpret", "somebody/colours")[1] == run("interpret", mine)[1]
    (pulled / "more.txt").write_text("other")
    assert "absent" in refused("pull", "somebody/absent", tmp_path / "new")
    assert "as user/name" in refused("push", mine, "colours")
