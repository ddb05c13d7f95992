"""CLIPs of other makers: what their own code computes, and what is refused.

On shrunken random models of open_clip and transformers, with every switch of their configs.
"""

import functools
import json
import tempfile
from pathlib import Path

import jax
import maker_models
import numpy as np
import pytest
from maker_models import END, TEXTS, WORDS, difference, images
from open_clip_table import RESULTS
from safetensors.numpy import save_file

from coop_jax import clip as clip_package
from coop_jax.clip import source, unit
from coop_jax.errors import InputError

pytestmark = pytest.mark.makers

AGREES = 3e-6
"""The largest difference of unit features over the largest number, of logits over their scale."""


def load(folder):
    return clip_package.load(str(folder), tokenizer=source.EMBEDDED_FOLDER)


def check(folder, compute):
    """Compare a folder's features and logits with what its maker's code computes."""
    clip, tokenizer = load(folder)
    pixels, tokens = images(clip.config.vision.image_size), tokenizer(TEXTS, truncate=True)
    expected = compute(pixels, tokens)
    of_images = jax.jit(lambda clip, pixels: clip.encode_image(pixels))(clip, pixels)
    of_texts = jax.jit(lambda clip, tokens: clip.encode_text(tokens))(clip, tokens)
    logits = clip.logits(of_images, of_texts)
    errors = [
        difference(np.asarray(unit(of_images)), expected[0]),
        difference(np.asarray(unit(of_texts)), expected[1]),
        difference(np.asarray(logits), expected[2], np.exp(clip.logit_scale[...])),
    ]
    print("images {:.1e}, texts {:.1e}, logits {:.1e}".format(*errors))
    assert max(errors) <= AGREES, errors


@functools.cache
def check_open_clip(stated):
    """Check a random model of a `model_cfg`, which is given as JSON, once for all that have it."""
    config = json.loads(stated)
    model = maker_models.open_clip_model(config)
    with tempfile.TemporaryDirectory() as folder:
        maker_models.save_open_clip(Path(folder), config, model)
        check(folder, functools.partial(maker_models.open_clip_features, model))


def test_the_table_has_every_configuration_of_open_clip():
    import open_clip

    assert set(RESULTS) == set(open_clip.list_models())
    assert len(RESULTS) == 144


