"""The official code's prompts: read as PyTorch wrote them, written as PyTorch reads them."""

import dataclasses
import os
import pickle
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES
from makers import refusal
from reference import cases
from test_golden import create_method, learned, load, relative

from coop_jax import evaluate, methods
from coop_jax.classes import Classes
from coop_jax.clip import torch_archive
from coop_jax.methods import Images
from coop_jax.saved import Saved, official

pytestmark = pytest.mark.torch

FILES = Path(__file__).parent / "data" / "official_prompts"
WIDTH, M = 32, 4


def ramp(*shape, dtype=np.float32):
    """The numbers that `record_official_prompt.py` recorded."""
    count = int(np.prod(shape))
    return (np.arange(count, dtype=np.float32).reshape(shape) / count - 0.25).astype(dtype)


@pytest.fixture
def read(tiny_clip):
    def read_with_defaults(path, **named):
        defaults = {"clip": tiny_clip, "backbone": "tiny vit", "classes": Classes(CLASS_NAMES)}
        return official.read(path, **(defaults | named))

    return read_with_defaults


@cases("co*op_*.npz")
def test_a_golden_context_goes_out_and_in_again(case, tmp_path, openai_tokenizer, one_device):
    arrays, meta, clip, tokenizer = load(case, openai_tokenizer)
    method = create_method(meta, clip, tokenizer)
    for name, (variable, transposed) in learned(method).items():
        final = arrays[f"final/{name}"].T if transposed else arrays[f"final/{name}"]
        variable[...] = jnp.asarray(final)
    settings = {"n_ctx": meta["n_ctx"], "context_init": meta["ctx_init"] or ""}
    if meta["method"] == "coop":
        settings["class_token_position"] = meta["class_token_position"]
        settings["class_specific"] = meta["csc"]
    named = {"clip": clip, "backbone": meta["clip"], "classes": Classes(meta["classnames"])}
    before = Saved.of(
        method, name=meta["method"], settings=settings, training={"epochs": 3}, **named
    )
    path = tmp_path / "prompt_learner" / "model.pth.tar-3"
    official.write(before, path)
    if meta["method"] == "coop":
        named["class_token_position"] = meta["class_token_position"]
    after = official.read(path, context_init=meta["ctx_init"] or "", **named)
    assert (after.method, after.settings) == (before.method, before.settings)
    assert after.training["epochs"] == 3
    after.save(tmp_path / "folder")
    again = Saved.load(tmp_path / "folder").for_classes(clip, tokenizer)
    features = Images(features=arrays["image_features"])
    got = evaluate.logits(again, clip, features, one_device)
    np.testing.assert_array_equal(got, evaluate.logits(method, clip, features, one_device))
    assert relative(got, arrays["eval_logits"]) < 3e-5


def test_what_pytorch_wrote_of_coop(read):
    """The context is a view into a phrase's embeddings; the optimizer's objects are passed over."""
    found = read(FILES / "coop.pth.tar-50", context_init="a_photo_of a", dataset="things")
    np.testing.assert_array_equal(found.learned["context"], ramp(1, 9, WIDTH)[0, 1 : 1 + M])
    assert (found.method, found.per_class) == ("coop", ())
    assert found.settings == {
        **methods.default_config("coop"),
        "n_ctx": M,
        "context_init": "a_photo_of a",
    }
    assert found.training == {
        "source": "official code",
        "file": "coop.pth.tar-50",
        "dataset": "things",
        "epochs": 50,
    }


def test_what_pytorch_wrote_of_a_class_specific_context(read, tiny_clip, tiny_tokenizer):
    path = FILES / "coop_class_specific.pth.tar-50"
    found = read(path, class_token_position="middle")
    expected = ramp(len(CLASS_NAMES), M, WIDTH, dtype=np.float16)
    assert found.learned["context"].dtype == np.float16
    np.testing.assert_array_equal(found.learned["context"], expected)
    method = found.for_classes(tiny_clip, tiny_tokenizer, Classes(CLASS_NAMES[::-1]))
    np.testing.assert_array_equal(method.context[...], expected[::-1])
    assert found.settings["class_token_position"] == "middle"


def test_what_pytorch_wrote_of_cocoop(read, tiny_clip, tiny_tokenizer):
    found = read(FILES / "cocoop.pth.tar-50")
    assert found.method == "cocoop"
    half = np.float16
    np.testing.assert_array_equal(found.learned["context"], ramp(M, WIDTH, dtype=half))
    np.testing.assert_array_equal(found.learned["meta_net.kernel1"], ramp(1, 24, dtype=half).T)
    np.testing.assert_array_equal(found.learned["meta_net.bias2"], ramp(WIDTH, dtype=half))
    found.for_classes(tiny_clip, tiny_tokenizer, Classes(("dog", "cat")))


