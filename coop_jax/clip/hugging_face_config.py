"""The dimensions of a CLIP or a SigLIP of transformers, from its `config.json`.

The tables name every key that transformers 5 reads of a `CLIPConfig` and a `SiglipConfig`, with
transformers' defaults, and those that any model of transformers has and that change no feature.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coop_jax.clip import pixels, tables
from coop_jax.clip.config import (
    CLIPConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from coop_jax.clip.tables import (
    EPSILON,
    OBJECT,
    OTHER,
    RESTORE,
    Key,
    Values,
    choice,
    ignored,
    refusal,
    unsupported,
)

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Transformers' names of the three activations: several spell the same function out."""


def _all(reason: str, names: str) -> dict[str, Key]:
    return {name: ignored(reason) for name in names.split()}


ANY_MODEL = {
    **_all(
        "about the file and who wrote it",
        "_name_or_path name_or_path _commit_hash transformers_version architectures model_type"
        " tokenizer_class finetuning_task task_specific_params dtype torch_dtype torchscript"
        " transformers.js_config",
    ),
    **_all(
        "how the same is computed",
        "_attn_implementation attn_implementation _attn_implementation_autoset use_bfloat16",
    ),
    **_all(
        "what is handed over beside the features",
        "return_dict use_return_dict output_hidden_states output_attentions output_scores"
        " return_dict_in_generate tie_last_hidden_states",
    ),
    **_all(
        "training only",
        "attention_dropout dropout initializer_range initializer_factor gradient_checkpointing"
        " logit_scale_init_value",
    ),
    **_all("of classifiers", "id2label label2id num_labels problem_type"),
    **_all(
        "of models that write text, which have a decoder or a cache",
        "is_encoder_decoder is_decoder add_cross_attention cross_attention_hidden_size"
        " tie_encoder_decoder tie_word_embeddings tf_legacy_loss use_cache prefix"
        " decoder_start_token_id bos_token_id eos_token_id pad_token_id sep_token_id max_length"
        " min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty"
        " temperature top_k top_p"
        " typical_p repetition_penalty length_penalty no_repeat_ngram_size"
        " encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id"
        " forced_eos_token_id remove_invalid_values exponential_decay_length_penalty"
        " suppress_tokens begin_suppress_tokens epsilon_cutoff eta_cutoff"
        " encoder_repetition_penalty num_assistant_tokens num_assistant_tokens_schedule"
        " assistant_confidence_threshold assistant_lookbehind target_lookbehind",
    ),
    "chunk_size_feed_forward": ignored("the same, computed in pieces"),
    "pruned_heads": unsupported("a removal of heads", Values("{} or null", lambda x: not x)),
    "quantization_config": unsupported("quantised weights", choice(None)),
    "per_layer_config": unsupported("layers of different kinds", choice(None)),
    "auto_map": unsupported("code of the checkpoint's own", choice(None)),
    "is_causal": unsupported("attention of another kind than the model's", choice(True, None)),
}

TOWER = {
    "num_hidden_layers": Key(tables.LAYERS, "depth", 12),
    "hidden_size": Key(tables.WIDTH, "width", 768),
    "num_attention_heads": Key(tables.HEADS, "heads", 12),
    "intermediate_size": Key(tables.WIDTH, "width of the MLPs", 3072),
    "projection_dim": ignored("read by models of one tower alone"),
}


def _tower(activation: str, epsilon: float, **changes: Key) -> dict[str, Key]:
    names = Values(f"one of {', '.join(ACTIVATIONS)}", choice(*ACTIVATIONS).hold)
    return {
        **ANY_MODEL,
        **TOWER,
        "hidden_act": Key(names, "activation", activation, f"other activations: {OTHER}"),
        "layer_norm_eps": Key(EPSILON, "epsilon of all normalisations", epsilon),
        **changes,
    }


def _text(activation: str, epsilon: float, **changes: Key) -> dict[str, Key]:
    return _tower(activation, epsilon) | changes


def _vision(activation: str, epsilon: float, **changes: Key) -> dict[str, Key]:
    channels = Key(choice(3), "red, green, blue", 3, f"other images: {OTHER}")
    return _tower(
        activation,
        epsilon,
        num_channels=channels,
        image_size=Key(tables.SIDE, "side of the images", 224),
        **changes,
    )


CLIP_TEXT = _text(
    "quick_gelu",
    1e-5,
    vocab_size=Key(tables.VOCABULARY, "number of token embeddings", 49408),
    max_position_embeddings=Key(tables.CONTEXT, "number of positions", 77),
    hidden_size=Key(tables.WIDTH, "width", 512),
    num_attention_heads=Key(tables.HEADS, "heads", 8),
    intermediate_size=Key(tables.WIDTH, "width of the MLPs", 2048),
    eos_token_id=Key(
        tables.TOKEN, "the feature is read at the first; 2 means at the largest id", 49407
    ),
)
CLIP_VISION = _vision("quick_gelu", 1e-5, patch_size=Key(tables.SIDE, "side of the patches", 32))
CLIP_MODEL = {
    "text_config": Key(OBJECT.or_null(), "the text tower"),
    "vision_config": Key(OBJECT.or_null(), "the image tower"),
    "text_config_dict": Key(OBJECT.or_null(), "an older name, which prevails"),
    "vision_config_dict": Key(OBJECT.or_null(), "an older name, which prevails"),
    "projection_dim": Key(tables.WIDTH, "the space of images and texts", 512),
    **ANY_MODEL,
}

