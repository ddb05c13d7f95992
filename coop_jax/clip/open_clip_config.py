"""The dimensions of a CLIP of open_clip, from its `open_clip_config.json`.

The tables name every key that open_clip 3.3 knows (`CLIPVisionCfg`, `CLIPTextCfg` and the arguments
of its model classes), with open_clip's defaults.
"""

import re
from collections.abc import Mapping
from typing import Any

from coop_jax.clip import pixels, tables
from coop_jax.clip.config import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.tables import (
    BOOLEAN,
    EPSILON,
    OBJECT,
    OTHER,
    REQUIRED,
    RESTORE,
    TEXT,
    Key,
    Values,
    choice,
    ignored,
    number,
    refusal,
    unsupported,
    whole,
)
from coop_jax.clip.weights import Tensors

FILE = {
    "model_cfg": Key(OBJECT, "both towers", REQUIRED),
    "preprocess_cfg": Key(OBJECT.or_null(), "the pixels"),
}

MODEL = {
    "multimodal_cfg": unsupported("a text decoder (CoCa)", choice(None)),
    "vision_cfg": Key(OBJECT, "the image tower", REQUIRED),
    "text_cfg": Key(OBJECT, "the text tower", REQUIRED),
    "embed_dim": Key(tables.WIDTH, "the space of images and texts", REQUIRED),
    "quick_gelu": Key(BOOLEAN.or_null(), "the activation of both towers but timm's", False),
    "init_logit_bias": Key(number(-1e6, 1e6).or_null(), "whether the logits have a bias"),
    "custom_text": ignored(
        "how the tensors are named, which they say themselves", BOOLEAN.or_null()
    ),
    "init_logit_scale": ignored("where training began; the file has the learned one"),
    "nonscalar_logit_scale": ignored("a shape, of one number either way"),
    "output_dict": ignored("how open_clip hands the features over"),
}

GELU = {"approximate": Key(choice("none", "tanh"), "which GELU", "none")}
NORM = {
    "eps": Key(EPSILON, "epsilon of all normalisations", 1e-5),
    "elementwise_affine": ignored("the default", choice(True)),
    "bias": ignored("the default", choice(True)),
}

BLOCKS = {
    "ls_init_value": unsupported("layer scale", choice(None)),
    "qk_norm": unsupported("a normalisation of queries and keys"),
    "scaled_cosine_attn": unsupported("scaled cosine attention"),
    "scale_heads": unsupported("a scale of every head"),
    "scale_attn_inner": unsupported("a normalisation inside the attention"),
    "scale_attn": unsupported("a normalisation behind the attention"),
    "scale_fc": unsupported("a normalisation inside the MLP"),
    "block_type": ignored(
        "'custom' computes the same without the switches above", choice(None, "default", "custom")
    ),
    "mlp_ratio": Key(number(0, 64), "width of the MLPs over that of the tower", 4.0),
    "act_kwargs": Key(OBJECT.or_null(), "which GELU"),
    "norm_kwargs": Key(OBJECT.or_null(), "epsilon"),
}

SIGLIP = re.compile(r"(vit_(\w+)_patch(\d+)_siglip_(\d+))(\.\w+)?")
SIGLIP_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
SIGLIP_TOWERS = {
    "vit_base_patch32_siglip_256": "gelu_tanh",
    "vit_base_patch16_siglip_224": "gelu",
    "vit_base_patch16_siglip_256": "gelu",
    "vit_base_patch16_siglip_384": "gelu",
    "vit_base_patch16_siglip_512": "gelu",
    "vit_large_patch16_siglip_256": "gelu",
    "vit_large_patch16_siglip_384": "gelu",
    "vit_large_patch16_siglip_512": "gelu_tanh",
    "vit_so400m_patch14_siglip_224": "gelu",
    "vit_so400m_patch14_siglip_378": "gelu",
    "vit_so400m_patch14_siglip_384": "gelu",
    "vit_so400m_patch16_siglip_256": "gelu_tanh",
    "vit_so400m_patch16_siglip_384": "gelu_tanh",
    "vit_so400m_patch16_siglip_512": "gelu_tanh",
    "vit_giantopt_patch16_siglip_256": "gelu_tanh",
    "vit_giantopt_patch16_siglip_384": "gelu_tanh",
}
"""Timm's SigLIP towers and the activation that timm gives each; their epsilon is 1e-6."""


