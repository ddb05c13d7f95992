"""Configs of transformers: defaults, older forms, and the keys that every model's has."""

import pytest
from test_configs import CLIP, SIGLIP_HF, change, hugging_face

from coop_jax.clip.config import TransformerConfig
from coop_jax.errors import InputError


def test_older_configs_of_transformers_are_merged_as_transformers_does():
    plain = hugging_face(CLIP)
    for name in ("text_config", "vision_config"):
        older = {key: value for key, value in CLIP.items() if key != name}
        for stated in ({}, {name: None}, {name: {"hidden_size": 48}}):
            assert hugging_face(older | stated | {f"{name}_dict": CLIP[name]}) == plain
    # What it leaves out has its default, whatever the newer name says.
    config = hugging_face(CLIP | {"text_config_dict": {}})
    assert config.text.transformer == TransformerConfig(512, 12, 8, 2048)
    assert config.vision == plain.vision


def test_siglip_of_transformers_has_its_defaults():
    config = hugging_face({"model_type": "siglip"})
    assert config.vision.transformer == TransformerConfig(768, 12, 12, 3072, "gelu_tanh", 1e-6)
    assert (config.text.vocabulary_size, config.text.context_length) == (32000, 64)
    assert (config.embedding, config.logit_bias) == (768, True)
    config = hugging_face(SIGLIP_HF)
    assert (config.text.transformer.width, config.embedding) == (32, 768)
    with pytest.raises(InputError, match="projection_size to be the image tower's 768, got 32"):
        hugging_face(change(SIGLIP_HF, "text_config.projection_size", None))
    with pytest.raises(InputError, match="vision_use_head to be True, got False"):
        hugging_face(change(SIGLIP_HF, "vision_config.vision_use_head", False))
    with pytest.raises(InputError, match=r"got 'siglip2', .*NaFlex"):
        hugging_face(SIGLIP_HF | {"model_type": "siglip2"})


OF_TRANSFORMERS_4 = """_name_or_path add_cross_attention architectures bad_words_ids bos_token_id
chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
do_sample dropout early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_factor
initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length
model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
typical_p use_bfloat16"""
"""What transformers 4 wrote into the config of each tower, whatever the model."""


def test_whole_configs_of_transformers_4_are_read():
    null = dict.fromkeys(OF_TRANSFORMERS_4.split())
    for config in (CLIP, SIGLIP_HF):
        whole = dict(config)
        for tower in ("text_config", "vision_config"):
            whole[tower] = null | config[tower]
        whole["text_config"]["pad_token_id"] = 1
        whole["vision_config"]["eos_token_id"] = None
        assert hugging_face(whole) == hugging_face(config)
    nulls = {"text_config_dict": None, "vision_config_dict": None}
    assert hugging_face(CLIP | nulls) == hugging_face(CLIP)


def test_keys_that_every_model_of_transformers_has_change_nothing():
    texts = {"pruned_heads": {}, "torch_dtype": "float16", "top_k": 50, "id2label": {"0": "A"}}
    for key, value in texts.items():
        for path in (key, f"text_config.{key}", f"vision_config.{key}"):
            assert hugging_face(change(CLIP, path, value)) == hugging_face(CLIP)
    for key in ("quantization_config", "per_layer_config", "auto_map", "pruned_heads"):
        with pytest.raises(InputError, match=f"expected {key} to be .*not supported, use another"):
            hugging_face(CLIP | {key: {"0": [1]}})
