"""Record tiny random CLIPs and a SigLIP of transformers (which needs torch), with their outputs.

python tests/record_transformers.py tests/data
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

CASES = {
    "quick_gelu": {"seed": 0, "activation": "quick_gelu", "end_token": 98, "shard": "1GB"},
    "gelu_sharded": {"seed": 1, "activation": "gelu", "end_token": 2, "shard": "40KB"},
}


TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "bos_token_id": 97,
    "pad_token_id": 1,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 20,
    "patch_size": 5,
}


def record(folder: Path, *, seed: int, activation: str, end_token: int, shard: str) -> None:
    """Save a random CLIP into the folder, and inputs with their features as `expected.npz`."""
    from transformers import CLIPConfig, CLIPModel

    text, vision = TEXT | {"eos_token_id": end_token}, VISION
    towers = [tower | {"hidden_act": activation} for tower in (text, vision)]
    config = CLIPConfig(text_config=towers[0], vision_config=towers[1], projection_dim=16)
    save(folder, CLIPModel, config, seed, shard)


def record_siglip(folder: Path, *, seed: int) -> None:
    """Save a random SigLIP into the folder, and inputs with their features as `expected.npz`."""
    from transformers import SiglipConfig, SiglipModel

    text = TEXT | {"projection_size": 24, "eos_token_id": 98}
    save(folder, SiglipModel, SiglipConfig(text_config=text, vision_config=VISION), seed)


def save(folder: Path, kind: Any, config: Any, seed: int, shard: str = "1GB") -> None:
    """Save a random model and what it computes."""
    import torch

    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = torch.randint(3, 97, (5, 20))
        tokens[:, 0] = 97
        for row, end in enumerate((4, 7, 19, 12, 5)):
            tokens[row, end] = 98
            tokens[row, end + 1 :] = 1
        images = torch.randn(4, 3, 20, 20)
        outputs = model(input_ids=tokens, pixel_values=images)
    model.save_pretrained(folder, max_shard_size=shard)
    np.savez(
        folder / "expected.npz",
        tokens=tokens.numpy().astype(np.int32),
        images=images.numpy(),
        text_features=outputs.text_embeds.numpy(),
        image_features=outputs.image_embeds.numpy(),
        logits=outputs.logits_per_image.numpy(),
    )


if __name__ == "__main__":
    for name, case in CASES.items():
        record(Path(sys.argv[1]) / f"transformers_{name}", **case)
    record_siglip(Path(sys.argv[1]) / "transformers_siglip", seed=2)