def _is_tower(value: Any) -> bool:
    name = SIGLIP.fullmatch(value) if isinstance(value, str) else None
    return value in (None, "") or (name is not None and name[1] in SIGLIP_TOWERS)


def _is_layers(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) == 4 and all(map(whole(1, 48).hold, value))
    return tables.LAYERS.hold(value)


def _square(values: Values) -> Values:
    """The side of a square, or both its sides."""
    return Values(
        f"{values.words} (of both sides)",
        lambda value: (
            values.hold(value)
            or (
                isinstance(value, list)
                and len(value) == 2
                and all(map(values.hold, value))
                and value[0] == value[1]
            )
        ),
    )


VISION = {
    "timm_model_name": Key(
        Values("null or one of timm's SigLIP towers", _is_tower),
        "the image tower, in place of the keys on layers, width, patches and switches",
        None,
        f"other image towers of timm's: {OTHER}",
    ),
    "attentional_pool": unsupported("pooling by several queries (CoCa)"),
    **BLOCKS,
    "layers": Key(
        Values("a whole number from 1 to 512, or four from 1 to 48", _is_layers), "depth", 12
    ),
    "width": Key(tables.WIDTH, "the image tower's width", 768),
    "head_width": Key(tables.WIDTH, "the heads are as many as fit into the width", 64),
    "patch_size": Key(_square(tables.SIDE).or_null(), "side of the patches", 16),
    "image_size": Key(_square(tables.SIDE), "side of the images", 224),
    "pool_type": Key(
        choice("tok", "avg"),
        "the class token or the patches' average",
        "tok",
        f"other poolings: {OTHER}",
    ),
    "final_ln_after_pool": Key(BOOLEAN.or_null(), "where the last normalisation is", False),
    "no_ln_pre": Key(BOOLEAN.or_null(), "whether there is a first normalisation", False),
    "pos_embed_type": ignored(
        "the positions are stored either way", choice("learnable", "sin_cos_2d")
    ),
    "timm_pool": Key(TEXT.or_null(), "pooling of a tower of timm's", "avg"),
    "timm_proj": Key(TEXT.or_null(), "projection of a tower of timm's", "linear"),
    "timm_proj_bias": ignored("a bias of the projection that a SigLIP tower has not"),
    "timm_model_pretrained": ignored("where training began"),
    "timm_drop": ignored("training only"),
    "timm_drop_path": ignored("training only"),
    "patch_dropout": ignored("training only"),
    "attn_pooler_queries": ignored("read with attentional_pool alone"),
    "attn_pooler_heads": ignored("read with attentional_pool alone"),
    "output_tokens": ignored("what is handed over beside the feature"),
}

TEXT_TOWER = {
    "hf_model_name": unsupported("a text tower of transformers'", choice(None, "")),
    "embed_cls": unsupported("a class token in the text tower (CoCa)"),
    **BLOCKS,
    "context_length": Key(tables.CONTEXT, "number of positions", 77),
    "vocab_size": Key(tables.VOCABULARY, "number of token embeddings", 49408),
    "width": Key(tables.WIDTH, "the text tower's width", 512),
    "heads": Key(tables.HEADS, "the text tower's heads", 8),
    "layers": Key(tables.LAYERS, "depth", 12),
    "no_causal_mask": Key(BOOLEAN.or_null(), "whether a token sees those behind it", False),
    "pool_type": Key(
        choice("argmax", "eos", "last"),
        "the largest id, the first eos_id, or the last position",
        "argmax",
        f"other poolings: {OTHER}",
    ),
    "eos_id": Key(tables.TOKEN, "where pool_type 'eos' reads the feature", 2),
    "proj_type": Key(choice("linear", "none", None), "whether a projection follows", "linear"),
    "proj_bias": Key(BOOLEAN.or_null(), "whether it has a bias", False),
    "final_ln_after_pool": ignored("open_clip's text tower does not read it", choice(False, None)),
    "pad_id": ignored("of a mask that no config switches on; the tokenizer pads"),
    "output_tokens": ignored("what is handed over beside the feature"),
    "hf_tokenizer_name": Key(TEXT.or_null(), "the tokenizer"),
    "tokenizer_mode": Key(TEXT.or_null(), "the tokenizer"),
    "tokenizer_kwargs": Key(OBJECT.or_null(), "the tokenizer"),
    "hf_model_pretrained": ignored("read with hf_model_name alone"),
    "hf_proj_type": ignored("read with hf_model_name alone"),
    "hf_pooler_type": ignored("read with hf_model_name alone"),
}


