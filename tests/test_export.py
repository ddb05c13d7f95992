"""Exported classifiers, used as others would: by PyTorch, and by JAX without this package."""

import datetime
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from makers import refusal
from PIL import Image
from safetensors import safe_open
from test_imports import assert_clean, run_python

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods
from coop_jax.clip import FeatureSpace, source
from coop_jax.methods import Images
from coop_jax.predictor import Predictor
from coop_jax.saved import export

NAMES = ("a red circle", "square", "black star", "seven")
CASES = {
    "coop": ("coop", {"n_ctx": 4}),
    "cocoop": ("cocoop", {}),
    "linear_probe": ("linear_probe", {}),
}
COUNTS = """
import jax.numpy as jnp

from coop_jax import methods

NAME, PAPER, default_config = "counts", "", dict


class Method(methods.Method):
    def __init__(self, given, config):
        self.count = len(given.classes)

    def logits(self, clip, texts, images):
        return jnp.zeros((len(images.features), self.count))
"""
"""A method whose logits depend on a number of images that Python knows."""

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = (ROOT / "README.md").read_text() + (ROOT / "docs" / "saved.md").read_text()


def documented(containing):
    """The one block of Python in the README and docs/saved.md with this text in it."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENTED, flags=re.DOTALL)
    (block,) = (block for block in blocks if containing in block)
    return block


@pytest.fixture(scope="module")
def clip():
    return clip_package.load("tiny")


@pytest.fixture(scope="module")
def make(clip):
    """A method of a case, as if it had learned something."""

    def make_case(case):
        name, settings = CASES[case]
        method = methods.create(name, *clip, NAMES, settings, seed=3)
        rng = np.random.default_rng(0)
        for variable in methods.saved(method).values():
            drawn = np.asarray(variable) + 0.1 * rng.normal(size=variable.shape)
            variable[...] = jnp.asarray(drawn, jnp.float32)
        return method

    return make_case


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("case", ["coop", "linear_probe"])
@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_files_of_class_weights_make_the_logits(case, ending, make, clip, one_device, tmp_path):
    method, model = make(case), clip[0]
    path = tmp_path / f"weights.{ending}"
    weights = export.class_weights(method, model)
    export.save_class_weights(path, weights, class_names=NAMES, backbone="tiny")
    if ending == "npz":
        with np.load(path, allow_pickle=False) as file:
            said = {name: array.tolist() for name, array in file.items()}
            weight, bias = file["weight"], file["bias"]
    else:
        with safe_open(path, "np") as file:
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
            said = file.metadata()
        said |= {name: json.loads(said[name]) for name in ("classes", "normalizes")}
    assert (weight.dtype, weight.shape) == (np.float32, (4, model.config.embedding))
    assert said["classes"] == list(NAMES) and said["backbone"] == "tiny"
    features = np.random.default_rng(2).normal(size=(5, weight.shape[1])).astype(np.float32)
    expected = evaluate.logits(method, model, Images(features=features), one_device)
    if said["normalizes"]:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    got = features @ weight.T + bias
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-5 * np.abs(expected).max())


def test_what_is_not_exported_is_refused(make, clip, tmp_path):
    (tmp_path / "mine.py").write_text(COUNTS)
    method = methods.create(str(tmp_path / "mine.py"), *clip, NAMES)
    message = refusal(export.program, method, clip[0])
    assert "for any number of images" in message and "TypeError" in message
    space = FeatureSpace(96)
    assert "given features" in refusal(export.program, make("linear_probe"), space)


def test_programs_give_the_logits_in_a_process_without_this_package(
    make, clip, one_device, pixels, tmp_path
):
    expected = {
        case: Predictor(make(case), clip[0], encode_batch_size=8).logits(pixels)
        for case in ("coop", "cocoop")
    }
    for case in expected:
        method, path = make(case), tmp_path / f"{case}.stablehlo"
        exported = export.program(method, clip[0])
        assert exported.platforms == ("cpu", "cuda", "tpu")
        beside = export.save_program(path, exported, class_names=NAMES, backbone="tiny")
        said = json.loads(beside.read_text())
        assert said["classes"] == list(NAMES) and "[batch, 32, 32, 3]" in said["input"]
    np.save(tmp_path / "pixels.npy", pixels)
    code = f"""
        import sys
        from pathlib import Path

        import jax.export
        import numpy as np

        folder = Path({str(tmp_path)!r})
        pixels = np.load(folder / "pixels.npy")
        for path in folder.glob("*.stablehlo"):
            program = jax.export.deserialize(bytearray(path.read_bytes()))
            np.savez(path.with_suffix(""), one=program.call(pixels[:1]), all=program.call(pixels))
        assert "coop_jax" not in sys.modules
        """
    assert_clean(run_python(code))
    for case, logits in expected.items():
        got = np.load(tmp_path / f"{case}.npz")
        assert got["one"].dtype == np.float32
        np.testing.assert_allclose(got["one"], logits[:1], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got["all"], logits, rtol=1e-5, atol=1e-4)


def test_programs_are_read_and_nothing_is_overwritten(make, clip, pixels, tmp_path):
    path, said = tmp_path / "all.stablehlo", {"class_names": NAMES, "backbone": "tiny"}
    exported = export.program(make("coop"), clip[0], platforms=["cpu"])
    export.save_program(path, exported, **said)
    content = path.read_bytes()
    got = export.load_program(path).call(pixels[:2])
    np.testing.assert_allclose(got, exported.call(pixels[:2]), rtol=1e-6)
    assert "which is there" in refusal(export.save_program, path, exported, **said)
    other = tmp_path / "all.safetensors"
    weights = export.class_weights(make("coop"), clip[0])
    export.save_class_weights(other, weights, **said)
    refusal(export.save_class_weights, other, weights, **said)
    absent = tmp_path / "nowhere" / "all.stablehlo"
    assert "whose folder" in refusal(export.save_program, absent, exported, **said)
    assert path.read_bytes() == content
    path.write_bytes(content[:1000])
    assert "damaged" in refusal(export.load_program, path)
    assert "absent" in refusal(export.load_program, tmp_path / "absent.stablehlo")


class SevenMonthsAgo(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 3, 31, tzinfo=tz)


def test_a_program_says_until_when_it_is_read(make, clip, tmp_path, monkeypatch):
    path, said = tmp_path / "all.stablehlo", {"class_names": NAMES, "backbone": "tiny"}
    exported = export.program(make("coop"), clip[0], platforms=["cpu"])
    with monkeypatch.context() as patch:
        patch.setattr("datetime.datetime", SevenMonthsAgo)
        beside = json.loads(export.save_program(path, exported, **said).read_text())
    assert (beside["exported"], beside["readable_until"]) == ("2026-03-31", "2026-09-27")
    assert beside["jax"] == jax.__version__
    content = path.read_bytes()
    assert str(export.load_program(path).out_avals) == str(exported.out_avals)
    stated = f"coop_jax 2026-03-31 jax {jax.__version__}".encode()
    assert stated in content
    unreadable = b"\xff" * 64 + content[64:]
    path.write_bytes(unreadable)
    line = refusal(export.load_program, path)
    assert "exported on 2026-03-31" in line and "until 2026-09-27" in line
    assert "damaged" not in line and "export it again" in line
    path.write_bytes(unreadable.replace(b"2026-03-31", b"9026-03-31"))
    assert "newer JAX" in refusal(export.load_program, path)


@pytest.mark.torch
def test_pytorch_and_transformers_use_the_class_weights(make, clip, pixels, tmp_path):
    method, image = make("coop"), Image.fromarray(pixels[0])
    image.save(tmp_path / "cat.png")
    export.save_class_weights(
        tmp_path / "weights.safetensors",
        export.class_weights(method, clip[0]),
        class_names=NAMES,
        backbone="tiny",
    )
    lines = documented("CLIPModel")
    for name, place in (
        ("openai/clip-vit-base-patch16", source.EMBEDDED_FOLDER),
        ("weights.safetensors", tmp_path / "weights.safetensors"),
        ("cat.jpg", tmp_path / "cat.png"),
    ):
        assert name in lines
        lines = lines.replace(name, str(place))
    finished = run_python(lines)
    assert_clean(finished)
    found = Predictor(method, clip[0], encode_batch_size=8).predict([image]).probabilities[0]
    got = [line.rsplit(" ", 1) for line in finished.stdout.strip().splitlines()]
    assert [name for name, _ in got] == list(NAMES)
    np.testing.assert_allclose([float(share) for _, share in got], found, rtol=1e-4, atol=1e-6)


def test_the_documented_lines_run_a_program(make, clip, tmp_path):
    exported, path = export.program(make("coop"), clip[0]), tmp_path / "classifier.stablehlo"
    export.save_program(path, exported, class_names=NAMES, backbone="tiny")
    finished = run_python(documented("deserialize").replace(path.name, str(path)))
    assert_clean(finished)
    assert finished.stdout.strip() == "(2, 4)"
