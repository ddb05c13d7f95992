"""The official code's prompts: read as PyTorch wrote them, written as PyTorch reads them."""

import dataclasses
import io
import os
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES
from hypothesis import given
from hypothesis import strategies as st
from makers import refusal
from reference import cases
from test_golden import create_method, learned, load, relative

from coop_jax import evaluate, methods, prompts
from coop_jax.classes import Classes
from coop_jax.errors import InputError
from coop_jax.methods import Images
from coop_jax.prompts import official, torch_file

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
    before = prompts.of(
        method, name=meta["method"], settings=settings, training={"epochs": 3}, **named
    )
    path = tmp_path / "prompt_learner" / "model.pth.tar-3"
    official.write(before, path)
    if meta["method"] == "coop":
        named["class_token_position"] = meta["class_token_position"]
    after = official.read(path, context_init=meta["ctx_init"] or "", **named)
    assert (after.method, after.settings) == (before.method, before.settings)
    assert after.training["epochs"] == 3
    prompts.save(after, tmp_path / "folder")
    again = prompts.load(tmp_path / "folder").for_classes(clip, tokenizer)
    features = arrays["image_features"]
    got = evaluate.logits(again, clip, Images(features=features), one_device)
    np.testing.assert_array_equal(
        got, evaluate.logits(method, clip, Images(features=features), one_device)
    )
    assert relative(got, arrays["eval_logits"]) < 3e-5


def test_what_pytorch_wrote_of_coop(read):
    """The context is a view into a phrase's embeddings; the optimizer's objects are skipped."""
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
def test_pytorch_reads_what_is_written(name, weights_only, tmp_path, read):
    torch = pytest.importorskip("torch", reason="the official code needs torch; ours does not")
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
    state = {f"{prefix}ctx": ramp(M, WIDTH), "image_encoder.weight": ramp(3)}
    torch_file.write(tmp_path / "file", state if is_bare else {"state_dict": state})
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
    torch_file.write(tmp_path / "file", {"state_dict": state, "epoch": 1})
    assert message in refusal(read, tmp_path / "file", **named)


def test_cocoop_has_one_position(read):
    assert "'middle'" in refusal(read, FILES / "cocoop.pth.tar-50", class_token_position="middle")


def test_tensors_that_are_not_read(read):
    assert "torch.save(torch.load(old" in refusal(read, FILES / "before_1_6.pth.tar-50")
    assert "with stride [1, 4]" in refusal(read, FILES / "transposed.pth.tar-50")
    assert "one of 'BFloat16Storage'" in refusal(read, FILES / "bfloat16.pth.tar-50")


