"""Train the tiny CLIP of `coop_jax/assets/tiny_clip` from pictures that this script draws.

    python tools/train_tiny_clip.py --fonts /usr/share/fonts --output coop_jax/assets/tiny_clip

No photograph, no data set and no handwriting is used: glyphs of printed typefaces and geometric
shapes are drawn in random styles, captions say what is drawn and how.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import safetensors.numpy
from tiny_clip import captions, fonts, pool, training, vocabulary

from coop_jax.clip.config import OPENAI_MEAN, OPENAI_STD, CLIPConfig
from coop_jax.clip.model import CLIP
from coop_jax.clip.weights import transformers_tensors


def describe(config: CLIPConfig) -> dict:
    """The `config.json` from which transformers builds the same model."""
    transformer, last = config.text.transformer, config.text.vocabulary_size - 1
    common = {
        "hidden_size": transformer.width,
        "intermediate_size": transformer.mlp_width,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": transformer.heads,
        "hidden_act": transformer.activation,
        "layer_norm_eps": transformer.epsilon,
        "projection_dim": config.embedding,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embedding,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": config.text.vocabulary_size,
            "max_position_embeddings": config.text.context_length,
            "bos_token_id": last - 1,
            "eos_token_id": last,
            "pad_token_id": last,
            **common,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 32,
            "patch_size": 8,
            **common,
        },
    }


PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 32},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_MEAN,
    "image_std": OPENAI_STD,
    "do_convert_rgb": True,
}


def save(clip: CLIP, folder: Path) -> None:
    """Weights and configuration in the layout of a Hugging Face CLIP."""
    weights = safetensors.numpy.save(transformers_tensors(clip), metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps(describe(clip.config), indent=2) + "\n")
    text = json.dumps(PREPROCESSOR, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text)


def arguments() -> argparse.Namespace:
    """The command line: where things are, and every field of `training.Settings`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fonts", type=Path, required=True, help="folder of .ttf and .otf files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--pictures", type=int, default=150_000, help="how many to draw")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="drawing processes")
    for field in dataclasses.fields(training.Settings):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    return parser.parse_args()


def main() -> None:
    """Draw, train, save."""
    options = vars(arguments())
    settings = training.Settings(
        **{field.name: options[field.name] for field in dataclasses.fields(training.Settings)}
    )
    faces = fonts.find(options["fonts"])
    print(f"{len(faces)} faces of {len({face.family for face in faces})} families")
    tokenizer = vocabulary.build(captions.vocabulary())
    pictures = pool.fill(faces, options["pictures"], settings.seed, options["workers"])
    print(f"{len(pictures.pixels)} pictures, {tokenizer.get_vocab_size()} tokens", flush=True)
    output = options["output"]
    output.mkdir(parents=True, exist_ok=True)
    vocabulary.save(tokenizer, output)
    training.train(pictures, tokenizer, settings, lambda clip: save(clip, output))


if __name__ == "__main__":
    main()
