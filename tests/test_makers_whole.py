"""From photographs and texts to logits, as open_clip and transformers go that way."""

import json
import shutil

import maker_models
import numpy as np
import pytest
import tokenizer_files
from maker_models import difference
from record_pixels import image
from test_makers import AGREES, SMALL, TEXT, VISION

from coop_jax import clip as clip_package
from coop_jax.clip import preprocess, unit

pytestmark = pytest.mark.makers

SHAPES = ((70, 90), (30, 29), (41, 20))
CLASSES = ("a photo of a cat.", "A picture of a dog, and a bird!", "CD player", "hen-of-the-woods")

PIXELS = {
    "OpenAI's": {},
    "squash": {"resize_mode": "squash"},
    "longest, bilinear": {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 9},
    "zero to one": {"mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "bilinear"},
    "SigLIP's": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
}


def check(folder, expected):
    """Compare unit features and logits of the photographs and of the texts; the tokens."""
    clip, tokenizer = clip_package.load(str(folder))
    size, settings = clip.config.vision.image_size, clip.config.pixels
    pixels = [preprocess.resize_and_center_crop(image(*s), size, settings) for s in SHAPES]
    tokens = tokenizer(CLASSES)
    of_images, of_texts = clip.encode_image(np.stack(pixels)), clip.encode_text(tokens)
    logits, scale = clip.logits(of_images, of_texts), np.exp(clip.logit_scale[...])
    errors = [
        difference(np.asarray(unit(of_images)), expected[0]),
        difference(np.asarray(unit(of_texts)), expected[1]),
        difference(np.asarray(logits), expected[2], scale),
    ]
    print("images {:.1e}, texts {:.1e}, logits {:.1e}".format(*errors))
    assert max(errors) <= AGREES, errors
    return tokens


def check_open_clip(folder, config, preprocess_cfg):
    """Compare with what open_clip itself reads of a folder."""
    import open_clip
    import torch

    model = maker_models.open_clip_model(config)
    maker_models.save_open_clip(folder, config, model, preprocess_cfg)
    name = f"local-dir:{folder}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    pixels = torch.stack([transform(image(*shape)) for shape in SHAPES])
    tokens = open_clip.get_tokenizer(name)(list(CLASSES))
    pixels = pixels.numpy().transpose(0, 2, 3, 1)
    expected = maker_models.open_clip_features(model.eval(), pixels, tokens)
    np.testing.assert_array_equal(check(folder, expected), tokens.numpy())


@pytest.mark.parametrize("name", PIXELS)
def test_open_clip_with_its_own_vocabulary(name, tmp_path):
    maker_models.save_clip_tokenizer(tmp_path)
    text = SMALL["text_cfg"] | {"vocab_size": 49408, "context_length": 16}
    check_open_clip(tmp_path, SMALL | {"text_cfg": text}, PIXELS[name])


KINDS = {
    "t5": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
    "gemma": {"pool_type": "last", "no_causal_mask": True},
    "byte_level": {"pool_type": "eos", "eos_id": 2},
    "bert": {"pool_type": "last", "no_causal_mask": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_with_other_vocabularies(kind, tmp_path):
    tokenizer_files.KINDS[kind](tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    options = {} if kind == "byte_level" else {"clean": "canonicalize"}
    text = SMALL["text_cfg"] | KINDS[kind]
    text |= {"vocab_size": len(vocabulary), "hf_tokenizer_name": "a/b", "tokenizer_kwargs": options}
    model = SMALL | {"text_cfg": text, "init_logit_bias": -10, "custom_text": True}
    check_open_clip(tmp_path, model, PIXELS["SigLIP's"])


def check_transformers(folder, model, processor):
    """Compare with what transformers computes with its own tokenizer and image processor."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(list(CLASSES), padding="max_length", max_length=length).input_ids
    pixels = processor([image(*shape) for shape in SHAPES], return_tensors="np").pixel_values
    pixels = pixels.transpose(0, 2, 3, 1)
    expected = maker_models.transformers_features(model, pixels, tokens)
    return check(folder, expected), np.array(tokens)


def test_clips_with_files_of_their_own(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    maker_models.save_clip_tokenizer(tmp_path)
    text = TEXT | {"vocab_size": 49408, "eos_token_id": 49407}
    model = maker_models.draw(CLIPModel, CLIPConfig(text_config=text, vision_config=VISION))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=20)
    ours, theirs = check_transformers(tmp_path, model, processor)
    ends = theirs.argmax(axis=1)  # behind these the padding is another's
    for row, other, end in zip(ours, theirs, ends, strict=True):
        np.testing.assert_array_equal(row[: end + 1], other[: end + 1])


@pytest.mark.parametrize("second", [False, True])
def test_siglips_with_files_of_their_own(second, tmp_path):
    from transformers import AutoTokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    files = tmp_path / "tokenizer"
    files.mkdir()
    if second:
        tokenizer_files.gemma(files, do_lower_case=True)
    else:
        tokenizer_files.siglip(files, model_max_length=48)
    size = len(AutoTokenizer.from_pretrained(files))
    text = TEXT | {"vocab_size": size, "hidden_size": 48, "max_position_embeddings": 48}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    model = maker_models.draw(SiglipModel, config)
    folder = shutil.copytree(files, tmp_path / "clip")
    processor = SiglipImageProcessorPil(size={"height": 20, "width": 20})
    np.testing.assert_array_equal(*check_transformers(folder, model, processor))
