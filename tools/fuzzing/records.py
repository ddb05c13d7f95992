"""Readers of results, of what was learned, and of what is typed."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.clips import tensors_file
from fuzzing.inputs import Target, as_json, loaded


def results(folder: Path) -> Target:
    """Read lines of results, with their digest as it must be, and as it is."""
    from coop_jax import results as reader

    hashes = dict.fromkeys(("data", "split", "class_names", "transform", "weights", "config"), "ab")
    result = reader.Result(
        **dict.fromkeys(("protocol", "method", "dataset", "backbone", "trained_on"), "x"),
        split="test",
        shots=1,
        seed=1,
        settings={"n_ctx": 4},
        uses=["validation"],
        learned={"context": [4, 8]},
        kept={},
        epochs=5,
        accuracy=50.0,
        macro_f1=40.0,
        correct="oA==",
        n_classes=2,
        n_examples=4,
        seconds=1.5,
        commit=None,
        hashes=reader.Hashes(**hashes),
        versions={"jax": "0"},
        config={"method": {"name": "coop"}},
    )
    path = folder / reader.FILE_NAME
    reader.append(path, result)
    line = path.read_bytes()

    def run(content: bytes) -> None:
        record = loaded(content)
        if isinstance(record, dict) and record.pop(reader.DIGEST, None) is None:
            said = json.dumps(record, sort_keys=True, separators=(",", ":"))
            record[reader.DIGEST] = hashlib.sha256(said.encode()).hexdigest()
            content = as_json(record) + b"\n"
        path.write_bytes(content)
        reader.read(path)

    unsigned = {key: value for key, value in json.loads(line).items() if key != reader.DIGEST}
    return Target([line, as_json(unsigned)], run, is_json=True)


def saved(folder: Path) -> Target:
    """Read saved methods whose digests are right: records, and headers of tensors."""
    from coop_jax.saved import Saved, files

    record = {
        "method": "coop",
        "settings": {"n_ctx": 1, "context_init": "", "class_token_position": "end"},
        "per_class": [],
        "backbone": "tiny",
        "fingerprint": "ab",
        "class_names": ["cat", "dog"],
        "class_ids": ["", ""],
        "template": "a photo of a {}.",
        "code": "",
        "training": {"seed": 1},
    }
    headers: list[dict[str, Any]] = [
        {"context": {"dtype": "F32", "shape": [1, 16], "data_offsets": [0, 64]}},
        {
            "given/texts": {"dtype": "F32", "shape": [1, 2, 8], "data_offsets": [0, 64]},
            "given/logit_scale": {"dtype": "F32", "shape": [], "data_offsets": [64, 68]},
        },
    ]

    def run(content: bytes) -> None:
        value = loaded(content)
        if not isinstance(value, dict):
            (folder / files.RECORD).write_bytes(content)
        else:
            tensors = tensors_file(value.get("header"))
            (folder / files.TENSORS).write_bytes(tensors)
            stated = value.get("record")
            signed = files.signed(stated, tensors) if isinstance(stated, dict) else as_json(stated)
            (folder / files.RECORD).write_bytes(signed)
        Saved.load(folder)

    seeds = [as_json({"record": record, "header": header}) for header in headers]
    return Target(seeds, run, is_json=True)


def official(folder: Path) -> Target:
    """Read checkpoints of the official code: names, shapes and types of the tensors, as JSON."""
    import torch  # pyright: ignore[reportMissingImports]

    from coop_jax import clip
    from coop_jax.classes import Classes
    from coop_jax.saved import official as reader

    path, model = folder / "model.pth.tar-1", clip.load("tiny")[0]
    width = model.config.text.transformer.width
    embedding = model.config.embedding
    shapes = {
        "ctx": [4, width],
        "meta_net.linear1.weight": [2, embedding],
        "meta_net.linear1.bias": [2],
        "meta_net.linear2.weight": [width, 2],
        "meta_net.linear2.bias": [width],
    }

    def run(content: bytes) -> None:
        value = loaded(content)
        if not isinstance(value, dict):
            path.write_bytes(content)
        else:
            state = value.pop("state_dict", None)
            if isinstance(state, dict):
                state = {name: _tensor(torch, shape) for name, shape in state.items()}
            torch.save({**value, "state_dict": state}, path)
        reader.read(path, clip=model, backbone="tiny", classes=Classes(("cat", "dog")))

    seeds = [{"ctx": [4, width]}, {"ctx": [2, 4, width]}, shapes]
    records = [{"epoch": 50, "val_result": None, "state_dict": seed} for seed in seeds]
    return Target([as_json(record) for record in records], run, is_json=True)


def _tensor(torch: Any, shape: Any) -> Any:
    try:
        return torch.zeros(shape) if np.prod(shape) < 10**6 else shape
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return shape


def command(folder: Path) -> Target:
    """Read what is typed behind every command, a word a line; nothing is run."""
    import importlib

    from coop_jax import command_line
    from coop_jax.__main__ import answer
    from coop_jax.commands import COMMANDS

    parsers = {}
    for name, (module, _) in COMMANDS.items():
        parsers[name] = command_line.Parser(name, importlib.import_module(module))

    def run(content: bytes) -> None:
        words = [os.fsdecode(line) for line in content.split(b"\n")]
        if words[0] not in parsers:
            answer(words)
            return
        with contextlib.suppress(SystemExit):
            parsers[words[0]].read(words[1:])

    seeds = [
        "fit\nphotographs\nprompt\n--clip\ntiny\n--shots=4\n--set\nn_ctx=4",
        "predict\nprompt\ncat.jpg\n--json\n--top=3",
        "evaluate\nprompt\ndigits\n--classes\na,b",
        "run\n--config=quickstart\n--config.shots=(1,2)\n--workdir=w",
        "run\n--config\nquickstart\n--config.epochs\n3\n--workdir\nw\n--processes=2",
        "sweep\n--config=quickstart\n--workdir=w",
        "report\nw\n--traceback",
        "check\ndigits\n--quick",
        "prepare\ndigits\n--workers=3",
        "interpret\nprompt",
        "export\nprompt\nx.safetensors",
        "import\nmodel.pth.tar-50\nout",
        "--version",
        "predcit",
    ]
    return Target([seed.encode() for seed in seeds], run)


def setting(folder: Path) -> Target:
    """Read and check settings of configs, one KEY=VALUE a line."""
    from coop_jax import config, config_files

    def run(content: bytes) -> None:
        settings = content.decode(errors="replace").split("\n")
        if any(word.startswith(config_files.METHOD) and "." in word[12:] for word in settings):
            return  # a module of the user's own
        config.check(config_files.load("quickstart", settings))

    seeds = [
        "shots=(1,2)\nseeds=(1,)",
        "method.name=cocoop\nmethod.n_ctx=3",
        "optimizer.learning_rate=0.1",
        "templates=('a {}.',)",
        "augmentation.scale=(0.1,1)",
        "clip.name=tiny\nclip.heads=(1,2)",
        "feature_cache=x\nepochs=3\nruns_at_once=2",
        "loggers=('tensorboard',)",
    ]
    return Target([seed.encode() for seed in seeds], run)


def program(folder: Path) -> Target:
    """Read exported programs."""
    import jax
    import jax.export

    from coop_jax.saved import export

    path = folder / "program.stablehlo"
    made = jax.export.export(jax.jit(lambda x: x * 2 + 1))(np.zeros(3, np.float32))

    def run(content: bytes) -> None:
        path.write_bytes(content)
        export.load_program(path)

    return Target([bytes(made.serialize())], run)
