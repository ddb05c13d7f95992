"""Saved methods: what is saved loads, on the classes and the CLIP it fits, and on no others."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, moved
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from makers import refusal
from safetensors.numpy import load_file, save

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.classes import Classes
from coop_jax.saved import Saved, files

OTHERS = ("dog", "cat", "sewing machine")
KINDS = {
    "shared": ("coop", {"n_ctx": 4}),
    "middle": ("coop", {"n_ctx": 3, "class_token_position": "middle"}),
    "class-specific": ("coop", {"n_ctx": 4, "class_specific": True}),
    "phrase": ("coop", {"context_init": "a photo of a"}),
    "cocoop": ("cocoop", {}),
    "linear probe": ("linear_probe", {}),
}


def learned(kind, clip, tokenizer, dtype=np.float32, class_names=CLASS_NAMES):
    """A method of this kind whose Learned variables are random."""
    name, settings = KINDS[kind]
    method = methods.create(name, clip, tokenizer, class_names, settings)
    rng = np.random.default_rng(2)
    flat = nnx.to_flat_state(nnx.state(method, methods.Learned))
    drawn = [
        (path, variable.replace(jnp.asarray(rng.normal(size=variable.shape), dtype)))
        for path, variable in flat
    ]
    nnx.update(method, nnx.from_flat_state(drawn))
    return method


def made(kind, clip, tokenizer, **named):
    """The method, and the prompt that it has learned."""
    method = learned(kind, clip, tokenizer, **named)
    name, settings = KINDS[kind]
    return method, Saved.of(
        method,
        name=name,
        settings=settings,
        clip=clip,
        backbone="tiny vit",
        classes=Classes(CLASS_NAMES),
        training={"dataset": "things", "shots": 4, "accuracy": 71.5},
    )


def assert_same(method, expected):
    """Every variable is equal, to the bit, and so is all else that a method is made of."""
    assert method.settings() == expected.settings()
    (graph, state), (expected_graph, expected_state) = nnx.split(method), nnx.split(expected)
    assert graph == expected_graph
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)
    dtypes, expected_dtypes = (
        jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (state, expected_state)
    )
    assert jax.tree.leaves(dtypes) == jax.tree.leaves(expected_dtypes)


@pytest.fixture
def folder(tmp_path, tiny_clip, tiny_tokenizer):
    """The folder of a class-specific prompt."""
    made("class-specific", tiny_clip, tiny_tokenizer)[1].save(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "float32") for kind in KINDS), ("class-specific", "float16"), ("cocoop", "float16")],
)
def test_what_is_saved_loads_as_the_same_method(kind, dtype, tmp_path, tiny_clip, tiny_tokenizer):
    method, before = made(kind, tiny_clip, tiny_tokenizer, dtype=dtype)
    before.save(tmp_path / "deep" / "mine")
    after = Saved.load(tmp_path / "deep" / "mine")
    for field in dataclasses.fields(Saved):
        if field.name != "learned":
            assert getattr(after, field.name) == getattr(before, field.name)
    assert bool(after.per_class) == (kind in ("class-specific", "linear probe"))
    assert {str(array.dtype) for array in after.learned.values()} == {dtype}
    assert_same(after.for_classes(tiny_clip, tiny_tokenizer), method)


def test_a_prompt_states_all_settings_and_nothing_of_the_machine(folder, tmp_path):
    record = json.loads((folder / "method.json").read_text())
    assert record["settings"] == {**methods.default_config("coop"), **KINDS["class-specific"][1]}
    assert record["format_version"] == 1
    assert str(tmp_path) not in (folder / "method.json").read_text()
    assert {path.name for path in folder.iterdir()} == {"method.json", "learned.safetensors"}
    assert load_file(folder / "learned.safetensors")["context"].shape == (len(CLASS_NAMES), 4, 32)


@pytest.mark.parametrize("kind", ["shared", "middle", "phrase", "cocoop"])
def test_a_shared_context_serves_any_classes(kind, tiny_clip, tiny_tokenizer):
    method, found = made(kind, tiny_clip, tiny_tokenizer)
    name, settings = KINDS[kind]
    fresh = methods.create(name, tiny_clip, tiny_tokenizer, OTHERS, settings, seed=5)
    expected = methods.move(method, fresh, Classes(CLASS_NAMES), moved(OTHERS))
    assert_same(found.for_classes(tiny_clip, tiny_tokenizer, Classes(OTHERS)), expected)


@pytest.mark.parametrize("kind", ["class-specific", "linear probe"])
def test_class_specific_rows_follow_the_names(kind, tiny_clip, tiny_tokenizer):
    method, found = made(kind, tiny_clip, tiny_tokenizer)
    wanted = ["cd player", "tench", "black_and_gold garden spider"]
    name, settings = KINDS[kind]
    fresh = methods.create(name, tiny_clip, tiny_tokenizer, wanted, settings)
    learned = [CLASS_NAMES[row] for row in (3, 0, 2)]
    expected = methods.move(method, fresh, Classes(CLASS_NAMES), moved(learned))
    assert_same(found.for_classes(tiny_clip, tiny_tokenizer, Classes(tuple(wanted))), expected)


def test_class_specific_rows_follow_the_ids(tiny_clip, tiny_tokenizer):
    """Two classes of ImageNet are called missile; their ids tell them apart."""
    _, found = made("class-specific", tiny_clip, tiny_tokenizer)
    names = ("missile", "tench", "missile", "kite", "wolf")
    found = dataclasses.replace(found, classes=Classes(names, ("a", "b", "c", "d", "e")))
    context = found.learned["context"]
    whole = found.for_classes(tiny_clip, tiny_tokenizer)
    np.testing.assert_array_equal(whole.context[...], context)
    one = found.for_classes(tiny_clip, tiny_tokenizer, Classes(("wolf", "missile"), ("e", "c")))
    np.testing.assert_array_equal(one.context[...], context[[4, 2]])
    message = refusal(found.for_classes, tiny_clip, tiny_tokenizer, Classes(("wolf", "missile")))
    assert "got missile, which several" in message


def test_classes_that_a_class_specific_prompt_has_not_learned(tiny_clip, tiny_tokenizer):
    _, found = made("class-specific", tiny_clip, tiny_tokenizer)
    wanted = Classes(("tench", "dog", "cat"))
    message = refusal(found.for_classes, tiny_clip, tiny_tokenizer, wanted)
    assert "(tench, hen-of-the-woods, black and gold garden spider, ...)" in message
    assert "got 2 others (dog, cat)" in message


def test_another_backbone_is_refused_by_both_names(tiny_clip, tiny_tokenizer):
    _, found = made("shared", tiny_clip, tiny_tokenizer)
    embedded, tokenizer = clip_package.load("tiny")
    message = refusal(found.for_classes, embedded, tokenizer, backbone="tiny")
    assert "tiny vit (fingerprint" in message and "got tiny (fingerprint" in message
    assert "got another (fingerprint" in refusal(found.for_classes, embedded, tokenizer)


def test_nothing_is_overwritten(folder, tmp_path, tiny_clip, tiny_tokenizer):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = made("shared", tiny_clip, tiny_tokenizer)[1]
    assert "holds something else" in refusal(other.save, folder)
    Saved.load(folder).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    refusal(other.save, tmp_path / "file")
    refusal(other.save, tmp_path / "file" / "below")
    for name in ("a" * 300, "a\0b"):
        refusal(other.save, tmp_path / name)
        refusal(Saved.load, tmp_path / name)
    (tmp_path / "empty").mkdir()
    other.save(tmp_path / "empty")
    assert Saved.load(tmp_path / "empty").settings == other.settings
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "file", "empty"}


def test_a_record_that_is_not_json(tmp_path, tiny_clip, tiny_tokenizer):
    found = made("shared", tiny_clip, tiny_tokenizer)[1]
    for value in (float("nan"), np.float32(1)):
        other = dataclasses.replace(found, training={"accuracy": value})
        refusal(other.save, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_not_saved(tmp_path, tiny_clip, tiny_tokenizer):
    found = made("shared", tiny_clip, tiny_tokenizer)[1]
    for dtype in (np.float64, jnp.bfloat16):
        strange = {"context": found.learned["context"].astype(dtype)}
        other = dataclasses.replace(found, learned=strange)
        assert "got context of others" in refusal(other.save, tmp_path / "mine")
    assert not list(tmp_path.iterdir())


def edit(folder, **changes):
    """Write the record anew with other values, and with their digests."""
    record, tensors = files.read(folder)
    for path in folder.iterdir():
        path.unlink()
    files.write(folder, record | changes, tensors)


DAMAGES = {
    "no folder": (lambda folder: folder.rename(folder.parent / "gone"), "which is not there"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], "which has nothing"),
    "no tensors": (lambda folder: (folder / "learned.safetensors").unlink(), "no such file"),
    "no record": (lambda folder: (folder / "method.json").unlink(), "learned.safetensors;"),
    "half a record": (lambda folder: (folder / "method.json").write_text('{"form'), "damaged"),
    "not UTF-8": (lambda folder: (folder / "method.json").write_bytes(b"\xff\xfe{"), "damaged"),
    "a list": (lambda folder: (folder / "method.json").write_text("[]"), "which is none"),
    "other JSON": (lambda folder: edit(folder, format="a config"), "'a config', which is none"),
    "newer": (lambda folder: edit(folder, format_version=2), "got 2; update coop_jax"),
    "no version": (lambda folder: edit(folder, format_version=None), "format version 1"),
    "no settings": (lambda folder: edit(folder, settings=None), "got settings missing"),
    "numbers as names": (lambda folder: edit(folder, class_names=[1, 2]), "got class_names"),
    "ids too few": (lambda folder: edit(folder, class_ids=["a"]), "for each of 5 class names"),
    "another digest": (lambda folder: edit(folder, sha256="f" * 64), "sha256 ffffffff"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders(damage, folder):
    change, message = DAMAGES[damage]
    change(folder)
    assert message in refusal(Saved.load, folder)


@pytest.fixture(scope="module")
def contents(tmp_path_factory, tiny_clip, tiny_tokenizer):
    """A folder, and the two files that a saved method has in it."""
    folder = tmp_path_factory.mktemp("flipped") / "mine"
    made("cocoop", tiny_clip, tiny_tokenizer)[1].save(folder)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["method.json", "learned.safetensors"])
@given(place=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_any_damaged_byte_is_refused(name, place, flipped, contents):
    folder, content = contents[0], bytearray(contents[1][name])
    content[int(place * len(content))] ^= flipped
    (folder / name).write_bytes(content)
    try:
        assert str(folder / name) in refusal(Saved.load, folder)
    finally:
        (folder / name).write_bytes(contents[1][name])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (b"not safetensors", "got a damaged one"),
        (save({"context": np.zeros(4, np.int64)}), "got context of others"),
    ],
)
def test_tensors_that_are_none(tensors, message, folder):
    """Files with the right digest of something else."""
    record, _ = files.read(folder)
    (folder / "learned.safetensors").write_bytes(tensors)
    (folder / "method.json").write_bytes(files.signed(record, tensors))
    assert message in refusal(Saved.load, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"n_ctx": "4"}},
        {"settings": {"n_ctx": 10**9}},
        {"settings": {"n_ctx": 4, "class_specific": False}},
    ],
)
def test_records_that_do_not_fit_the_tensors(changes, folder, tiny_clip, tiny_tokenizer):
    found = dataclasses.replace(Saved.load(folder), **changes)
    refusal(found.for_classes, tiny_clip, tiny_tokenizer, Classes(CLASS_NAMES[:3]))


def test_a_file_is_no_prompt(tmp_path):
    (tmp_path / "model.pth.tar-50").write_bytes(b"PK")
    assert "a file;" in refusal(Saved.load, tmp_path / "model.pth.tar-50")
