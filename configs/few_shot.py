"""The few-shot protocol with the official settings, on any dataset and CLIP.

coop_jax run --config=few_shot --config.dataset=FOLDER --workdir=DIR
"""

from ml_collections import ConfigDict

import coop_jax.config


def get_config(method: str = "coop") -> ConfigDict:
    """Zero-shot CLIP with the dataset's own prompt, and the method, at 1 to 16 shots."""
    return ConfigDict(coop_jax.config.default(method))