@pytest.mark.parametrize("name", RESULTS)
def test_configurations_of_open_clip(name, tmp_path):
    import open_clip

    config = open_clip.get_model_config(name)
    if RESULTS[name] == "agrees":
        check_open_clip(json.dumps(maker_models.shrunk(config), sort_keys=True))
        return
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file({"logit_scale": np.zeros((), np.float32)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match="not supported, use another CLIP") as error:
        load(tmp_path)
    message = maker_models.plain(error.value)
    assert all(word in message for word in RESULTS[name].removeprefix("refused: ").split())


SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 32, "vocab_size": WORDS, "width": 64, "heads": 4, "layers": 2},
}
SWITCHES = {
    "custom text": ({"custom_text": True}, {}, {}),
    "scale and bias": ({"nonscalar_logit_scale": True, "init_logit_bias": -10}, {}, {}),
    "bias": ({"init_logit_bias": -10, "init_logit_scale": 2.3, "custom_text": True}, {}, {}),
    "heads by default": ({}, {"width": 128, "head_width": 64}, {"width": 128, "heads": 8}),
    "epsilon": ({}, {"norm_kwargs": {"eps": 1e-2}}, {"norm_kwargs": {"eps": 1e-3}}),
    "tanh": ({}, {"act_kwargs": {"approximate": "tanh"}}, {"act_kwargs": {"approximate": "none"}}),
    "wide": ({}, {"mlp_ratio": 2.3}, {"mlp_ratio": 1.1, "act_kwargs": {"approximate": "tanh"}}),
    "quick": ({"quick_gelu": True}, {"act_kwargs": {}}, {"norm_kwargs": {}}),
    "average": ({}, {"pool_type": "avg"}, {"pool_type": "last"}),
    "average first": ({}, {"pool_type": "avg", "final_ln_after_pool": True}, {"pad_id": 5}),
    "class first": ({}, {"final_ln_after_pool": True}, {"pool_type": "eos", "eos_id": END}),
    "no first norm": ({}, {"no_ln_pre": True}, {"no_causal_mask": True}),
    "average and last": ({}, {"pool_type": "avg", "no_ln_pre": True}, {"pool_type": "last"}),
    "bidirectional": ({}, {}, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
    "bidirectional end": ({}, {}, {"no_causal_mask": True, "pool_type": "eos", "eos_id": END}),
    "projection with bias": ({"custom_text": True}, {}, {"proj_bias": True}),
    "no projection": ({"embed_dim": 64, "custom_text": True}, {}, {"proj_type": "none"}),
    "fixed positions": ({}, {"pos_embed_type": "sin_cos_2d"}, {"context_length": 77}),
    "custom blocks": ({}, {"block_type": "custom"}, {"block_type": "custom"}),
    "default blocks": ({}, {"block_type": "default", "qk_norm": False}, {"embed_cls": False}),
    "dropout": ({}, {"patch_dropout": 0.5, "attentional_pool": False}, {"ls_init_value": None}),
    "both sides": ({}, {"patch_size": [8, 8], "image_size": [16, 16]}, {"layers": 3}),
    "a rest of pixels": ({}, {"image_size": 29}, {"layers": 1}),
    "a resnet": ({}, {"layers": [2, 1, 1, 1], "width": 16, "image_size": 96}, {}),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_open_clip(name):
    model, vision, text = SWITCHES[name]
    towers = {
        "vision_cfg": SMALL["vision_cfg"] | vision,
        "text_cfg": SMALL["text_cfg"] | text,
    }
    if name == "heads by default":
        del towers["vision_cfg"]["head_width"], towers["text_cfg"]["heads"]
    check_open_clip(json.dumps(SMALL | towers | model))


TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "eos_token_id": END,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 20,
    "patch_size": 5,
}
ACTIVATIONS = (
    "quick_gelu",
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_fast",
    "gelu_accurate",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
)
CLIPS = {
    **{act: ({}, {"hidden_act": act}, {"hidden_act": act}) for act in ACTIVATIONS},
    "two activations": ({}, {"hidden_act": "gelu"}, {}),
    "the largest id": ({}, {"eos_token_id": 2}, {}),
    "epsilon": ({}, {"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-3}),
    "heads and widths": ({"projection_dim": 8}, {"num_attention_heads": 1}, {"hidden_size": 24}),
    "long": ({}, {"max_position_embeddings": 99}, {"num_hidden_layers": 3}),
    "training": ({"logit_scale_init_value": 1.5}, {"attention_dropout": 0.5}, {}),
    "a rest of pixels": ({}, {}, {"image_size": 23}),
}
SIGLIPS = {
    **{act: ({}, {"hidden_act": act}, {"hidden_act": act}) for act in ("gelu", "gelu_new")},
    "defaults": ({}, {}, {}),
    "another space": ({}, {"hidden_size": 64, "projection_size": 48}, {}),
    "epsilon": ({}, {"layer_norm_eps": 1e-2}, {"layer_norm_eps": 1e-3}),
    "a rest of pixels": ({}, {}, {"image_size": 23}),
    "one word more": ({}, {"max_position_embeddings": 64, "pad_token_id": 0}, {}),
}


def check_transformers(folder, kind, config, stated=None):
    """Check a random model of transformers; `stated` is written in place of its config."""
    model = maker_models.draw(kind, config)
    model.save_pretrained(folder)
    if stated is not None:
        (folder / "config.json").write_text(json.dumps(stated))
    check(folder, functools.partial(maker_models.transformers_features, model))


@pytest.mark.parametrize("name", CLIPS)
def test_clips_of_transformers(name, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    top, text, vision = CLIPS[name]
    config = CLIPConfig(text_config=TEXT | text, vision_config=VISION | vision, **top)
    check_transformers(tmp_path, CLIPModel, config)


@pytest.mark.parametrize("name", SIGLIPS)
def test_siglips_of_transformers(name, tmp_path):
    from transformers import SiglipConfig, SiglipModel

    top, text, vision = SIGLIPS[name]
    text = {**TEXT, "hidden_size": 48, **text}
    config = SiglipConfig(text_config=text, vision_config=VISION | vision, **top)
    check_transformers(tmp_path, SiglipModel, config)


OLDER = {
    "null beside the older name": {"text_config": None, "text_config_dict": TEXT},
    "the older name alone": {"text_config_dict": TEXT},
    "the older name prevails": {
        "text_config": TEXT | {"num_attention_heads": 2, "hidden_act": "gelu"},
        "text_config_dict": {
            key: value for key, value in TEXT.items() if key != "num_attention_heads"
        },
    },
    "null behind": {"text_config": TEXT, "text_config_dict": None},
    "images": {"text_config": TEXT, "vision_config": {}, "vision_config_dict": VISION},
}


@pytest.mark.parametrize("name", OLDER)
def test_older_configs_mean_what_they_mean_to_transformers(name, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    stated = {"model_type": "clip", "vision_config": VISION, **OLDER[name]}
    config = CLIPConfig.from_dict(json.loads(json.dumps(stated)))
    check_transformers(tmp_path, CLIPModel, config, stated)


@pytest.mark.parametrize(
    "kind", ["clip_text_model", "clipseg", "altclip", "chinese_clip", "metaclip_2", "siglip2"]
)
def test_other_models_of_transformers_are_refused(kind, tmp_path):
    from transformers import AutoConfig

    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    save_file({"logit_scale": np.zeros((), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"'clip' or 'siglip', got '{kind}'"):
        load(tmp_path)
