"""Token ids against transformers' and open_clip's; `test_golden.py` has the official ones."""

import dataclasses
import json
import pickle
import re
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tokenizer_files
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizer_files import KINDS

from coop_jax import clip
from coop_jax.clip import Tokenizer, source
from coop_jax.clip.config import TextConfig, TransformerConfig
from coop_jax.errors import InputError
from coop_jax.reading import clean

CONTEXT = 16
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["a", "photo", "Cat", "dog,", "très", "12", "_", "—"])).map(" ".join),
)


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(source.EMBEDDED_FOLDER))


@given(text=st.text(max_size=40))
def test_ids_are_those_of_transformers(tiny_tokenizer, transformers_tokenizer, text):
    expected = transformers_tokenizer(clean(text), add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.ids(text) == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizer files by kind."""
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return tokenizer_files.siglip(tmp_path_factory.mktemp("siglip"))


def text_config(size, **changes):
    config = TextConfig(size, CONTEXT, TransformerConfig(8, 1, 1, 8), pooling="last")
    return dataclasses.replace(config, **changes)


def fitting(folder, stated=None, **changes):
    """A tokenizer with a tower that it belongs to."""
    size = Tokenizer(folder, None, stated).size
    return Tokenizer(folder, text_config(size, **changes), stated)


def check_against_transformers(folder):
    from transformers import AutoTokenizer

    ours, theirs = fitting(folder), AutoTokenizer.from_pretrained(str(folder))

    @given(TEXTS)
    @example("a " * 40)
    @example("")
    def check(text):
        layout = {"padding": "max_length", "max_length": CONTEXT, "truncation": True}
        np.testing.assert_array_equal(
            ours([text], truncate=True)[0], theirs(text, **layout).input_ids
        )
        assert ours.ids(text) == theirs(text, add_special_tokens=False).input_ids

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_other_kinds_are_those_of_transformers(folders, kind):
    check_against_transformers(folders[kind])


def test_a_mark_of_a_clip_is_found_as_transformers_finds_it(tmp_path):
    from transformers import AutoTokenizer

    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "!"}))
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(str(folder))
    ids = theirs("a photo! of a star", padding="max_length", max_length=77).input_ids
    assert ours.pad in ids[:-1] and ours.pad == theirs.pad_token_id
    assert ours(["a photo! of a star"])[0].tolist() == ids
    assert ours.ids("a photo!") != Tokenizer(source.EMBEDDED_FOLDER).ids("a photo!")


@pytest.mark.makers
def test_ids_of_siglip_are_those_of_transformers(siglip):
    check_against_transformers(siglip)


@pytest.mark.makers
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"strip_sep_token": True}),
        ("bert", {"clean": "lower"}),
        ("t5", {"clean": "canonicalize"}),
        ("gemma", {"clean": "canonicalize"}),
        ("byte_level", {}),
        ("byte_level", {"clean": "whitespace"}),
    ],
)
def test_ids_are_those_of_open_clip(folders, kind, options):
    from open_clip.tokenizer import HFTokenizer

    theirs = HFTokenizer(str(folders[kind]), context_length=CONTEXT, **options)
    stated = {"hf_tokenizer_name": "somebody/something", "tokenizer_kwargs": options}
    ours = fitting(folders[kind], stated)

    @given(TEXTS)
    @example("a &amp; photo_of  'Cats'")
    def check(text):
        np.testing.assert_array_equal(ours([text], truncate=True), theirs([text]).numpy())

    check()


@pytest.mark.makers
def test_openai_s_ids_are_those_of_open_clip(openai_tokenizer):
    from open_clip.tokenizer import SimpleTokenizer

    theirs, ours = SimpleTokenizer(), Tokenizer(openai_tokenizer, None, {"context_length": 77})
    # Characters that a newer Unicode has assigned are letters to some libraries and none to others.
    assigned = TEXTS.filter(lambda text: all(unicodedata.category(c) != "Cn" for c in text))

    @given(assigned)
    def check(text):
        np.testing.assert_array_equal(ours([text], truncate=True), theirs([text]).numpy())

    check()


def test_special_tokens_of_other_kinds(folders):
    special = {}
    for kind, folder in folders.items():
        tokenizer = Tokenizer(folder)
        special[kind] = tokenizer.starts, tokenizer.end, tokenizer.pad
    assert special == {
        "bert": ((2,), 3, 0),
        "t5": ((), 1, 1),
        "gemma": ((), 1, 0),
        "siglip2": ((), 1, 0),
        "byte_level": ((0,), 2, 1),
    }


@given(st.sampled_from([*KINDS]), st.sampled_from(["cat", "hen-of-the-woods", "CD player", "Mr."]))
def test_a_name_has_its_tokens_behind_other_words(folders, kind, name):
    tokenizer = Tokenizer(folders[kind])
    before = " ".join([tokenizer.placeholder] * 4)
    whole = tokenizer.ids(f"{before} {name}.")
    assert len(tokenizer.ids(before)) == 4
    count = tokenizer.name_tokens(before, name, ".")
    assert count >= 1 and whole[:4] == tokenizer.ids(before)
    # What is left is the full stop or, where that is part of a token of the name, nothing.
    rest = whole[4 + count :]
    assert rest in ([], tokenizer.ids(f"{before} x.")[-1:])
    alone = tokenizer.ids(f"{before} {name}")
    assert tokenizer.name_tokens(before, name) == len(alone) - 4
    if rest:
        assert whole[4 : 4 + count] == alone[4:]


@pytest.mark.makers
def test_a_name_has_its_tokens_where_punctuation_has_none(siglip):
    tokenizer = Tokenizer(siglip)
    before = " ".join([tokenizer.placeholder] * 3)
    for name in ("cat", "hen-of-the-woods", "CD player", "Mr."):
        count = tokenizer.name_tokens(before, name, ".")
        assert tokenizer.ids(f"{before} {name}.")[3:] == tokenizer.ids(name)
        assert count == len(tokenizer.ids(name))


def test_a_name_of_a_clip_has_the_tokens_that_it_has_alone(tiny_tokenizer):
    for name in ("cat", "St.", "seven"):
        assert tiny_tokenizer.name_tokens("X X", name, ".") == len(tiny_tokenizer.ids(name))
    assert tiny_tokenizer.placeholder == "X"


def test_words_are_in_the_order_of_their_ids(folders):
    for folder in folders.values():
        tokenizer = Tokenizer(folder)
        words = tokenizer.words()
        assert len(words) == tokenizer.size
        assert sum(map(str.isalpha, words)) > 40
    bert = Tokenizer(folders["bert"])
    assert bert.words()[bert.ids("photo")[0]] == "photo"


def test_a_tokenizer_can_be_pickled(folders):
    for folder in folders.values():
        tokenizer = Tokenizer(folder)
        again = pickle.loads(pickle.dumps(tokenizer))
        np.testing.assert_array_equal(again(["a cat"]), tokenizer(["a cat"]))


def test_transformers_says_nothing(folders):
    code = f"from coop_jax.clip import Tokenizer; Tokenizer({str(folders['siglip2'])!r})"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert finished.stdout == finished.stderr == b""


def refusal(make, *arguments):
    with pytest.raises(InputError) as refused:
        make(*arguments)
    message = str(refused.value)
    assert "\n" not in message and "expected" in message and ";" in message
    return message


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"vocabulary_size": 900}, "of 900 tokens, which the CLIP has embeddings for"),
        ("bert", {"vocabulary_size": 100}, "of 100 tokens, which the CLIP has embeddings for"),
        ("bert", {"pooling": "end"}, "whose end token has the largest id, where the CLIP reads"),
        ("bert", {"pooling": "end", "end_token": 4}, "with end token 4, got one with 3"),
        ("tiny", {"vocabulary_size": 49408}, "of 49408 tokens, which the CLIP has"),
        ("tiny", {"vocabulary_size": 929, "pooling": "end", "end_token": 2}, "end token 2"),
    ],
)
def test_a_tokenizer_of_another_tower_is_refused(folders, kind, changes, message):
    folder = folders.get(kind, source.EMBEDDED_FOLDER)
    text = text_config(Tokenizer(folder).size, **changes)
    assert message in refusal(Tokenizer, folder, text)


def test_embeddings_may_be_more_than_tokens(folders):
    size = Tokenizer(folders["bert"]).size
    text = text_config(size + 10, pooling="end", end_token=3)
    assert Tokenizer(folders["bert"], text).end == 3
    clip_text = text_config(929 + 31, pooling="end", end_token=928)
    assert Tokenizer(source.EMBEDDED_FOLDER, clip_text).end == 928


@pytest.mark.parametrize(
    ("make", "config", "message"),
    [
        ("gemma", {"padding_side": "left"}, "padding_side: expected 'right', got 'left'"),
        ("bert", {"truncation_side": "left"}, "truncation_side: expected 'right', got 'left'"),
        ("byte_level", {"pad_token": None}, "pad_token: expected a token, got None"),
        ("bert", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}, "auto_map: expected no code"),
        ("bert", {"auto_map": "x"}, "auto_map: expected no code"),
        ("bert", {"tokenizer_class": "CLIPTokenizer"}, "a BPE with <|startoftext|> and"),
        ("bert", {"model_max_length": 8}, "of 16 positions, got one with model_max_length 8"),
    ],
)
def test_other_settings_of_tokenizers_are_refused(tmp_path, make, config, message):
    folder = KINDS[make](tmp_path, **config)
    text = text_config(len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]))
    assert message in refusal(Tokenizer, folder, text)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bos_token": "<s>"}, "bos_token: expected '<|startoftext|>', got '<s>'"),
        ({"eos_token": {"content": "</s>"}}, "eos_token: expected '<|endoftext|>', got '</s>'"),
        ({"add_bos_token": False}, "add_bos_token: expected True, got False"),
        ({"padding_side": "left"}, "padding_side: expected 'right', got 'left'"),
        ({"additional_special_tokens": ["<x>"]}, "additional_special_tokens: expected [], got"),
        ([], "expected a JSON object, got []"),
    ],
)
def test_other_settings_of_a_clip_s_tokenizer_are_refused(tmp_path, config, message):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert message in refusal(Tokenizer, folder)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"width": 512}, "the tokenizer of a CLIP, a BPE with <|startoftext|>"),
        ({"hf_tokenizer_name": 3}, "hf_tokenizer_name: expected a text, got 3"),
        ({"hf_tokenizer_name": "x", "tokenizer_mode": "clips"}, "tokenizer_mode: expected none"),
        ({"hf_tokenizer_name": "x", "tokenizer_kwargs": [1]}, "tokenizer_kwargs: expected an"),
        (
            {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": "upper"}},
            "tokenizer_kwargs.clean: expected 'lower' or 'whitespace' or 'canonicalize', got",
        ),
        (
            {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"use_fast": False}},
            "tokenizer_kwargs.use_fast: expected a key that is known, got False",
        ),
        ({"tokenizer_kwargs": {"clean": "whitespace"}}, "tokenizer_kwargs.clean: expected 'lower'"),
        ({"tokenizer_kwargs": {"reduction_mask": "simple"}}, "tokenizer_kwargs.reduction_mask"),
    ],
)
def test_other_settings_of_open_clip_are_refused(folders, stated, message):
    assert message in refusal(Tokenizer, folders["bert"], None, stated)


def test_damaged_files_are_refused(tmp_path, folders):
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    for damaged in ("{", '{"model": 3}', "[]", '{"version": "1.0", "model": {"type": "x"}}'):
        (folder / "tokenizer.json").write_text(damaged)
        refusal(Tokenizer, folder)
    (folder / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json: expected JSON" in refusal(Tokenizer, folder)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "spiece.model").write_bytes(b"nothing")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refusal(Tokenizer, tmp_path)
    assert "package sentencepiece" in message and "'coop_jax[siglip]'" in message


def test_a_token_without_an_embedding_is_refused(folders):
    tokenizer = Tokenizer(folders["t5"])
    largest = max(tokenizer.words(), key=lambda word: len(tokenizer.ids(word)))
    text = text_config(tokenizer.size)
    assert Tokenizer(folders["t5"], text).ids(largest)
    bert = shutil.copytree(folders["bert"], folders["bert"].parent / "more")
    file = bert / "tokenizer.json"
    content = json.loads(file.read_text())
    size = len(content["model"]["vocab"])
    content["added_tokens"].append({**content["added_tokens"][0], "id": size, "content": "<more>"})
    file.write_text(json.dumps(content))
    tokenizer = Tokenizer(bert, text_config(size))
    assert tokenizer.ids("a cat") == Tokenizer(folders["bert"]).ids("a cat")
    assert f"with token {size} of {size}" in refusal(tokenizer.ids, "a <more> cat")


def test_another_padding_than_beside_the_weights_is_refused(tmp_path, folders):
    other = shutil.copytree(folders["bert"], tmp_path / "bert")
    config = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "[MASK]"}))
    message = refusal(Tokenizer(other).check_same, Tokenizer(folders["bert"]))
    assert "('padding': 0), got one with others ('padding': 4)" in message


def another_vocabulary(tmp_path, change):
    """The embedded CLIP's tokenizer with changed ids."""
    folder = tmp_path / "other"
    folder.mkdir(parents=True)
    vocabulary = json.loads((source.EMBEDDED_FOLDER / "vocab.json").read_text())
    change(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(source.EMBEDDED_FOLDER / "merges.txt", folder)
    return folder


def swap(vocabulary):
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def test_a_clip_with_the_ids_of_another_is_refused(tmp_path, refused):
    same = another_vocabulary(tmp_path / "same", lambda vocabulary: None)
    assert clip.load(str(source.EMBEDDED_FOLDER), tokenizer=same)[1].ids("a") == [
        *clip.load("tiny")[1].ids("a")
    ]
    other = another_vocabulary(tmp_path, swap)
    message = refusal(lambda: clip.load("tiny", tokenizer=other))
    assert re.search(r"the one beside the weights \('a': \d+\), got one with others", message)
    words = ("fit", "digits", tmp_path / "out", "--method", "zero_shot")
    assert "with the ids of the one" in refused(*words, "--clip", "tiny", "--tokenizer", other)


def test_a_clip_with_another_vocabulary_is_refused(tmp_path, folders, refused):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip")
    for name in source.TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
    out = ("fit", "digits", tmp_path / "out", "--method", "zero_shot", "--clip", folder)
    line = refused(*out, "--tokenizer", folders["bert"])
    assert "of 929 tokens, which the CLIP has embeddings for, got one of" in line
    name = "text_model.embeddings.token_embedding.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.resize(tensors[name], (49408, 96))
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"vocab_size": 49408, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    line = refused(*out, "--tokenizer", source.EMBEDDED_FOLDER)
    assert "of 49408 tokens, which the CLIP has embeddings for, got one of 929" in line
