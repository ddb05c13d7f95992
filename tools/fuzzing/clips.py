"""Readers of CLIPs: weights, configs and tokenizers."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.clip.source import EMBEDDED_FOLDER
from fuzzing.inputs import Target, as_json, loaded


def _embedded(name: str) -> Any:
    return json.loads((EMBEDDED_FOLDER / name).read_text())


def tensors_file(header: Any) -> bytes:
    """Return a file of tensors with this header, and as many numbers as it needs if that is few."""
    said, size = json.dumps(header).encode(), 0
    if isinstance(header, dict):
        offsets = [
            tensor.get("data_offsets") for tensor in header.values() if isinstance(tensor, dict)
        ]
        ends = [pair[1] for pair in offsets if isinstance(pair, list) and len(pair) == 2]
        size = max((end for end in ends if isinstance(end, int) and 0 <= end < 10_000), default=0)
    return len(said).to_bytes(8, "little") + said + bytes(size)


def safetensors(folder: Path) -> Target:
    """Read the weights of CLIPs from safetensors files, by their headers."""
    from coop_jax.clip import tensors

    path = folder / "model.safetensors"
    header = {
        "token_embedding.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
        "logit_scale": {"dtype": "BF16", "shape": [1], "data_offsets": [32, 34]},
        "visual.proj": {"dtype": "F16", "shape": [1, 1], "data_offsets": [34, 36]},
        "__metadata__": {"format": "pt"},
    }
    wrapped = {f"model.{name}": entry for name, entry in header.items() if name != "__metadata__"}

    def run(content: bytes) -> None:
        value = loaded(content)
        path.write_bytes(content if value is None else tensors_file(value))
        _read_all(tensors.open_files([path]))

    return Target([as_json(header), as_json(wrapped)], run, is_json=True)


def _read_all(opened: Any) -> None:
    for name in opened.names():
        opened.shape(name)
        opened.read(name)


def torch_file(folder: Path) -> Target:
    """Read files of PyTorch, in both of its formats."""
    import torch  # pyright: ignore[reportMissingImports]

    from coop_jax.clip import tensors

    path, state = folder / "model.pt", {"logit_scale": torch.ones(()), "a": torch.zeros(2, 3)}
    seeds = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, file, **options)
        seeds.append(file.getvalue())

    def run(content: bytes) -> None:
        path.write_bytes(content)
        _read_all(tensors.open_files([path]))

    return Target(seeds, run)


def pickle(folder: Path) -> Target:
    """Read archives of PyTorch that are whole, with any pickle in them."""
    import torch  # pyright: ignore[reportMissingImports]

    from coop_jax.clip import tensors

    path, file = folder / "model.pt", io.BytesIO()
    state = {"a": torch.zeros(2, 3), "b": torch.ones(3, dtype=torch.bfloat16).t()}
    torch.save({"state_dict": state, "epoch": 3}, file)
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in entries if name.endswith("data.pkl"))

    def run(content: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, entry in entries.items():
                archive.writestr(name, content if name == pickled else entry)
        _read_all(tensors.open_files([path]))

    return Target([entries[pickled]], run)


def hugging_face_config(folder: Path) -> Target:
    """Read configs of transformers' CLIPs."""
    from coop_jax.clip import architecture, pixels

    seed = {name: _embedded(f"{name}.json") for name in ("config", "preprocessor_config")}

    def run(content: bytes) -> None:
        value = loaded(content)
        if isinstance(value, dict) and isinstance(value.get("config"), dict):
            said = pixels.image_processor({}, value.get("preprocessor_config"))
            architecture.from_hugging_face(value["config"], said, "config.json")

    return Target([as_json(seed)], run, is_json=True)


