"""Shrunken random models of open_clip and transformers, and what their makers' code computes.

Needs the extra `makers`. Every number of a model is drawn, its normalisations, biases and positions
included, so that nothing agrees because it is zero or one.
"""

import copy
import functools
import json
import re
from pathlib import Path

import numpy as np

TEXTS = (
    "a photo of a cat.",
    "a",
    "black and gold garden spider, seen from above, in the middle of its net",
    "CD player",
    "é ü 7 & more",
)
WORDS = 929
"""Size of the embedded tokenizer's vocabulary, which the shrunken models have."""
END = 928
"""Its end token."""


def draw(create, *arguments, **keywords):
    """A model of torch, every number of it drawn around what its maker begins with."""
    import torch

    torch.manual_seed(0)
    model = create(*arguments, **keywords)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(1 + torch.rand_like(buffer))
    return model.eval()


def images(size, count=3):
    """Random normalised images, channels last."""
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def shrunk(config: dict) -> dict:
    """A `model_cfg` of open_clip with every switch as it is, small, for the embedded tokenizer."""
    model = copy.deepcopy(config)
    vision, text = model["vision_cfg"], model["text_cfg"]
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        text.pop(key, None)
    text |= {"vocab_size": WORDS, "layers": 2, "width": 8 * text["heads"]}
    if text.get("pool_type") == "eos":
        text["eos_id"] = END
    if "timm_model_name" in vision:
        model["embed_dim"] = 8 * timm_heads(vision["timm_model_name"])
    elif isinstance(vision["layers"], list):
        vision |= {"layers": [1, 2, 1, 1], "width": 16, "image_size": 64}
        model["embed_dim"] = 24
    else:
        patch = vision["patch_size"]
        heads = vision["width"] // vision.get("head_width", 64)
        vision |= {"layers": 2, "image_size": 3 * patch}
        vision["width"] = 2 * vision.get("head_width", 64) if heads > 1 else vision["width"]
        model["embed_dim"] = 24
    if text.get("proj_type") == "none":
        model["embed_dim"] = text["width"]
    return model


def timm_heads(name):
    """The number of heads of a SigLIP tower of timm's."""
    return 12 if "_base_" in name else 16


def open_clip_model(config):
    """A random model of open_clip; a tower of timm's has two blocks of eight numbers a head."""
    import open_clip
    import timm

    arguments = copy.deepcopy(config)
    custom = arguments.pop("custom_text", False)
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    create = timm.create_model
    name = arguments["vision_cfg"].get("timm_model_name")
    if name:
        small = {"depth": 2, "embed_dim": 8 * timm_heads(name)}
        timm.create_model = functools.partial(create, **small)
    try:
        return draw(kind, **arguments)
    finally:
        timm.create_model = create


def save_open_clip(folder: Path, config, model, preprocess=None, name="open_clip_model"):
    """Write a folder as open_clip pushes it to the hub; the folder."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    stated = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    return folder


def open_clip_features(model, pixels, tokens):
    """Unit features of images and texts and the logits, as open_clip computes them."""
    import torch

    with torch.no_grad():
        picture = torch.from_numpy(np.asarray(pixels).transpose(0, 3, 1, 2).copy())
        ids = torch.from_numpy(np.asarray(tokens)).long()
        outputs = (
            model.encode_image(picture, normalize=True),
            model.encode_text(ids, normalize=True),
            model.get_logits(picture, ids)[0],
        )
    return [output.numpy() for output in outputs]


def transformers_features(model, pixels, tokens):
    """Unit features of images and texts and the logits, as transformers computes them."""
    import torch

    with torch.no_grad():
        picture = torch.from_numpy(np.asarray(pixels).transpose(0, 3, 1, 2).copy())
        outputs = model(input_ids=torch.from_numpy(np.asarray(tokens)).long(), pixel_values=picture)
    parts = outputs.image_embeds, outputs.text_embeds, outputs.logits_per_image
    return [part.numpy() for part in parts]


def difference(got, expected, largest=None):
    """The largest difference over the largest number, of those expected if it is not said."""
    assert got.shape == expected.shape
    largest = np.abs(expected).max() if largest is None else largest
    return float(np.abs(got - expected).max() / largest)


def save_clip_tokenizer(folder: Path) -> Path:
    """Write OpenAI's vocabulary, as it comes with open_clip, in transformers' files; the folder."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): index for word, index in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(words))
    ranks = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in ranks)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def plain(error) -> str:
    """An error's message without the path of the file that it begins with."""
    return re.sub(r"^\S*/", "", str(error))
