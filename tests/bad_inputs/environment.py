"""Surroundings in which a command cannot work: variables, folders and streams."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bad_inputs import Case
from bad_inputs.valid import images, saved

RUN = ("run", "--config=quickstart", "--workdir=new")
PREDICT = ("predict", "saved", "images", "--csv=gone/new.csv")
BAD: dict[str, tuple[Mapping[str, str], Sequence[str], str]] = {
    "JAX_PLATFORMS is nonsense": ({"JAX_PLATFORMS": "nonsense"}, RUN, "JAX_PLATFORMS"),
    "JAX_PLATFORMS is a GPU that is not there": ({"JAX_PLATFORMS": "rocm"}, RUN, "JAX_PLATFORMS"),
    "JAX_PLATFORMS for predict": ({"JAX_PLATFORMS": "x,y"}, PREDICT[:3], "JAX_PLATFORMS"),
    "JAX_ENABLE_X64 is nonsense": ({"JAX_ENABLE_X64": "perhaps"}, RUN, "JAX_ENABLE_X64"),
    "TFDS_DATA_DIR is a file": (
        {"TFDS_DATA_DIR": "/dev/null"},
        ("fit", "dtd", "new", "--clip=tiny"),
        "/dev/null",
    ),
    "HF_HOME is a file and a CLIP is to be fetched": (
        {"HF_HOME": "/dev/null", "HF_HUB_OFFLINE": "1"},
        ("interpret", "saved", "--clip=ViT-B/16"),
        "hub",
    ),
    "the hub is nowhere": (
        {"HF_HUB_OFFLINE": "1", "HF_HOME": "hub"},
        ("pull", "user/name", "new"),
        "user/name",
    ),
}
HARMLESS: dict[str, Mapping[str, str]] = {
    "COLUMNS is 0": {"COLUMNS": "0"},
    "COLUMNS is nonsense": {"COLUMNS": "wide"},
    "LANG is C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "LANG is nonsense": {"LANG": "xx_XX.nonsense", "LC_ALL": "xx_XX.nonsense"},
    "PYTHONIOENCODING is ASCII": {"PYTHONIOENCODING": "ascii"},
    "TERM is nonsense": {"TERM": "nonsense", "FORCE_COLOR": "1"},
    "HOME is not there": {"HOME": "/dev/null/gone", "XDG_CACHE_HOME": ""},
    "XDG_CACHE_HOME is a file": {"XDG_CACHE_HOME": "/dev/null"},
    "JAX_COMPILATION_CACHE_DIR is a file": {"JAX_COMPILATION_CACHE_DIR": "/dev/null"},
    "JAX_COMPILATION_CACHE_DIR is not there": {"JAX_COMPILATION_CACHE_DIR": "/proc/gone"},
    "TMPDIR is not there": {"TMPDIR": "/dev/null/gone"},
}
"""Variables that change nothing: the line of another bad input is all that is said."""


def cases() -> Iterator[Case]:
    """Yield them."""
    for name, (variables, words, says) in BAD.items():
        make = functools.partial(_make, words)
        yield Case("environment", name, make, says, environment=variables)
    for name, variables in HARMLESS.items():
        make = functools.partial(_make, PREDICT)
        yield Case("environment", name, make, "gone/new.csv", environment=variables)


def _make(words: Sequence[str], folder: Path) -> Sequence[str]:
    saved(folder)
    images(folder)
    return words