def open_clip_config(folder: Path) -> Target:
    """Read configs of open_clip's CLIPs."""
    from coop_jax.clip import architecture

    model = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 8,
            "layers": 1,
            "width": 64,
            "head_width": 64,
            "patch_size": 4,
        },
        "text_cfg": {"context_length": 9, "vocab_size": 929, "width": 64, "heads": 1, "layers": 2},
    }
    said = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
    shapes = _Shapes()

    def run(content: bytes) -> None:
        value = loaded(content)
        if isinstance(value, dict):
            architecture.from_open_clip(shapes, value, "open_clip_config.json")

    stated = {"model_cfg": model, "preprocess_cfg": said}
    quick = {"model_cfg": {**model, "quick_gelu": True}}
    return Target([as_json(stated), as_json(quick)], run, is_json=True)


class _Shapes:
    """The shapes of a small CLIP's tensors, under OpenAI's names."""

    def __init__(self):
        width = 64
        self._shapes = {
            "token_embedding.weight": (929, width),
            "positional_embedding": (9, width),
            "text_projection": (width, 16),
            "logit_scale": (),
            "visual.class_embedding": (width,),
            "visual.positional_embedding": (5, width),
            "visual.conv1.weight": (width, 3, 4, 4),
            "visual.proj": (width, 16),
        }
        for prefix in ("transformer.resblocks.0", "visual.transformer.resblocks.0"):
            self._shapes[f"{prefix}.attn.in_proj_weight"] = (3 * width, width)
            self._shapes[f"{prefix}.mlp.c_fc.weight"] = (4 * width, width)

    def names(self) -> set[str]:
        return set(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> np.ndarray:
        return np.zeros(self._shapes[name], np.float32)


def clip(folder: Path) -> Target:
    """Load CLIPs whose configs are damaged."""
    from coop_jax import clip as package

    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        os.symlink(EMBEDDED_FOLDER / name, folder / name)
    seed = {name: _embedded(f"{name}.json") for name in ("config", "preprocessor_config")}

    def run(content: bytes) -> None:
        value = loaded(content)
        if isinstance(value, dict):
            for name, stated in value.items():
                if name in seed:
                    (folder / f"{name}.json").write_bytes(as_json(stated))
            package.load(str(folder))

    return Target([as_json(seed)], run, is_json=True)


def tokenizer(folder: Path) -> Target:
    """Read tokenizers, and texts by them."""
    from coop_jax.clip import Tokenizer

    stated, config = _embedded("tokenizer.json"), _embedded("tokenizer_config.json")
    merges = stated["model"]["merges"][:20]
    parts = [
        part for merge in merges for part in (merge if isinstance(merge, list) else merge.split())
    ]
    letters = [word for word in stated["model"]["vocab"] if len(word.removesuffix("</w>")) == 1]
    kept = dict.fromkeys(
        [*letters, *parts, *("".join(m if isinstance(m, list) else m.split()) for m in merges)]
    )
    kept |= dict.fromkeys(token["content"] for token in stated["added_tokens"])
    vocabulary = {word: number for number, word in enumerate(kept)}
    for token in stated["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    stated["model"] |= {"vocab": vocabulary, "merges": merges}
    lines = "\n".join(
        ["#version: 0.2", *(" ".join(m) if isinstance(m, list) else m for m in merges)]
    )
    files = {"tokenizer.json": stated, "tokenizer_config.json": config}
    plain = {"vocab.json": vocabulary, "merges.txt": lines, "special_tokens_map.json": {}}

    def run(content: bytes) -> None:
        value = loaded(content)
        if not isinstance(value, dict):
            return
        for name in (*files, *plain):
            (folder / name).unlink(missing_ok=True)
            if name in value:
                said = value[name]
                is_text = name.endswith(".txt") and isinstance(said, str)
                (folder / name).write_bytes(
                    said.encode(errors="replace") if is_text else as_json(said)
                )
        made = Tokenizer(folder)
        made(["a photo of a cat.", "", "x" * 200])

    return Target([as_json(files), as_json(plain)], run, is_json=True)
