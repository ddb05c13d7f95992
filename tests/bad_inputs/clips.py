"""CLIPs whose configs say what cannot be."""

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lone import OPEN_CLIP
from makers import openai_tensors

from bad_inputs import Case
from bad_inputs.valid import FIT, change_json, clip, images
from coop_jax.clip import source

NO_OBJECTS = ("[]", "3", '"clip"', "null", "", "{", "[" * 100_000, '{"a":' * 100_000, "NaN", "\0")
CONFIGS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
TOWER: dict[str, tuple[Any, ...]] = {
    "num_attention_heads": (0, -1, 5, 10**9, "2", None, 1.5, [2]),
    "num_hidden_layers": (-1, 0, 10**9, 2**65, "x", [1]),
    "hidden_size": (0, -64, 10**12, "x", None),
    "intermediate_size": (0, 10**12, "x"),
    "layer_norm_eps": ("x", -1, None, 1e400, [1e-5]),
    "hidden_act": ("relu", "", 3, None),
}
VISION = {
    "patch_size": (0, -8, 7, 10**6, "8", None),
    "image_size": (0, 10**6, 1e6, -32, "32", [32, 64], 10**400),
    "num_channels": (1, 4, "3"),
}
TEXT = {
    "vocab_size": (0, -1, 10**12, "x", 3),
    "max_position_embeddings": (0, 1, 10**9, "77"),
    "eos_token_id": (-1, 10**9, "x"),
}
MODEL = {
    "model_type": ("bert", 3, None, [], "siglip2"),
    "projection_dim": (0, -1, 10**12, "x"),
    "vision_config": ([], "x", 3),
    "text_config": ([1], "x", 3),
    "an_unknown_key": (1,),
    "quantization_config": ({"bits": 4},),
    "auto_map": ({"AutoModel": "evil.Model"},),
}
PIXELS: dict[str, tuple[Any, ...]] = {
    "image_mean": ([0.5], "x", [1e400] * 3, ["a"] * 3),
    "image_std": ([0, 0, 0], [-1, 1, 1], "x"),
    "size": (0, {"shortest_edge": -1}, {"width": 3}, "x", 10**9),
    "crop_size": (10**9, "x", {"height": 1}),
    "resample": (99, "x", -1),
    "rescale_factor": (0, "x", -1),
}
OPEN_CLIPS: list[dict[str, Any]] = [
    {"model_cfg": []},
    {"model_cfg": {"vision_cfg": "ViT", "embed_dim": 16, "text_cfg": {}}},
    {"model_cfg": {**OPEN_CLIP["model_cfg"], "embed_dim": 0}},
    {"model_cfg": {**OPEN_CLIP["model_cfg"], "embed_dim": 10**12}},
    {"model_cfg": {**OPEN_CLIP["model_cfg"], "unknown": 1}},
    {"model_cfg": {**OPEN_CLIP["model_cfg"], "custom_text": {"a": 1}}},
    {**OPEN_CLIP, "preprocess_cfg": {"mean": ["x"] * 3}},
    {**OPEN_CLIP, "preprocess_cfg": {"fill_color": 10**9}},
    {**OPEN_CLIP, "preprocess_cfg": []},
]
OPEN_CLIP_TOWERS: dict[str, dict[str, tuple[Any, ...]]] = {
    "vision_cfg": {
        "layers": (-1, 10**9, "x", [1, 2], [0] * 4),
        "patch_size": (0, 7, None),
        "image_size": (0, 10**6, [8]),
        "head_width": (0, 10**9, 7),
        "timm_model_name": ("resnet50", "../x", 3),
    },
    "text_cfg": {
        "heads": (0, 7, "x"),
        "layers": (10**9, -1),
        "context_length": (0, 10**9, "x"),
        "vocab_size": (0, 10**12),
        "hf_model_name": ("roberta-base", 3),
        "hf_tokenizer_name": ([],),
        "tokenizer_kwargs": ("x", {"clean": "other"}),
    },
}


def cases() -> Iterator[Case]:
    """Yield them."""
    for file in CONFIGS:
        for text in NO_OBJECTS:
            write = functools.partial(_write_text, file, text)
            yield Case("clips", f"{file} is {text:.10}", write, file)
        for name, make in (("a fifo", os.mkfifo), ("a link to /dev/zero", _link_to_zeros)):
            yield Case("clips", f"{file} is {name}", functools.partial(_replace, file, make), file)
    tables = {"vision_config": TOWER | VISION, "text_config": TOWER | TEXT}
    for tower, values in tables.items():
        for key, value in _pairs(values):
            change = functools.partial(_change, "config.json", {tower: {key: value}})
            yield Case(
                "clips", f"{tower}.{key} is {value!r:.20}", change, f"{key}|tensors of a CLIP"
            )
    for file, values in (("config.json", MODEL), ("preprocessor_config.json", PIXELS)):
        for key, value in _pairs(values):
            change = functools.partial(_change, file, {key: value})
            says = f"{key}|tensors of a CLIP|{file}"
            yield Case("clips", f"{key} of {file} is {value!r:.20}", change, says)
    for config in OPEN_CLIPS:
        yield _open_clip(f"open_clip says {json.dumps(config):.30}...{_digest(config)}", config)
    for tower, values in OPEN_CLIP_TOWERS.items():
        for key, value in _pairs(values):
            config = json.loads(json.dumps(OPEN_CLIP))
            config["model_cfg"][tower][key] = value
            yield _open_clip(f"open_clip's {tower}.{key} is {value!r:.20}", config)


def _digest(config: Any) -> int:
    return OPEN_CLIPS.index(config)


def _pairs(values: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, several in values.items() for value in several)


def _words(folder: Path) -> list[str]:
    images(folder)
    return [*FIT, "--clip=clip", f"--tokenizer={source.EMBEDDED_FOLDER}"]


def _write_text(file: str, text: str, folder: Path) -> list[str]:
    (clip(folder) / file).write_text(text)
    return [*_words(folder)[:-1], "--tokenizer=clip"]


def _link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _replace(file: str, make: Any, folder: Path) -> list[str]:
    path = clip(folder) / file
    path.unlink()
    make(path)
    return [*_words(folder)[:-1], "--tokenizer=clip"]


def _change(file: str, changes: dict[str, Any], folder: Path) -> list[str]:
    change_json(clip(folder) / file, **changes)
    return _words(folder)


def _open_clip(name: str, config: dict[str, Any]) -> Case:
    def make(folder: Path) -> list[str]:
        from safetensors.numpy import save_file

        (folder / "clip").mkdir()
        save_file(openai_tensors(), folder / "clip" / "open_clip_model.safetensors")
        (folder / "clip" / "open_clip_config.json").write_text(json.dumps(config))
        return _words(folder)

    return Case("clips", name, make, r"open_clip_config\.json|tensors of a CLIP|tokenizer")
