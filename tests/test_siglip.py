"""SigLIP: a text tower that sees its padding, and what learns on it."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizer_files
from conftest import CLASS_NAMES
from flax import nnx
from makers import image_folder
from oracle import plain_prompts, plain_text_features
from safetensors.numpy import load_file, save_file

from coop_jax import clip as clip_package
from coop_jax import methods
from coop_jax.clip import config as clip_config
from coop_jax.clip import unit, weights
from coop_jax.errors import InputError
from coop_jax.methods import Images
from coop_jax.saved import Saved, export


def write_siglip(folder: Path) -> Path:
    """A small random SigLIP with transformers' files and T5's tokenizer, in a new folder."""
    folder.mkdir()
    tokenizer_files.t5(folder)
    words = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    blocks = clip_config.TransformerConfig(24, 2, 2, 40, "gelu_tanh", 1e-6)
    vision = clip_config.ViTConfig(
        16, 4, blocks, "attention", initial_norm=False, patch_bias=True, projection=False
    )
    blocks = clip_config.TransformerConfig(16, 2, 4, 24, "gelu_tanh", 1e-6)
    text = clip_config.TextConfig(
        words, 40, blocks, causal=False, pooling="last", projection="linear"
    )
    dimensions = clip_config.CLIPConfig(24, vision, text, logit_bias=True)
    clip = clip_package.CLIP(dimensions, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    tensors = {
        name: np.asarray(tensor + 0.1 * rng.normal(size=tensor.shape), np.float32)
        for name, tensor in weights.transformers_tensors(clip).items()
    }
    save_file(tensors, folder / "model.safetensors")
    sizes = {
        "text_config": {
            "vocab_size": words,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "projection_size": 24,
        },
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", **sizes}))
    made = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(made))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip") / "clip")


@pytest.fixture(scope="module")
def siglip(folder):
    return clip_package.load(str(folder))


def features(clip, count=4):
    rows = np.random.default_rng(5).normal(size=(count, clip.config.embedding))
    return jnp.asarray(rows, jnp.float32)


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def scaled(clip, images, texts):
    """Logits as SigLIP's paper has them, float64."""
    images, texts = (
        rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        for rows in (np.asarray(images, np.float64), texts)
    )
    scale, bias = (float(value[...]) for value in (clip.logit_scale, clip.logit_bias))
    return np.exp(scale) * np.einsum("be,...ce->b...c", images, texts) + bias


def test_padding_changes_what_is_read(siglip):
    clip, tokenizer = siglip
    tokens = tokenizer(["a photo of a cat."])
    assert tokens.shape == (1, 40) and not tokenizer.starts
    assert (tokens[0] == tokenizer.end).sum() > 1  # SigLIP pads with its end token
    whole, cut = clip.encode_text(jnp.asarray(tokens)), clip.encode_text(jnp.asarray(tokens[:, :9]))
    assert np.abs(unit(whole) - unit(cut)).max() > 1e-3


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_equals_the_plain_form(siglip, position, class_specific):
    clip, tokenizer = siglip
    config = {"n_ctx": 4, "class_token_position": position, "class_specific": class_specific}
    method = methods.create("coop", clip, tokenizer, CLASS_NAMES, config, seed=3)
    prompts = plain_prompts(clip, tokenizer, CLASS_NAMES, method.context[...], position)
    expected = plain_text_features(clip, *prompts)
    texts = method.texts(clip, None)
    close(texts, expected)
    images = Images(features=features(clip))
    close(method.logits(clip, texts, images), scaled(clip, images.features, expected))


def test_cocoop_equals_the_plain_form(siglip):
    clip, tokenizer = siglip
    method = methods.create(
        "cocoop", clip, tokenizer, CLASS_NAMES, {"context_init": "", "n_ctx": 3}
    )
    images = features(clip)
    got = method.logits(clip, (), Images(features=images))
    shifts = method.meta_net(unit(images))
    for row, shift, logits in zip(images, shifts, np.asarray(got), strict=True):
        context = method.context[...] + shift
        texts = plain_text_features(
            clip, *plain_prompts(clip, tokenizer, CLASS_NAMES, context, "end")
        )
        close(logits, scaled(clip, row[None], texts)[0])


@pytest.mark.parametrize("template", ["a photo of a {}.", "{}"])
def test_zero_shot_is_of_whole_texts(siglip, template):
    clip, tokenizer = siglip
    method = methods.create("zero_shot", clip, tokenizer, CLASS_NAMES, {"templates": (template,)})
    tokens = tokenizer([template.replace("{}", name) for name in CLASS_NAMES])
    close(method.texts(clip, None), np.asarray(unit(clip.encode_text(jnp.asarray(tokens)))))


@pytest.mark.parametrize("class_specific", [False, True])
def test_gradient_and_shards_change_nothing(siglip, class_specific):
    clip, tokenizer = siglip
    config = {"n_ctx": 2, "class_specific": class_specific}
    names, images = (*CLASS_NAMES, "hen", "cat", "dog"), features(clip)

    def outcome(shards):
        method = methods.create("coop", clip, tokenizer, names, config, seed=3, shards=shards)

        def loss(context):
            texts = method.prompts.encode(clip, context)
            logits = method.logits(clip, texts, Images(features=images))
            return jax.nn.log_softmax(logits)[:, 0].sum()

        return jax.value_and_grad(loss)(method.context[...])

    (value, gradient), (alone, its_gradient) = outcome(8), outcome(1)
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    close(gradient, np.asarray(its_gradient))
    assert np.abs(its_gradient).max() > 0


def test_fit_evaluate_and_export(run, folder, tmp_path):
    data = image_folder(tmp_path / "images", ("circle", "hen", "tench"), 3)
    clip = f"--clip={folder}"
    prompt = tmp_path / "prompt"
    for words in (
        ("fit", data, prompt, clip, "--shots=2", "--epochs=2", "--set=n_ctx=2"),
        ("evaluate", prompt, data, clip),
        ("export", prompt, tmp_path / "weights.npz", clip),
        ("export", prompt, tmp_path / "classifier.stablehlo", clip),
    ):
        code, out, err = run(*words)
        assert code == 0 and out and not err
    weights = np.load(tmp_path / "weights.npz")
    model, tokenizer = clip_package.load(str(folder))
    method = Saved.load(prompt).for_classes(model, tokenizer, backbone=str(folder))
    images = features(model)
    expected = method.logits(model, method.texts(model, None), Images(features=images))
    got = unit(images) @ weights["weight"].T + weights["bias"]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    program = export.load_program(tmp_path / "classifier.stablehlo")
    encoded = Images(features=model.encode_image(jnp.asarray(pixels)))
    expected = method.logits(model, method.texts(model, None), encoded)
    np.testing.assert_allclose(program.call(pixels), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kept", ["logit_", "vision_", "text_"])
def test_a_tower_that_is_missing_is_refused(folder, tmp_path, kept):
    broken = Path(shutil.copytree(folder, tmp_path / "clip"))
    tensors = load_file(broken / "model.safetensors")
    part = {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}
    save_file(part, broken / "model.safetensors")
    with pytest.raises(InputError, match="use a complete, unmodified checkpoint"):
        clip_package.load(str(broken))
