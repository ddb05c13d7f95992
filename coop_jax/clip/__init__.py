"""The frozen CLIP: towers, weights, tokenizer and pixels, usable without the rest of coop_jax."""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from coop_jax.clip import architecture, preprocess, source, weights
from coop_jax.clip.config import CLIPConfig
from coop_jax.clip.features import FeatureSpace
from coop_jax.clip.fingerprint import fingerprint
from coop_jax.clip.model import CLIP, unit
from coop_jax.clip.tokenizer import Tokenizer
from coop_jax.clip.tokenizer import read as tokenizer_of

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
) -> tuple[CLIP, Tokenizer]:
    """A pre-trained CLIP and its tokenizer.

    Args:
        name: "tiny" (the embedded one); RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32,
            ViT-B/16, ViT-L/14 or `ViT-L/14@336px`; a folder; a `.safetensors` or `.pt` file with
            OpenAI's tensor names; or the hub id of a Hugging Face CLIP.
        dtype: of the matrices and the arithmetic: float32, bfloat16 or float16.
        tokenizer: folder of the tokenizer files, where they do not lie beside the weights.
        activation: "quick_gelu" or "gelu", where the checkpoint does not say (OpenAI's tensor
            names without a config; default "quick_gelu").

    Raises:
        InputError: an unknown name, missing files, or weights that do not fit.
    """
    found = source.resolve(name, tokenizer)
    first = found.weights[0]
    if first.suffix == ".pt":
        from coop_jax.clip.torch_archive import TorchArchive

        tensors = TorchArchive(first)
    else:
        tensors = source.SafetensorsFiles(found.weights)
    if found.config is None:
        stated = source.read_json(first.parent / "open_clip_config.json")
        if activation is not None or name in source.BACKBONES:
            stated.setdefault("model_cfg", {})["quick_gelu"] = activation != "gelu"
        config = architecture.from_openai_tensors(tensors, stated, str(first))
        stated = stated.get("model_cfg", {}).get("text_cfg")
        naming = weights.OPENAI
    else:
        stated = None
        preprocessor = source.read_json(found.config.parent / "preprocessor_config.json")
        config = architecture.from_hugging_face(
            source.read_json(found.config), preprocessor, str(found.config)
        )
        naming = weights.HUGGING_FACE
    clip = weights.build(tensors, config, naming, dtype, str(first))
    return clip, tokenizer_of(found.tokenizer, first.parent, config.text, stated)
