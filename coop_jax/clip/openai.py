"""OpenAI's own checkpoints, and what others have to say of a file that no config lies beside.

Neither the activation nor the number of heads can be read off tensors. OpenAI's code has QuickGELU
and heads of width 64; whoever trained with other code may have others, under the same names. That
holds of TorchScript archives as well, which not only OpenAI writes: the digest is what counts.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coop_jax.clip.config import CLIPConfig, ResNetConfig
from coop_jax.clip.transformer import ACTIVATIONS
from coop_jax.errors import InputError

HEAD_WIDTH = 64
"""Every head of OpenAI's models has this width; the number of heads is stored nowhere."""

Heads = tuple[int, int]
"""The number of heads of the image tower, and of the text tower."""

PUBLISHED = {
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": "RN50",
    "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599": "RN101",
    "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd": "RN50x4",
    "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa": "RN50x16",
    "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c": "RN50x64",
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}
"""SHA-256 of the files that OpenAI published, from their addresses, and whose weights they are."""


def is_published(file: Path) -> bool:
    """Return True if a file is, byte for byte, one that OpenAI published."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() in PUBLISHED


def from_header(config: CLIPConfig, header: Mapping[str, str], where: str) -> CLIPConfig | None:
    """Return a config with what the header of a safetensors file says; None if it says nothing.

    A header says `naming`, "openai": these are the parameters of a model of OpenAI's code. It may
    say `dims`, the arguments of that model's constructor, as JSON: the text tower's heads count,
    and the others must be those of the tensors.

    Args:
        config: read off the tensors.
        header: its metadata.
        where: what an error calls the file.

    Raises:
        InputError: `dims` are not those of the tensors.
    """
    if header.get("naming") != "openai":
        return None
    if "dims" not in header:
        return config
    vision, text = config.vision, config.text
    is_resnet = isinstance(vision, ResNetConfig)
    expected: dict[str, Any] = {
        "embed_dim": config.embedding,
        "image_resolution": vision.image_size,
        "vision_layers": list(vision.blocks) if is_resnet else vision.transformer.layers,
        "vision_width": vision.width if is_resnet else vision.transformer.width,
        "vision_patch_size": None if is_resnet else vision.patch_size,
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "transformer_width": text.transformer.width,
        "transformer_layers": text.transformer.layers,
    }
    try:
        dims = dict(json.loads(header["dims"]))
        heads = (_heads(config)[0], dims.pop("transformer_heads", text.transformer.heads))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{where}: expected JSON as `dims` in its header, got {header['dims']!r:.80}; write"
            " the file again"
        ) from error
    if dims != expected:
        raise InputError(
            f"{where}: expected the dimensions of the tensors as `dims` in its header,"
            f" {json.dumps(expected)}, got {header['dims']!s:.300}; write the file again"
        )
    return with_words(config, "", heads, where)


def with_words(config: CLIPConfig, activation: str, heads: Heads | None, where: str) -> CLIPConfig:
    """Return a config with another activation and other heads, where they are said.

    Raises:
        InputError: an unknown activation, or heads that do not divide a tower's width.
    """
    check_words(activation, heads)
    vision, text = config.vision, config.text.transformer
    image_heads, text_heads = heads or _heads(config)
    changes = {"activation": activation} if activation else {}
    widths = _widths(config)
    if widths[0] % image_heads or widths[1] % text_heads:
        raise InputError(
            f"{where}: expected heads that divide the widths of the image tower and of the text"
            f" tower, {widths}, got {(image_heads, text_heads)}; say how many each has"
        )
    if isinstance(vision, ResNetConfig):
        vision = dataclasses.replace(vision, heads=image_heads)
    else:
        blocks = dataclasses.replace(vision.transformer, heads=image_heads, **changes)
        vision = dataclasses.replace(vision, transformer=blocks)
    text = dataclasses.replace(text, heads=text_heads, **changes)
    return dataclasses.replace(
        config, vision=vision, text=dataclasses.replace(config.text, transformer=text)
    )


def are_heads(value: Any) -> bool:
    """Return True for two positive whole numbers."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return is_pair and all(type(count) is int and count > 0 for count in value)


def check_words(activation: str, heads: Heads | None) -> None:
    """Refuse words that no CLIP fits.

    Raises:
        InputError: an unknown activation, or heads that are not two positive whole numbers.
    """
    if activation and activation not in ACTIVATIONS:
        raise InputError(
            f"expected an activation of {', '.join(ACTIVATIONS)}, got {activation!r:.80}; say one"
            " of these"
        )
    if heads and not are_heads(heads):
        raise InputError(
            "expected heads as two numbers, those of the image tower and of the text tower, got"
            f" {heads!r:.80}; say e.g. (12, 8)"
        )


def require_words(config: CLIPConfig, activation: str, heads: Heads | None, where: str) -> None:
    """Refuse a file that no config lies beside, unless its activation and heads are both said.

    Raises:
        InputError: one is not said; the line tells how to say it.
    """
    missing = [*["activation"] * (not activation), *["heads"] * (not heads)]
    if missing:
        raise InputError(
            f"{where}: expected a config beside it, or to be told its activation and its heads,"
            f" which tensors do not show, got no {' and no '.join(missing)}; say e.g."
            " activation='gelu', heads=(IMAGE, TEXT) in Python, --activation gelu --heads"
            " IMAGE,TEXT to a command, --config.clip.activation and --config.clip.heads to a run:"
            " the number of heads of each tower (OpenAI's code has quick_gelu and heads of width"
            f" {HEAD_WIDTH}; here the towers are {' and '.join(map(str, _widths(config)))} wide)"
        )


def compare_words(config: CLIPConfig, activation: str, heads: Heads | None, where: str) -> None:
    """Refuse words that differ from what a checkpoint's own config says.

    Raises:
        InputError: they do, or no CLIP fits them.
    """
    check_words(activation, heads)
    towers = [config.text.transformer]
    if not isinstance(config.vision, ResNetConfig):
        towers.append(config.vision.transformer)
    has = sorted({tower.activation for tower in towers})
    if activation and has != [activation]:
        raise InputError(
            f"{where}: expected its own activation, {' and '.join(has)}, got {activation}; leave it"
            " out, or name another CLIP"
        )
    if heads and tuple(heads) != _heads(config):
        raise InputError(
            f"{where}: expected its own heads, {_heads(config)}, got {tuple(heads)}; leave them"
            " out, or name another CLIP"
        )


def _heads(config: CLIPConfig) -> Heads:
    vision = config.vision
    of_images = vision.heads if isinstance(vision, ResNetConfig) else vision.transformer.heads
    return of_images, config.text.transformer.heads


def _widths(config: CLIPConfig) -> tuple[int, int]:
    """Return what the heads of each tower share; of a ResNet, the channels that are pooled."""
    vision = config.vision
    pooled = vision.width * 32 if isinstance(vision, ResNetConfig) else vision.transformer.width
    return pooled, config.text.transformer.width