def _tower(
    model: Mapping[str, Any], name: str, table: Mapping[str, Key], where: str
) -> dict[str, Any]:
    """Return the values of a tower's keys, its activation and epsilon among them."""
    tower = tables.read(table, model[name], name, where)
    keywords = tower["act_kwargs"] or {}
    gelu = tables.read(GELU, keywords, f"{name}.act_kwargs", where)
    norm = tables.read(NORM, tower["norm_kwargs"] or {}, f"{name}.norm_kwargs", where)
    if model["quick_gelu"] and keywords:
        expected = f"{name}.act_kwargs to be null beside quick_gelu"
        raise refusal(where, expected, keywords, RESTORE)
    activation = "gelu_tanh" if gelu["approximate"] == "tanh" else "gelu"
    tower["activation"] = "quick_gelu" if model["quick_gelu"] else activation
    tower["epsilon"] = norm["eps"]
    return tower


def _transformer(
    tower: Mapping[str, Any], heads: int, key: str, mlp_ratio: str, where: str
) -> TransformerConfig:
    """Return the blocks of a tower; `key` says the heads and `mlp_ratio` the MLPs, for errors."""
    tables.check_heads(tower["width"], heads, key, where)
    mlp_width = int(tower["width"] * tower["mlp_ratio"])
    if mlp_width < 1:
        expected = f"{mlp_ratio} to give an MLP of at least one unit"
        raise refusal(where, expected, tower["mlp_ratio"], RESTORE)
    return TransformerConfig(
        width=tower["width"],
        layers=tower["layers"],
        heads=heads,
        mlp_width=mlp_width,
        activation=tower["activation"],
        epsilon=tower["epsilon"],
    )


def from_open_clip(tensors: Tensors, stated: Mapping[str, Any], where: str) -> CLIPConfig:
    """Read the dimensions off an `open_clip_config.json`, with open_clip's defaults.

    Args:
        tensors: the weights. They say how large a tower of timm's is, of which the config has the
            name alone, and whether there is a logit bias.
        stated: the whole file.
        where: the file, for errors.

    Raises:
        InputError: a value that is damaged or not supported, or an unknown key, by its name.
    """
    file = tables.read(FILE, stated, "", where)
    model = tables.read(MODEL, file["model_cfg"], "model_cfg", where)
    tower = _tower(model, "vision_cfg", VISION, where)
    text = _tower(model, "text_cfg", TEXT_TOWER, where)
    if tower["timm_model_name"]:
        vision = _siglip(tensors, tower, model["embed_dim"], where)
    elif isinstance(tower["layers"], list):
        vision = _resnet(tower, where)
    else:
        vision = _vit(tower, where)
    return CLIPConfig(
        model["embed_dim"],
        vision,
        _text(text, model["embed_dim"], where),
        pixels.from_open_clip(file["preprocess_cfg"], where),
        # Without one in the file, open_clip adds zero.
        logit_bias=model["init_logit_bias"] is not None and "logit_bias" in tensors.names(),
    )


def _side(value: int | list[int]) -> int:
    return value[0] if isinstance(value, list) else value