def test_other_files(tmp_path, read):
    (tmp_path / "text").write_text("ctx")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("gone", "text", "empty", "."):
        refusal(read, tmp_path / name)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("archive/version", "3\n")
    assert "no entry data.pkl" in refusal(read, tmp_path / "zip")


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_pickle(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", ramp(M, WIDTH).tobytes())
        archive.writestr("archive/version", "3\n")


def touch(marker):
    """Ways to make the marker's file, by the name that is refused."""
    command = f"(S'touch {marker}'\ntR"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    system = "cbuiltins\ngetattr\n(cimportlib\nimport_module\n(S'os'\ntRS'system'\ntR"
    yield "posix.system", Call(os.system, f"touch {marker}")
    yield ".eval", [Call(eval, python)]
    yield ".exec", {"state_dict": {"ctx": Call(exec, python)}}
    yield "builtins.getattr", f"{system}{command}.".encode()
    inside = f"ctorch.optim.sgd\nSGD\n(tR(dVstep\ncposix\nsystem\n{command}sb."
    yield "posix.system", inside.encode()
    yield "torch.load", f"ctorch\nload\n{command}.".encode()
    yield "torch.hub.load", f"ctorch.hub\nload\n{command}.".encode()
    yield "numpy.load", f"cnumpy\nload\n{command}.".encode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_hostile_pickles_are_not_run(protocol, tmp_path, read):
    marker = tmp_path / "marker"
    for number, (name, hostile) in enumerate(touch(marker)):
        is_raw = isinstance(hostile, bytes)
        pickled = hostile if is_raw else pickle.dumps(hostile, protocol)
        write_pickle(tmp_path / str(number), pickled)
        message = refusal(read, tmp_path / str(number))
        assert name in message and "was not run" in message
        assert not marker.exists()
        if not is_raw:
            pickle.loads(pickled)
            assert marker.exists(), "the pickle was not hostile"
            marker.unlink()


def test_placeholders_cannot_be_called_or_marked(tmp_path, read):
    """What a pickle is given in place of names keeps nothing and is the next pickle's as before."""
    sgd = b"ctorch.optim.sgd\nSGD\n"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for pickled in (
        sgd + b"(tR(tR.",
        sgd + b"(dVmark\nVhere\nsb.",
        rebuild + b"N(dV__defaults__\n(I1\nts\x86b.",
        b"ccollections\nOrderedDict\nN(dVget\nI1\ns\x86b.",
        b"ccollections\nOrderedDict\n(dVget\nI1\nsb.",
        b"ctorch\nFloatStorage\n(tR.",
    ):
        write_pickle(tmp_path / "file", pickled)
        assert "damaged" in refusal(read, tmp_path / "file")
        test_what_pytorch_wrote_of_coop(read)
    for made in (sgd, b"ccollections\nOrderedDict\n"):
        write_pickle(tmp_path / "file", made + b"(tR(dVget\nVhere\nsb.")
        assert "without ctx" in refusal(read, tmp_path / "file")


def test_a_pickle_leaves_nothing_behind(tmp_path, read):
    """What stands for a name of PyTorch has no attributes that a pickle could set."""
    names = [f"ctorch._utils\n_rebuild_{name}\n" for name in ("tensor", "tensor_v2", "parameter")]
    for name in (*names, "ctorch\nSize\n"):
        write_pickle(tmp_path / "file", f"{name}(dVevil\nI1\nsb.".encode())
        assert "damaged" in refusal(read, tmp_path / "file")
    found = torch_file._Unpickler(io.BytesIO())
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        stands = found.find_class("torch._utils", name)
        assert not hasattr(stands, "__dict__")
    test_what_pytorch_wrote_of_coop(read)


def test_a_strange_id_is_not_written_out(tmp_path, read):
    """A tuple that is doubled again and again is small, but its text would fill the memory."""
    kind = b"(Vx\nt" + b"2\x86" * 60
    write_pickle(tmp_path / "file", b"(" + kind + b"NNNNtQ.")
    assert "damaged" in refusal(read, tmp_path / "file")


def state_dict(*, key="0", size=M * WIDTH, offset=0, shape=(M, WIDTH), stride=(WIDTH, 1)):
    """The pickle of a context with any place."""
    numbers = "".join(f"I{number}\n" for number in shape)
    steps = "".join(f"I{number}\n" for number in stride)
    return (
        "(dVctx\nctorch._utils\n_rebuild_tensor_v2\n("
        f"(Vstorage\nctorch\nFloatStorage\nV{key}\nVcpu\nI{size}\ntQ"
        f"I{offset}\n({numbers}t({steps}tI00\nccollections\nOrderedDict\n)RtRs."
    ).encode()


PLACES = {
    "larger than its storage": {"offset": 1},
    "longer than its storage": {"shape": (M + 1, WIDTH)},
    "a storage of another size": {"size": M * WIDTH + 1},
    "a huge storage": {"size": 10**15, "shape": (10**12, WIDTH)},
    "no such storage": {"key": "1"},
    "another entry": {"key": "../version"},
    "before its storage": {"offset": -1},
    "backwards": {"offset": M * WIDTH - 1, "stride": (-WIDTH, -1)},
    "one number again and again": {"shape": (10**9, WIDTH), "stride": (0, 0)},
    "strides too few": {"stride": (WIDTH,)},
    "no numbers": {"shape": (0, WIDTH)},
    "many dimensions": {"shape": (1,) * 70, "stride": (1,) * 70},
}


@pytest.mark.parametrize("place", PLACES)
def test_tensors_outside_the_file(place, tmp_path, read):
    write_pickle(tmp_path / "file", state_dict())
    np.testing.assert_array_equal(read(tmp_path / "file").learned["context"], ramp(M, WIDTH))
    write_pickle(tmp_path / "file", state_dict(**PLACES[place]))
    refusal(read, tmp_path / "file")


def test_archives_that_take_more_memory_than_the_file(tmp_path, read):
    write_pickle(tmp_path / "bomb", state_dict(), zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(read, tmp_path / "bomb")
    write_pickle(tmp_path / "memo", b"Nr\xff\xff\xff\x7f.")
    assert "memo" in refusal(read, tmp_path / "memo")
    write_pickle(tmp_path / "text", b"\x8e" + (1 << 62).to_bytes(8, "little") + b"x.")
    refusal(read, tmp_path / "text")


@given(data=st.data())
def test_damaged_files_are_read_or_refused(data, tiny_clip, tmp_path_factory):
    """Whatever bytes change, a file is read or refused in one line: nothing else happens."""
    content = bytearray((FILES / "coop_class_specific.pth.tar-50").read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.dictionaries(places, st.integers(0, 255), max_size=4)).items():
        content[place] = byte
    length = data.draw(st.sampled_from([len(content), data.draw(places)]))
    path = tmp_path_factory.mktemp("damaged") / "file"
    path.write_bytes(bytes(content[:length]))
    try:
        official.read(path, clip=tiny_clip, backbone="tiny vit", classes=Classes(CLASS_NAMES))
    except InputError as error:
        assert "\n" not in str(error)


@given(data=st.data())
def test_damaged_pickles_are_read_or_refused(data, tiny_clip, tmp_path_factory):
    """The same inside an archive that is sound, so that the bytes reach the unpickler."""
    with zipfile.ZipFile(FILES / "coop_class_specific.pth.tar-50") as archive:
        names = archive.namelist()
        entries = {name.partition("/")[2]: archive.read(name) for name in names}
    pickled = bytearray(entries["data.pkl"])
    places = st.integers(0, len(pickled) - 1)
    for place, byte in data.draw(
        st.dictionaries(places, st.integers(0, 255), min_size=1, max_size=4)
    ).items():
        pickled[place] = byte
    path = tmp_path_factory.mktemp("damaged") / "file"
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in {**entries, "data.pkl": bytes(pickled)}.items():
            archive.writestr(f"archive/{name}", entry)
    try:
        official.read(path, clip=tiny_clip, backbone="tiny vit", classes=Classes(CLASS_NAMES))
    except InputError as error:
        assert "\n" not in str(error)


def test_big_endian_files(tmp_path, read):
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state_dict())
        archive.writestr("archive/byteorder", "big")
        archive.writestr("archive/data/0", ramp(M, WIDTH).astype(">f4").tobytes())
    found = read(path).learned["context"]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, ramp(M, WIDTH))
