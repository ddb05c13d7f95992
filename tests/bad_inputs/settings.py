"""Values of settings, as they are typed and as a config file has them."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bad_inputs import Case
from bad_inputs.valid import FIT, RUN, images
from coop_jax import config

FLAT = config.flat(config.default())

TYPED = [
    *[
        (key, value)
        for key, default in FLAT.items()
        if isinstance(default, int | float) and not isinstance(default, bool)
        for value in ("inf", "nan", "-1", "1" + "0" * 11, str(2**65), "many", "")
        if (key, value) not in {("method.n_ctx", str(10**11))}
    ],
    ("shots", "(1,1)"),
    ("shots", "()"),
    ("shots", "(0,)"),
    ("shots", "(36893488147419103232,)"),
    ("seeds", "(36893488147419103232,)"),
    ("seeds", "(4294967296,)"),
    ("seeds", "(1.5,)"),
    ("seeds", "((1,),)"),
    ("templates", "(1,)"),
    ("templates", "('no place',)"),
    ("templates", "('{} {}',)"),
    ("templates", "('{0}',)"),
    ("parts", "('old',)"),
    ("loggers", "('mlflow',)"),
    ("optimizer.betas", "(0.9,)"),
    ("optimizer.betas", "(0.9,1.0)"),
    ("augmentation.scale", "(1.0,0.5)"),
    ("augmentation.ratio", "(0.0,1.0)"),
    ("clip.heads", "(0,0)"),
    ("clip.heads", "(2,)"),
    ("clip.dtype", "float64"),
    ("clip.activation", "relu"),
    ("clip.name", "nowhere/at/all"),
    ("clip.name", "no_such_clip.safetensors"),
    ("clip.tokenizer", "no_such_folder"),
    ("clip.name", "\udcff"),
    ("clip.name", "x" * 100_000),
    ("dataset", "no_such_dataset"),
    ("dataset", "x" * 100_000),
    ("dataset", "Ünïcödé \N{PILE OF POO}"),
    ("data_dir", "http://example.com/data"),
    ("feature_cache", "s3://bucket/cache"),
    ("class_names", "no_such_file.txt"),
    ("sampling", "all"),
    ("protocol", "many_shot"),
    ("method.name", "no_such_method"),
    ("method.name", "no_such_file.py"),
    ("method.context_init", "a " * 100),
    ("method.n_ctx", "100000"),
    ("method.class_specific", "perhaps"),
    ("method.class_token_position", "left"),
]
"""Settings with a value each, as they are typed."""

WRITTEN: list[tuple[str, Any]] = [
    ("shots", [[1]]),
    ("shots", {1: 2}),
    ("shots", 10**400),
    ("seeds", (2**65,)),
    ("seeds", float("nan")),
    ("epochs", 1e11),
    ("epochs", True),
    ("epochs", None),
    ("epochs", "3"),
    ("encode_batch_size", 10**11),
    ("templates", [[["{}"]]]),
    ("templates", "a photo of a {}."),
    ("dataset", ["digits"]),
    ("dataset", "digits\0"),
    ("data_dir", 3),
    ("clip", "tiny"),
    ("clip", None),
    ("clip", []),
    ("clip", {"name": "tiny", "weights": "all"}),
    ("clip", {}),
    ("method", {"name": "coop"}),
    ("method", {"name": ["coop"]}),
    ("method", {}),
    ("method", "coop"),
    ("optimizer", {"learning_rate": 0.1}),
    ("optimizer", [0.1]),
    ("optimizer.learning_rate", float("inf")),
    ("optimizer.learning_rate", 10**400),
    ("optimizer.learning_rate", 1j),
    ("optimizer.betas", ((0.9,), 0.99)),
    ("augmentation", 0.5),
    ("augmentation.scale", ("a", "b")),
    ("loggers", {"wandb"}),
    ("targets", "digits"),
    ("learning_rate", 0.1),
    ("\N{PILE OF POO}", 1),
    (3, 4),
]
"""Settings with a value each, as a config file has them."""


def cases() -> Iterator[Case]:
    """Yield them."""
    for key, value in TYPED:
        command = functools.partial(_typed, key, value)
        yield Case("settings", f"--config.{key}={value:.20}", command, rf"{key}|{_other(key)}")
    for key, value in WRITTEN:
        command = functools.partial(_written, key, value)
        yield Case("settings", f"{key} = {value!r:.40} in a file", command, "config|method")
    for setting in (
        "n_ctx=0",
        "n_ctx=x",
        "n_ctx",
        "other=3",
        "n_ctx=" + "[" * 5000,
        "=3",
        "n_ctx=1e9",
    ):
        yield Case(
            "settings", f"--set {setting:.20}", functools.partial(_set, setting), "n_ctx|set"
        )


def _other(key: str) -> str:
    """What a line says of a setting that is looked up when it is used."""
    return {
        "clip.name": "CLIP",
        "clip.tokenizer": "tokenizer",
        "dataset": "dataset|name of a file",
        "class_names": "no_such_file",
        "method.name": "method",
        "templates": "template",
        "method.n_ctx": "n_ctx|context",
        "method.context_init": "context_init|tokens",
        "method.class_token_position": "class_token_position",
    }.get(key, key)


def _typed(key: str, value: str, _: Path) -> list[str]:
    return [*RUN, f"--config.{key}={value}"]


def _written(key: Any, value: Any, folder: Path) -> list[str]:
    group, _, name = str(key).rpartition(".")
    text = f"""import coop_jax.config
inf, nan = float("inf"), float("nan")
def get_config():
    config = coop_jax.config.default()
    config{f"[{group!r}]" * bool(group)}[{(name if group else key)!r}] = {value!r}
    return config
"""
    (folder / "mine.py").write_text(text)
    return ["run", "--workdir=new", "--config=mine.py"]


def _set(setting: str, folder: Path) -> list[str]:
    images(folder)
    return [*FIT, f"--set={setting}"]
