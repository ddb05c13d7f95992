"""Configs of checkpoints: every key is honoured, changes nothing, or is refused by its name."""

import copy
import json
import math
import time

import pytest
from makers import openai_config, openai_tensors

from coop_jax.clip import architecture, hugging_face_config, open_clip_config, tables
from coop_jax.clip.config import ResNetConfig, TransformerConfig, ViTConfig
from coop_jax.errors import InputError

HOSTILE = (
    [],
    [1],
    [3, "x", None, 1],
    {},
    {"x": 1},
    {"eps": "x"},
    {"approximate": 1},
    "",
    "x",
    "a\nb" * 99,
    None,
    True,
    False,
    0,
    -1,
    0.5,
    10**9,
    10**40,
    1e308,
    math.nan,
    math.inf,
)


class Tensors:
    """Weights of a SigLIP tower of timm's, or none, as far as configs are read with them."""

    def __init__(self, shapes=()):
        self.shapes = dict(shapes)

    def names(self):
        return set(self.shapes)

    def shape(self, name):
        return self.shapes[name]


TIMM = Tensors(
    {f"visual.trunk.blocks.{layer}.mlp.fc1.weight": (96, 48) for layer in (0, 1, 10)}
    | {"logit_bias": ()}
)


def open_clip(model, tensors=TIMM):
    return architecture.from_open_clip(tensors, {"model_cfg": model}, "config")


def hugging_face(config):
    return architecture.from_hugging_face(config, {}, "config")


def change(config, path, value):
    """A copy of a config with another value at a dotted path."""
    config = copy.deepcopy(config)
    *parents, key = path.split(".")
    target = config
    for parent in parents:
        target = target.setdefault(parent, {})
    target[key] = value
    return config


def paths(by_path):
    """The dotted path of every key of the tables, and the key."""
    return [
        (f"{path}.{name}".lstrip("."), key)
        for path, table in by_path.items()
        for name, key in table.items()
    ]


SIGLIP = {
    "embed_dim": 48,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 256,
        "timm_model_name": "vit_base_patch16_siglip_256",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 32000,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}
RESNET = change(openai_config(), "vision_cfg", {"layers": [1, 2, 1, 1], "width": 64})
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
CLIP = {
    "model_type": "clip",
    "projection_dim": 16,
    "text_config": SMALL | {"num_attention_heads": 2, "vocab_size": 99},
    "vision_config": SMALL | {"num_attention_heads": 2, "image_size": 20, "patch_size": 5},
}
SIGLIP_HF = {
    "model_type": "siglip",
    "text_config": SMALL | {"num_attention_heads": 2, "projection_size": 768},
    "vision_config": SMALL | {"hidden_size": 768, "num_attention_heads": 2, "image_size": 32},
}

OPEN_CLIP_KEYS = paths(
    {
        "": open_clip_config.MODEL,
        "vision_cfg": open_clip_config.VISION,
        "vision_cfg.act_kwargs": open_clip_config.GELU,
        "vision_cfg.norm_kwargs": open_clip_config.NORM,
        "text_cfg": open_clip_config.TEXT_TOWER,
    }
)
CLIP_KEYS = paths(
    {
        "": hugging_face_config.CLIP_MODEL,
        "text_config": hugging_face_config.CLIP_TEXT,
        "text_config_dict": hugging_face_config.CLIP_TEXT,
        "vision_config": hugging_face_config.CLIP_VISION,
    }
)
SIGLIP_KEYS = paths(
    {
        "": hugging_face_config.SIGLIP_MODEL,
        "text_config": hugging_face_config.SIGLIP_TEXT,
        "vision_config": hugging_face_config.SIGLIP_VISION,
    }
)

# What the hostile values above may mean, and then change.
MEANT = {
    "quick_gelu": (True,),
    "init_logit_bias": (0, -1, 0.5, None),
    "mlp_ratio": (0.5,),
    "eps": (0, 0.5),
    "final_ln_after_pool": (True,),
    "no_ln_pre": (True,),
    "no_causal_mask": (True, False, None),
    "proj_bias": (True, False, None),
    "proj_type": (None,),
    "act_kwargs": ({}, None),
    "norm_kwargs": ({}, None),
    "layer_norm_eps": (0, 0.5),
    "eos_token_id": (0,),
    "pad_token_id": (0, None),
    "text_config": ({}, None),
    "vision_config": ({}, None),
    "vision_cfg": ({},),
    "text_cfg": ({},),
    "timm_model_name": ("", None),
    "text_config_dict": ({},),
    "vision_config_dict": ({},),
}