SIGLIP_TEXT = _text(
    "gelu_pytorch_tanh",
    1e-6,
    vocab_size=Key(tables.VOCABULARY, "number of token embeddings", 32000),
    max_position_embeddings=Key(tables.CONTEXT, "number of positions", 64),
    projection_size=Key(tables.WIDTH.or_null(), "the joint space; null: hidden_size"),
    eos_token_id=ignored("the feature is read at the last position"),
    is_causal=unsupported("attention of another kind than the model's", choice(False, None)),
)
SIGLIP_VISION = _vision(
    "gelu_pytorch_tanh",
    1e-6,
    patch_size=Key(tables.SIDE, "side of the patches", 16),
    vision_use_head=Key(
        choice(True),
        "the feature is pooled by attention",
        True,
        f"a tower without its head: {OTHER}",
    ),
)
SIGLIP_MODEL = {
    "text_config": Key(OBJECT.or_null(), "the text tower"),
    "vision_config": Key(OBJECT.or_null(), "the image tower"),
    "projection_dim": ignored("read by CLIP's models alone"),
    **ANY_MODEL,
}


def from_hugging_face(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str
) -> CLIPConfig:
    """Read the dimensions off a `config.json`; what it leaves out is transformers' default.

    Args:
        config: the whole file, of model_type "clip" or "siglip" (also SigLIP 2's of fixed size).
        preprocessor: `preprocessor_config.json`, or {}.
        where: the file, for errors.

    Raises:
        InputError: another kind of model, a value that is damaged or not supported, or an unknown
            key, by its name.
    """
    if not isinstance(config, Mapping):
        raise refusal(where, "the file to be an object", config, RESTORE)
    model_type = config.get("model_type")
    if model_type == "clip":
        return _clip(config, preprocessor, where)
    if model_type == "siglip":
        return _siglip(config, preprocessor, where)
    naflex = ", SigLIP 2 for images of any shape (NaFlex)" if model_type == "siglip2" else ""
    raise refusal(
        where,
        "a config.json with model_type 'clip' or 'siglip'",
        f"{tables.shown(model_type)}{naflex}",
        "name a CLIP folder or one of the backbone names",
        str,
    )


def _clip(config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> CLIPConfig:
    model = tables.read(CLIP_MODEL, config, "", where)
    text, vision = (
        _older(model, name, table, where)
        for name, table in (("text_config", CLIP_TEXT), ("vision_config", CLIP_VISION))
    )
    # Old configs say 2 by mistake; transformers then reads the feature at the largest id.
    end_token = text["eos_token_id"]
    return CLIPConfig(
        model["projection_dim"],
        ViTConfig(*_patches(vision, where), _transformer(vision, "vision_config", where)),
        TextConfig(
            text["vocab_size"],
            text["max_position_embeddings"],
            _transformer(text, "text_config", where),
            end_token=None if end_token == 2 else end_token,
        ),
        pixels.from_hugging_face(preprocessor, vision["image_size"], _beside(where)),
    )


def _beside(where: str) -> str:
    """Return the name of the file that says the pixels."""
    return str(Path(where).with_name("preprocessor_config.json"))


def _older(
    model: Mapping[str, Any], name: str, table: Mapping[str, Key], where: str
) -> dict[str, Any]:
    """Return a tower's values; of `text_config_dict` all prevails, its defaults included."""
    stated, older = model[name] or {}, model[f"{name}_dict"]
    values = tables.read(table, stated, name, where)
    if older is None:
        return values
    return tables.read(table, older, f"{name}_dict", where)


def _siglip(config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> CLIPConfig:
    model = tables.read(SIGLIP_MODEL, config, "", where)
    text = tables.read(SIGLIP_TEXT, model["text_config"] or {}, "text_config", where)
    vision = tables.read(SIGLIP_VISION, model["vision_config"] or {}, "vision_config", where)
    embedding = text["hidden_size"] if text["projection_size"] is None else text["projection_size"]
    if embedding != vision["hidden_size"]:
        expected = f"text_config.projection_size to be the image tower's {vision['hidden_size']}"
        raise refusal(where, expected, embedding, RESTORE)
    return CLIPConfig(
        embedding,
        ViTConfig(
            *_patches(vision, where),
            _transformer(vision, "vision_config", where),
            pooling="attention",
            initial_norm=False,
            patch_bias=True,
            projection=False,
        ),
        TextConfig(
            text["vocab_size"],
            text["max_position_embeddings"],
            _transformer(text, "text_config", where),
            causal=False,
            pooling="last",
            projection="linear",
        ),
        pixels.from_hugging_face(preprocessor, vision["image_size"], _beside(where), "siglip"),
        logit_bias=True,
    )


def _patches(vision: Mapping[str, Any], where: str) -> tuple[int, int]:
    tables.check_patches(vision["image_size"], vision["patch_size"], "vision_config", where)
    return vision["image_size"], vision["patch_size"]


def _transformer(tower: Mapping[str, Any], path: str, where: str) -> TransformerConfig:
    width, heads = tower["hidden_size"], tower["num_attention_heads"]
    tables.check_heads(width, heads, f"{path}.num_attention_heads", where)
    return TransformerConfig(
        width=width,
        layers=tower["num_hidden_layers"],
        heads=heads,
        mlp_width=tower["intermediate_size"],
        activation=ACTIVATIONS[tower["hidden_act"]],
        epsilon=tower["layer_norm_eps"],
    )
