import gc
import gzip
import json
import os
import resource
import signal
import tempfile
from pathlib import Path

import hub_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from hypothesis import settings
from makers import openai_tensors
from safetensors.numpy import save_file

from coop_jax import clip as clip_package
from coop_jax import parallel
from coop_jax.__main__ import main
from coop_jax.classes import Classes
from coop_jax.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.saved import use

jax.config.update("jax_num_cpu_devices", 8)

# Most of a test's time is compilation: of programs that run once, optimizing takes longer than it
# saves. CI compares with the recorded numbers on optimized programs as well.
PLAIN = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
jax.config.update("jax_disable_most_optimizations", PLAIN != "false")

# Many tests compile the same programs, some in processes of their own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="coop_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_runtest_setup(item):
    """Skip what needs the extras `torch` or `makers` where they are absent; CI has a stage each."""
    for extra, module in (("torch", "torch"), ("makers", "open_clip")):
        if item.get_closest_marker(extra):
            pytest.importorskip(module, reason=f"needs the extra {extra!r}")


CLASS_NAMES = ("tench", "hen-of-the-woods", "black and gold garden spider", "CD player", "anemone")


def moved(names):
    """Classes that say which are among `CLASS_NAMES`."""
    return Classes(tuple(names)).moved_from(Classes(CLASS_NAMES))


@pytest.fixture
def lone(tmp_path):
    """A file of weights with OpenAI's names that nothing lies beside."""
    save_file(openai_tensors(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A running hub, and huggingface_hub that knows no other."""
    with hub_server.running() as running:
        addresses = f"{running.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", addresses)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        yield running


@pytest.fixture(scope="session")
def openai_tokenizer(tmp_path_factory) -> Path:
    """A folder with OpenAI's vocabulary in the files that its models' repositories have."""
    with gzip.open(reference.path("golden/bpe_simple_vocab_16e6.txt.gz"), "rt") as file:
        merges = [line.split() for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["".join(merge) for merge in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("openai_tokenizer")
    vocabulary = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> clip_package.Tokenizer:
    """The embedded CLIP's tokenizer."""
    return clip_package.Tokenizer(clip_package.source.EMBEDDED_FOLDER)


def make_clip(
    tokenizer: clip_package.Tokenizer, vision: str, dtype=np.float32
) -> clip_package.CLIP:
    """A tiny random CLIP on 32 or 64 pixels that knows the embedded tokenizer's words."""
    towers = {
        "vit": ViTConfig(32, 8, TransformerConfig(32, 2, 2, 64)),
        "resnet": ResNetConfig(64, 8, (1, 2, 1, 1), 4),
    }
    text = TextConfig(len(tokenizer.words()), 77, TransformerConfig(32, 3, 2, 64))
    return random_clip(CLIPConfig(24, towers[vision], text), dtype)


def random_clip(config: CLIPConfig, dtype=np.float32) -> clip_package.CLIP:
    """A CLIP with random weights."""
    graph, state = nnx.split(
        nnx.eval_shape(lambda: clip_package.CLIP(config, dtype, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = 0.2 * rng.normal(size=leaf.shape)
        values = 1 + np.abs(values) if path[-1].key in ("scale", "var", "logit_scale") else values
        return jnp.asarray(values, leaf.dtype)

    pure = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state)


@pytest.fixture(scope="session")
def tiny_clip(tiny_tokenizer) -> clip_package.CLIP:
    """A tiny random CLIP with a ViT."""
    return make_clip(tiny_tokenizer, "vit")


@pytest.fixture
def run(capsys):
    """Run a command; its exit code, the lines on standard output and those on standard error."""

    def run_command(*words):
        capsys.readouterr()
        code = main(list(map(str, words)))
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run_command


@pytest.fixture
def refused(run):
    """Run a command that must end with one line and exit code 2; that line."""

    def run_refused(*words):
        code, out, err = run(*words)
        assert (code, out) == (2, []), err
        (line,) = err
        assert line.startswith("error: ") and "expected" in line, line
        return line

    return run_refused


@pytest.fixture
def write_features(tmp_path):
    """A function that writes arrays of features as a file and gives its path."""

    def write_file(arrays, name="textures.npz"):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write_file


@pytest.fixture
def no_room():
    """Let no file of this process have more than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device."""
    return parallel.create_mesh(jax.devices()[:1])


def make_room():
    """Forget compiled programs where they are many: a process may map so many pieces of memory."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:  # of 65,530 on Linux
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def _room():
    """Each module of tests leaves room for the next."""
    yield
    make_room()


@pytest.fixture(scope="session", autouse=True)
def _said_once():
    """What is said once in a process has been said, so that tests see their own messages alone."""
    use._warn_of_embedded_clip()


settings.register_profile("coop_jax", deadline=None, max_examples=30)
settings.load_profile("coop_jax")