@pytest.mark.parametrize("name", ["coop", "coop_class_specific", "cocoop"])
def test_what_is_read_is_written_as_it_was(name, tmp_path, read):
    before = read(FILES / f"{name}.pth.tar-50")
    official.write(before, tmp_path / "model.pth.tar-50")
    after = read(tmp_path / "model.pth.tar-50")
    for path, array in before.learned.items():
        assert after.learned[path].dtype == array.dtype
        np.testing.assert_array_equal(after.learned[path], array)
    refusal(official.write, before, tmp_path / "model.pth.tar-50")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth.tar-50"]


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_the_official_code_finds_what_it_saved(name, weights_only, tmp_path, read):
    import torch

    before = read(FILES / f"{name}.pth.tar-50")
    official.write(before, tmp_path / "model.pth.tar-50")
    checkpoint = torch.load(tmp_path / "model.pth.tar-50", weights_only=weights_only)
    recorded = torch.load(FILES / f"{name}.pth.tar-50", weights_only=False)["state_dict"]
    assert checkpoint["epoch"] == 50
    assert checkpoint["state_dict"].keys() == recorded.keys() - {"token_prefix", "token_suffix"}
    for key, tensor in checkpoint["state_dict"].items():
        assert torch.equal(tensor, recorded[key])


def test_the_options_of_the_official_code(read):
    found = read(FILES / "coop_class_specific.pth.tar-50", class_token_position="front")
    assert official.options(found) == [
        *("TRAINER.COOP.N_CTX", "4", "TRAINER.COOP.CTX_INIT", ""),
        *("TRAINER.COOP.CSC", "True", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front"),
    ]
    found = read(FILES / "cocoop.pth.tar-50", context_init="a photo of a")
    assert official.options(found) == [
        *("TRAINER.COCOOP.N_CTX", "4", "TRAINER.COCOOP.CTX_INIT", "a photo of a"),
    ]


def test_other_methods_cannot_go_out(tmp_path, read):
    found = read(FILES / "coop.pth.tar-50")
    other = dataclasses.replace(found, method="linear_probe")
    assert "one of linear_probe" in refusal(official.write, other, tmp_path / "model.pth.tar-1")
    refusal(official.options, other)


@pytest.mark.parametrize("prefix", ["", "module.", "prompt_learner.", "module.prompt_learner."])
@pytest.mark.parametrize("is_bare", [True, False])
def test_names_of_the_whole_model(prefix, is_bare, tmp_path, read):
    import torch

    arrays = {f"{prefix}ctx": ramp(M, WIDTH), "image_encoder.weight": ramp(3)}
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(state if is_bare else {"state_dict": state}, tmp_path / "file")
    np.testing.assert_array_equal(read(tmp_path / "file").learned["context"], ramp(M, WIDTH))


MISTAKES = {
    "another CLIP": ({"ctx": ramp(M, 16)}, {}, "vectors of 32 numbers"),
    "another meta-net": (
        {
            "ctx": ramp(M, WIDTH),
            "meta_net.linear1.weight": ramp(2, 48),
            "meta_net.linear1.bias": ramp(2),
            "meta_net.linear2.weight": ramp(WIDTH, 2),
            "meta_net.linear2.bias": ramp(WIDTH),
        },
        {},
        "features of 24",
    ),
    "half a meta-net": (
        {"ctx": ramp(M, WIDTH), "meta_net.linear1.bias": ramp(2)},
        {},
        "without meta_net.linear1.weight",
    ),
    "no context": ({"weight": ramp(M, WIDTH)}, {}, "without ctx"),
    "no dimension": ({"ctx": ramp(WIDTH)}, {}, "{'context': [32]}"),
    "classes": ({"ctx": ramp(3, M, WIDTH)}, {}, "context of 5 classes"),
    "phrase": ({"ctx": ramp(M, WIDTH)}, {"context_init": "a photo of"}, "of 3 vectors"),
    "phrase of each": ({"ctx": ramp(5, M, WIDTH)}, {"context_init": "a photo of a"}, "got [5, 4"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_prompts_that_do_not_fit(mistake, tmp_path, read):
    state, named, message = MISTAKES[mistake]
    (tmp_path / "file").write_bytes(torch_archive.dumps(tmp_path / "file", state, {"epoch": 1}))
    assert message in refusal(read, tmp_path / "file", **named)


def test_cocoop_has_one_position(read):
    assert "'middle'" in refusal(read, FILES / "cocoop.pth.tar-50", class_token_position="middle")


def test_tensors_of_any_layout(read):
    """A transposed view, bfloat16, and the format before PyTorch 1.6."""
    transposed = read(FILES / "transposed.pth.tar-50").learned["context"]
    np.testing.assert_array_equal(transposed, ramp(WIDTH, M).T)
    assert transposed.flags.c_contiguous
    rounded = read(FILES / "bfloat16.pth.tar-50").learned["context"]
    np.testing.assert_array_equal(rounded, ramp(M, WIDTH, dtype=jnp.bfloat16).astype(np.float32))
    assert rounded.dtype == np.float32
    before_1_6 = read(FILES / "before_1_6.pth.tar-50").learned["context"]
    np.testing.assert_array_equal(before_1_6, ramp(len(CLASS_NAMES), M, WIDTH, dtype=np.float16))


def test_numbers_that_a_prompt_cannot_hold(tmp_path, read):
    import torch

    for tensor, kind in (
        (torch.zeros(M, WIDTH, dtype=torch.float64), "ctx of float64"),
        (torch.zeros(M, WIDTH, dtype=torch.int64), "ctx of int64"),
        (torch.zeros(M, WIDTH).to_sparse(), "dense"),
        (torch.zeros(1).expand(10**9, WIDTH), "dense"),
    ):
        torch.save({"ctx": tensor}, tmp_path / "file")
        assert kind in refusal(read, tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"ctx", b"PK not an archive", (1 << 20) * b"\x80"])
def test_other_files(content, tmp_path, read):
    (tmp_path / "file").write_bytes(content)
    assert "a damaged file" in refusal(read, tmp_path / "file")


@pytest.mark.parametrize("name", ["coop_class_specific", "before_1_6"])
def test_cut_files(name, tmp_path, read):
    content = (FILES / f"{name}.pth.tar-50").read_bytes()
    for length in range(0, len(content), len(content) // 20):
        (tmp_path / "file").write_bytes(content[:length])
        assert "a damaged file" in refusal(read, tmp_path / "file")


def test_no_file(tmp_path, read):
    for name in ("gone", "."):
        assert "no file" in refusal(read, tmp_path / name)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def touch(marker):
    """Ways to make the marker's file, by the name that is refused."""
    command = f"(S'touch {marker}'\ntR"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    system = "cbuiltins\ngetattr\n(cimportlib\nimport_module\n(S'os'\ntRS'system'\ntR"
    yield "posix.system", Call(os.system, f"touch {marker}")
    yield "builtins.eval", [Call(eval, python)]
    yield "builtins.exec", {"state_dict": {"ctx": Call(exec, python)}}
    yield "builtins.getattr", f"{system}{command}.".encode()
    inside = f"ctorch.optim.sgd\nSGD\n(tR(dVstep\ncposix\nsystem\n{command}sb."
    yield "posix.system", inside.encode()
    yield "torch.load", f"ctorch\nload\n{command}.".encode()
    yield "numpy.load", f"cnumpy\nload\n{command}.".encode()


def write_archive(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("is_archive", [True, False])
def test_hostile_pickles_are_not_run(is_archive, protocol, tmp_path, read):
    marker = tmp_path / "marker"
    for number, (name, hostile) in enumerate(touch(marker)):
        path, is_raw = tmp_path / str(number), isinstance(hostile, bytes)
        pickled = hostile if is_raw else pickle.dumps(hostile, protocol)
        if is_archive:
            write_archive(path, pickled)
        else:
            path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickled)
        message = refusal(read, path)
        assert "not run" in message
        if is_archive and protocol == 2 and not is_raw:
            assert name in message
        assert not marker.exists()
        if not is_raw:
            pickle.loads(pickled)
            assert marker.exists(), "the pickle was not hostile"
            marker.unlink()


def test_what_stands_for_an_optimizer_keeps_nothing(tmp_path, read):
    """A pickle may make one and set its state, but neither reads nor calls what it has set."""
    import torch

    before = torch.serialization.get_safe_globals()
    sgd = b"\x80\x02ctorch.optim.sgd\nSGD\n"
    for end in (b")R)R.", b")R}X\x01\x00\x00\x00aK\x01sb}X\x01\x00\x00\x00bK\x01s."):
        write_archive(tmp_path / "file", sgd + end)
        refusal(read, tmp_path / "file")
    write_archive(tmp_path / "file", sgd + b")R}X\x03\x00\x00\x00ctxK\x01sb.")
    assert "without ctx" in refusal(read, tmp_path / "file")
    assert set(torch.serialization.get_safe_globals()) == set(before)


def test_what_needs_torch_says_so(tmp_path, read, monkeypatch):
    before = read(FILES / "coop.pth.tar-50")
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (
        lambda: read(FILES / "coop.pth.tar-50"),
        lambda: official.write(before, tmp_path / "new" / "model.pth.tar-1"),
    ):
        assert "pip install 'coop_jax[torch]'" in refusal(call)
    assert not (tmp_path / "new").exists()