def _vit(tower: Mapping[str, Any], where: str) -> ViTConfig:
    if tower["patch_size"] is None:
        expected = f"vision_cfg.patch_size to be {tables.SIDE.words} in a vision transformer"
        raise refusal(where, expected, None, RESTORE)
    image_size, patch_size = _side(tower["image_size"]), _side(tower["patch_size"])
    tables.check_patches(image_size, patch_size, "vision_cfg", where)
    heads = tower["width"] // tower["head_width"]
    return ViTConfig(
        image_size,
        patch_size,
        _transformer(tower, heads, "vision_cfg.head_width", "vision_cfg.mlp_ratio", where),
        pooling="average" if tower["pool_type"] == "avg" else "class",
        initial_norm=not tower["no_ln_pre"],
        pool_first=bool(tower["final_ln_after_pool"]),
    )


def _resnet(tower: Mapping[str, Any], where: str) -> ResNetConfig:
    image_size, width = _side(tower["image_size"]), tower["width"]
    heads = width * 32 // tower["head_width"]
    tables.check_heads(width * 32, heads, "vision_cfg.head_width", where)
    if image_size % 32:
        expected = "vision_cfg.image_size to be a multiple of 32 in a ResNet"
        raise refusal(where, expected, image_size, RESTORE)
    return ResNetConfig(image_size, width, tuple(tower["layers"]), heads)


def _siglip(tensors: Tensors, tower: Mapping[str, Any], embedding: int, where: str) -> ViTConfig:
    """Return a SigLIP tower of timm's: heads, patches and activation by its name."""
    for key, needed in (("timm_pool", "map"), ("timm_proj", "none")):
        if tower[key] != needed:
            expected = f"vision_cfg.{key} to be {needed!r} in a SigLIP tower"
            raise refusal(where, expected, tower[key], f"other poolings and projections: {OTHER}")
    name = SIGLIP.fullmatch(tower["timm_model_name"])
    assert name is not None, "the table let another tower pass"
    size, patch_size, image_size = name[2], int(name[3]), int(name[4])
    if _side(tower["image_size"]) != image_size:
        expected = f"vision_cfg.image_size to be {image_size}, as {name[1]} has"
        raise refusal(where, expected, tower["image_size"], RESTORE)
    blocks = "visual.trunk.blocks."
    layers = {tensor.split(".")[3] for tensor in tensors.names() if tensor.startswith(blocks)}
    first = f"{blocks}0.mlp.fc1.weight"
    if first not in tensors.names() or len(tensors.shape(first)) != 2:
        raise refusal(where, f"weights of {name[1]}", f"no matrix {first}", RESTORE, str)
    mlp_width, width = tensors.shape(first)
    if width != embedding:
        expected = f"model_cfg.embed_dim to be {width}, the width of the image tower's weights"
        raise refusal(where, expected, embedding, RESTORE)
    tables.check_heads(width, SIGLIP_HEADS[size], "the weights of the image tower", where)
    return ViTConfig(
        image_size,
        patch_size,
        TransformerConfig(
            width,
            len(layers),
            SIGLIP_HEADS[size],
            mlp_width,
            activation=SIGLIP_TOWERS[name[1]],
            epsilon=1e-6,
        ),
        pooling="attention",
        initial_norm=False,
        patch_bias=True,
        projection=False,
    )


def _text(text: Mapping[str, Any], embedding: int, where: str) -> TextConfig:
    if text["proj_type"] == "none" and text["width"] != embedding:
        expected = f"text_cfg.width to be embed_dim, {embedding}, without a projection"
        raise refusal(where, expected, text["width"], RESTORE)
    linear = "linear" if text["proj_bias"] else "matrix"
    return TextConfig(
        text["vocab_size"],
        text["context_length"],
        _transformer(text, text["heads"], "text_cfg.heads", "text_cfg.mlp_ratio", where),
        end_token=text["eos_id"] if text["pool_type"] == "eos" else None,
        causal=not text["no_causal_mask"],
        pooling="last" if text["pool_type"] == "last" else "end",
        projection="none" if text["proj_type"] == "none" else linear,
    )
