"""Files that tests make: image folders, small checkpoints, a hub cache."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from coop_jax.clip import source


def image_folder(root, classes, count):
    """A folder of small random JPEG files."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    return root


def openai_tensors() -> dict[str, np.ndarray]:
    """A small ViT under OpenAI's names, of OpenAI's proportions (heads of width 64)."""
    rng = np.random.default_rng(0)
    width, tensors = 64, {}

    def add(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    for prefix, layers in (("transformer", 2), ("visual.transformer", 1)):
        for layer in range(layers):
            block = f"{prefix}.resblocks.{layer}"
            add(f"{block}.attn.in_proj_weight", 3 * width, width)
            add(f"{block}.attn.in_proj_bias", 3 * width)
            add(f"{block}.attn.out_proj.weight", width, width)
            add(f"{block}.attn.out_proj.bias", width)
            add(f"{block}.mlp.c_fc.weight", 4 * width, width)
            add(f"{block}.mlp.c_fc.bias", 4 * width)
            add(f"{block}.mlp.c_proj.weight", width, 4 * width)
            add(f"{block}.mlp.c_proj.bias", width)
            for norm in ("ln_1", "ln_2"):
                add(f"{block}.{norm}.weight", width)
                add(f"{block}.{norm}.bias", width)
    for norm in ("ln_final", "visual.ln_pre", "visual.ln_post"):
        add(f"{norm}.weight", width)
        add(f"{norm}.bias", width)
    add("token_embedding.weight", 50, width)
    add("positional_embedding", 9, width)
    add("text_projection", width, 16)
    add("visual.class_embedding", width)
    add("visual.positional_embedding", 5, width)
    add("visual.conv1.weight", width, 3, 4, 4)
    add("visual.proj", width, 16)
    tensors["logit_scale"] = np.asarray(4.6, np.float32)
    return tensors


def make_snapshot(cache: Path, repository: str) -> Path:
    """The folder that huggingface_hub has for what it fetched of a repository's main branch."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def write_hub_cache(cache: Path, backbone: str) -> dict[str, np.ndarray]:
    """Lay small weights out as huggingface_hub caches a backbone's repository; the tensors."""
    snapshot = make_snapshot(cache, source.BACKBONES[backbone])
    for file in source.TOKENIZER_FILES:
        shutil.copy(source.EMBEDDED_FOLDER / file, snapshot)
    tensors = openai_tensors()
    save_file(tensors, snapshot / "open_clip_model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"architecture": "timm's, not CLIP's"}))
    return tensors