@pytest.mark.parametrize(
    ("read", "config", "keys"),
    [
        (open_clip, openai_config(), OPEN_CLIP_KEYS),
        (open_clip, RESNET, OPEN_CLIP_KEYS),
        (open_clip, SIGLIP, OPEN_CLIP_KEYS),
        (hugging_face, CLIP, CLIP_KEYS),
        (hugging_face, SIGLIP_HF, SIGLIP_KEYS),
    ],
)
def test_no_value_of_any_key_is_passed_over(read, config, keys):
    start = time.monotonic()
    for path, key in keys:
        older = path.startswith("text_config_dict.")  # this prevails, with its defaults
        plain = read(change(config, "text_config_dict", {}) if older else config)
        name, refused = path.split(".")[-1], 0
        for value in HOSTILE:
            try:
                got = read(change(config, path, value))
            except InputError as error:
                message, refused = str(error), refused + 1
                assert "\n" not in message and len(message) < 400, message
                assert "expected" in message and ", got " in message, message
                assert name in message or isinstance(value, dict), message
            else:
                meant = [m for m in MEANT.get(name, ()) if type(m) is type(value) and m == value]
                assert got == plain or meant, (path, value)
        assert refused >= 15 or key.values is tables.ANY, path
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("value", HOSTILE)
def test_a_file_that_is_no_object_is_refused(value):
    for read in (open_clip, hugging_face, lambda x: architecture.from_open_clip(TIMM, x, "f")):
        with pytest.raises(InputError, match=r"expected .*, got .*;"):
            read(value)


UNKNOWN = [
    (open_clip, openai_config(), ("surprise", "vision_cfg.surprise", "text_cfg.surprise")),
    (open_clip, openai_config(), ("vision_cfg.norm_kwargs.surprise",)),
    (hugging_face, CLIP, ("surprise", "vision_config.surprise", "text_config_dict.surprise")),
    (hugging_face, SIGLIP_HF, ("text_config_dict", "vision_config.num_patches")),
]


@pytest.mark.parametrize(("read", "config", "keys"), UNKNOWN)
def test_an_unknown_key_is_refused_by_its_name(read, config, keys):
    for path in keys:
        with pytest.raises(InputError, match=f"known keys alone in .*{path.split('.')[-1]}' = 3"):
            read(change(config, path, 3))


def test_a_key_that_must_be_there_is_named():
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        model = openai_config()
        del model[key]
        with pytest.raises(InputError, match=rf"expected model_cfg\.{key}, .*, got none"):
            open_clip(model)
    with pytest.raises(InputError, match=r"expected model_cfg, an object, got none"):
        architecture.from_open_clip(TIMM, {}, "config")


REFUSED = [
    ("multimodal_cfg", {"width": 8}, r"text decoder \(CoCa\): not supported"),
    ("vision_cfg.timm_model_name", "eva02_base_patch16_clip_224", "got 'eva02_base_patch16_clip_2"),
    ("vision_cfg.timm_model_name", "vit_base_patch16_siglip_gap_224", "siglip_gap_224'"),
    ("vision_cfg.attentional_pool", True, "pooling by several queries"),
    ("vision_cfg.attentional_pool", "parallel", "pooling by several queries"),
    ("vision_cfg.ls_init_value", 1e-4, "layer scale"),
    ("vision_cfg.pool_type", "none", "to be 'tok' or 'avg', got 'none'; other poolings"),
    ("vision_cfg.head_width", 128, "head_width.* divide the width 64, got 0"),
    ("vision_cfg.head_width", 20, "head_width.* divide the width 64, got 3"),
    ("vision_cfg.patch_size", 9, "1 to 256 patches in a row of 8 pixels, got 9"),
    ("vision_cfg.patch_size", [4, 2], r"patch_size .*of both sides.*got \[4, 2\]"),
    ("vision_cfg.patch_size", None, "in a vision transformer, got None"),
    ("vision_cfg.mlp_ratio", 1e-3, "an MLP of at least one unit"),
    ("vision_cfg.norm_kwargs", {"bias": False}, "norm_kwargs.bias to be True, got False"),
    ("text_cfg.hf_model_name", "roberta-base", "a text tower of transformers'"),
    ("text_cfg.embed_cls", True, "a class token in the text tower"),
    ("text_cfg.pool_type", "first", "'argmax' or 'eos' or 'last', got 'first'"),
    ("text_cfg.proj_type", "none", "text_cfg.width to be embed_dim, 16, .* got 64"),
    ("text_cfg.qk_norm", True, "a normalisation of queries and keys"),
    ("text_cfg.scaled_cosine_attn", True, "scaled cosine attention"),
    ("text_cfg.scale_heads", True, "a scale of every head"),
    ("text_cfg.scale_attn", True, "behind the attention"),
    ("text_cfg.scale_attn_inner", True, "inside the attention"),
    ("text_cfg.scale_fc", True, "inside the MLP"),
    ("text_cfg.block_type", "other", "block_type to be null or 'default' or 'custom'"),
    ("text_cfg.heads", 7, "text_cfg.heads .* divide the width 64, got 7"),
    ("text_cfg.act_kwargs", {"approximate": "erf"}, "act_kwargs.approximate to be 'none' or"),
]


