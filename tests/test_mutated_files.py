"""Random and mutated inputs of every reader: a value or an InputError, in bounded memory."""

import json
import shutil

import bad_inputs
import pytest
from bad_inputs import valid
from bad_inputs.archives import PROMPTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lone import OPEN_CLIP, TRANSFORMERS
from makers import openai_tensors

from coop_jax import config, config_files, methods
from coop_jax.clip import Tokenizer, architecture, source
from coop_jax.clip.torch_archive import TorchArchive
from coop_jax.errors import InputError
from coop_jax.saved import Saved, files

NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 2**31, 2**63, 2**65, 10**11, 10**400, 1e308, 5e-324]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
JSON = VALUES.map(lambda value: json.loads(json.dumps(value)))
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "cut", "insert", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def _bounded_memory():
    with bad_inputs.grown() as memory:
        yield
    assert memory() < bad_inputs.MEMORY


def mutated(content, mutations):
    """The bytes, with some of them changed, cut off, put in between, or there twice."""
    for kind, share, new in mutations:
        at = int(share * len(content))
        if kind == "put":
            content = content[:at] + new + content[at + len(new) :]
        elif kind == "cut":
            content = content[:at] + content[at + new[0] :] if new[0] % 2 else content[:at]
        elif kind == "insert":
            content = content[:at] + new + content[at:]
        else:
            content = content[: at + new[0]] + content[at:]
    return content


def reads(reader, *arguments):
    """What a reader returns; None where it refuses in one line."""
    try:
        return reader(*arguments)
    except InputError as error:
        assert "expected" in str(error) and len(str(error)) < 10_000
        return None


def paths_of(values, *above):
    """The names that lead to every value of a nested mapping."""
    for key, value in values.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths_of(value, *above, key)


def changed(values, path, value):
    """A nested mapping with another value at a place."""
    first, *rest = path
    return {**values, first: changed(values[first], rest, value) if rest else value}


HUGGING_FACE = json.loads((TRANSFORMERS / "config.json").read_text())
PREPROCESSOR = json.loads((source.EMBEDDED_FOLDER / "preprocessor_config.json").read_text())
OPEN_CLIP_CONFIG = json.loads(json.dumps({**OPEN_CLIP, "preprocess_cfg": {"mean": [0.5] * 3}}))


@given(st.sampled_from([*paths_of(HUGGING_FACE)]), JSON)
def test_configs_of_transformers(path, value):
    stated = changed(HUGGING_FACE, path, value)
    reads(architecture.from_hugging_face, stated, PREPROCESSOR, "config.json")


@given(st.sampled_from([*paths_of(PREPROCESSOR)]), JSON)
def test_pixels_of_transformers(path, value):
    stated = changed(PREPROCESSOR, path, value)
    reads(architecture.from_hugging_face, HUGGING_FACE, stated, "config.json")


class Tensors:
    """Tensors that are there already."""

    def __init__(self, tensors):
        self._tensors = tensors

    def names(self):
        return set(self._tensors)

    def shape(self, name):
        return self._tensors[name].shape


@given(st.sampled_from([*paths_of(OPEN_CLIP_CONFIG)]), JSON)
def test_configs_of_open_clip(path, value):
    stated = changed(OPEN_CLIP_CONFIG, path, value)
    reads(architecture.from_open_clip, Tensors(openai_tensors()), stated, "open_clip_config.json")


@one_folder
@given(st.sampled_from(["tokenizer.json", "vocab.json", "merges.txt"]), MUTATIONS)
def test_tokenizer_files(tmp_path, name, mutations):
    folder = shutil.copytree(source.EMBEDDED_FOLDER, tmp_path / "clip", dirs_exist_ok=True)
    (folder / "tokenizer.json").unlink()
    if name == "tokenizer.json":
        shutil.copy(source.EMBEDDED_FOLDER / name, folder)
    (folder / name).write_bytes(mutated((folder / name).read_bytes(), mutations))
    tokenizer = reads(Tokenizer, folder)
    if tokenizer is not None:
        reads(tokenizer, ["a photo of a cat."])


@one_folder
@given(MUTATIONS | st.binary(max_size=200))
def test_safetensors(tmp_path, mutations):
    path = tmp_path / "model.safetensors"
    content = (TRANSFORMERS / path.name).read_bytes()
    start = int.from_bytes(content[:8], "little") + 8
    if isinstance(mutations, bytes):
        path.write_bytes(mutations)
    else:
        path.write_bytes(mutated(content[:start], mutations) + content[start:])
    tensors = reads(source.SafetensorsFiles, (path,))
    for name in sorted(tensors.names() if tensors else ())[:3]:
        array = reads(tensors.read, name)
        assert array is None or array.shape == tensors.shape(name)


@pytest.mark.torch
@one_folder
@given(st.sampled_from(sorted(PROMPTS.iterdir())), MUTATIONS)
def test_files_of_pytorch(tmp_path, prompt, mutations):
    path = tmp_path / "model.pth.tar-1"
    path.write_bytes(mutated(prompt.read_bytes(), mutations))
    archive = reads(TorchArchive, path)
    for name in archive.names() if archive else ():
        reads(archive.read, name)


@one_folder
@given(st.sampled_from([files.RECORD, files.TENSORS]), MUTATIONS)
def test_saved_methods_of_other_bytes(tmp_path, name, mutations):
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
    path = valid.saved(tmp_path) / name
    content = mutated(path.read_bytes(), mutations)
    is_same = content == path.read_bytes()
    path.write_bytes(content)
    assert (reads(Saved.load, path.parent) is not None) == is_same


@one_folder
@given(name=st.sampled_from([*files.FIELDS]), value=JSON)
def test_saved_methods_of_other_records(tmp_path, name, value):
    shutil.rmtree(tmp_path / "saved", ignore_errors=True)
    try:
        place = valid.saved(tmp_path, record={name: value})
    except InputError:  # no JSON
        return
    if learned := reads(Saved.load, place):
        reads(learned.for_classes, *valid.tiny())


@given(st.sampled_from(methods.available()), st.data())
def test_settings_of_methods(name, data):
    known = methods.default_config(name)
    chosen = data.draw(st.dictionaries(st.sampled_from([*known, "other"]), VALUES, max_size=3))
    reads(methods.check_settings, name, chosen)


FLAT = config.flat(config.default())


@given(st.sampled_from([*paths_of(config.default())]), VALUES)
def test_values_of_configs(path, value):
    reads(config.check, changed(config.default(), path, value))


@given(st.sampled_from([*FLAT]), st.text(max_size=30) | VALUES.map(repr))
def test_typed_settings(key, text):
    if chosen := reads(config_files.load, "quickstart", [f"{key}={text}"]):
        reads(config.check, chosen)


@one_folder
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="ignore")))
def test_config_files(tmp_path, content):
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    assert reads(config_files.load, str(path)) is None
