"""The frozen CLIP: towers, weights, tokenizer and pixels, usable without the rest of coop_jax."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from coop_jax.clip import architecture, naming, openai, pixels, preprocess, source, tensors, weights
from coop_jax.clip.config import CLIPConfig
from coop_jax.clip.features import FeatureSpace
from coop_jax.clip.fingerprint import fingerprint
from coop_jax.clip.model import CLIP, unit
from coop_jax.clip.tokenizer import Tokenizer
from coop_jax.clip.tokenizer import read as read_tokenizer
from coop_jax.errors import InputError

logger = logging.getLogger(__name__)

__all__ = [
    "CLIP",
    "CLIPConfig",
    "FeatureSpace",
    "Tokenizer",
    "fingerprint",
    "load",
    "preprocess",
    "unit",
]


def load(
    name: str,
    *,
    dtype: DTypeLike = jnp.float32,
    tokenizer: str | Path | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> tuple[CLIP, Tokenizer]:
    """A pre-trained CLIP and its tokenizer.

    Args:
        name: "tiny" (the embedded one); RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32,
            ViT-B/16, ViT-L/14 or `ViT-L/14@336px`; a folder or a hub id, with transformers' config
            or open_clip's; "hf-hub:" and a hub id, with open_clip's; MODEL/TAG, as open_clip
            calls what it has pretrained, e.g. ViT-B-16/laion2b_s34b_b88k; or a file of weights,
            as safetensors or as PyTorch saves them, with the config beside it if there is one.
        dtype: of the matrices and the arithmetic: float32, bfloat16 or float16.
        tokenizer: folder of the tokenizer files, where they do not lie beside the weights.
        activation: "quick_gelu", "gelu" or "gelu_tanh", of a file of weights that no config lies
            beside, unless it is OpenAI's own; of another CLIP it must be its config's.
        heads: the numbers of heads of the image tower and of the text tower, of such a file.

    Raises:
        InputError: an unknown name, missing files, weights that do not fit, or an activation or
            heads that are not said or not its own.
    """
    files = source.resolve(name, tokenizer)
    read, where = tensors.open_files(files.weights), str(files.weights[0])
    config, text_config = _config_of(files, read, activation, heads, where)
    openai.compare_words(config, activation or "", heads, where)
    clip = weights.build(read, config, dtype, where)
    return clip, read_tokenizer(files.tokenizer, files.folder, config.text, text_config)


def _config_of(
    files: source.Source,
    read: weights.Tensors,
    activation: str | None,
    heads: tuple[int, int] | None,
    where: str,
) -> tuple[CLIPConfig, Mapping[str, Any]]:
    """Return what a CLIP's config says of it or, where it has none, OpenAI's code or the user.

    Besides what open_clip says of the text tower, the tokenizer included; {} of other CLIPs.
    """
    preprocessor = pixels.image_processor(
        files.config("processor_config.json"), files.config("preprocessor_config.json")
    )
    of_transformers = files.layout == "transformers"
    if of_transformers or (not files.layout and naming.is_of_transformers(read.names())):
        path = str(files.folder / "config.json")
        if not (stated := files.config("config.json")):
            raise InputError(
                f"{where}: expected config.json beside it, as its tensors have transformers' names,"
                " got none; copy it there from the model's repository"
            )
        if not preprocessor:
            logger.warning(
                "%s: no preprocessor_config.json beside it: pixels are made as transformers makes"
                " them for such a model where nothing is said; copy it there from the repository",
                path,
            )
        return architecture.from_hugging_face(stated, preprocessor, path), {}
    if stated := files.open_clip_config():
        path = str(files.folder / "open_clip_config.json")
        return architecture.from_open_clip(read, stated, path), stated["model_cfg"]["text_cfg"]
    config = architecture.from_openai_tensors(read, where)
    if of_header := openai.from_header(config, tensors.header(read), where):
        return of_header, {}
    if files.name not in source.BACKBONES and not openai.is_published(files.weights[0]):
        openai.require_words(config, activation or "", heads, where)
        config = openai.with_words(config, activation or "", heads, where)
    if preprocessor:
        path, size = str(files.folder / "preprocessor_config.json"), config.vision.image_size
        made = pixels.from_hugging_face(preprocessor, size, path)
        config = dataclasses.replace(config, pixels=made)
    return config, {}