@pytest.mark.parametrize(("path", "value", "message"), REFUSED)
def test_what_open_clip_has_and_we_have_not_is_refused(path, value, message):
    with pytest.raises(InputError, match=message):
        open_clip(change(openai_config(), path, value))


def test_quick_gelu_has_no_keywords():
    model = change(openai_config(), "text_cfg.act_kwargs", {"approximate": "tanh"})
    assert open_clip(model).text.transformer.activation == "gelu_tanh"
    with pytest.raises(InputError, match=r"text_cfg\.act_kwargs to be null beside quick_gelu"):
        open_clip(model | {"quick_gelu": True})


def test_open_clip_s_switches_are_honoured():
    model = openai_config()
    model["vision_cfg"] |= {"head_width": 16, "mlp_ratio": 2.5, "pool_type": "avg"}
    model["vision_cfg"] |= {"no_ln_pre": True, "final_ln_after_pool": True, "patch_size": [4, 4]}
    model["text_cfg"] |= {"pool_type": "eos", "eos_id": 7, "norm_kwargs": {"eps": 1e-6}}
    config = open_clip(model)
    assert config.vision == ViTConfig(
        8,
        4,
        TransformerConfig(64, 1, 4, 160, "gelu"),
        pooling="average",
        initial_norm=False,
        pool_first=True,
    )
    assert (config.text.end_token, config.text.pooling) == (7, "end")
    assert config.text.transformer == TransformerConfig(64, 2, 1, 256, "gelu", 1e-6)
    del model["text_cfg"]["heads"]
    assert open_clip(model).text.transformer.heads == 8
    assert open_clip(RESNET).vision == ResNetConfig(224, 64, (1, 2, 1, 1), 32)


def test_a_siglip_tower_of_timm_is_as_large_as_its_weights():
    config = open_clip(SIGLIP)
    assert config.vision == ViTConfig(
        256,
        16,
        TransformerConfig(48, 3, 12, 96, "gelu", 1e-6),
        pooling="attention",
        initial_norm=False,
        patch_bias=True,
        projection=False,
    )
    text = config.text
    assert (text.causal, text.pooling, text.projection) == (False, "last", "linear")
    assert text.transformer == TransformerConfig(32, 2, 2, 128, "gelu_tanh", 1e-6)
    assert config.logit_bias and not open_clip(SIGLIP | {"init_logit_bias": None}).logit_bias
    for path, value, message in (
        ("vision_cfg.timm_pool", "avg", "timm_pool to be 'map'"),
        ("vision_cfg.timm_proj", None, "timm_proj to be 'none'"),
        ("vision_cfg.image_size", 224, "image_size to be 256, as vit_base_patch16_siglip_256 has"),
        ("embed_dim", 64, "embed_dim to be 48, the width of the image tower"),
    ):
        with pytest.raises(InputError, match=message):
            open_clip(change(SIGLIP, path, value))
    with pytest.raises(
        InputError, match=r"got no matrix visual\.trunk\.blocks\.0\.mlp\.fc1\.weight"
    ):
        open_clip(SIGLIP, Tensors())


def test_shapes_alone_say_what_openai_s_code_builds():
    tensors = Tensors({name: tensor.shape for name, tensor in openai_tensors().items()})
    config = architecture.from_openai_tensors(tensors, "file")
    assert config == open_clip(openai_config() | {"quick_gelu": True})


def test_configs_are_read_as_json():
    """Numbers that JSON can hold beyond its standard come as they do from a file."""
    text = json.dumps(openai_config()).replace('"heads": 1', '"heads": NaN')
    with pytest.raises(InputError, match=r"text_cfg.heads to be a whole number .*, got nan"):
        open_clip(json.loads(text))
