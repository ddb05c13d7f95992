"""The quickstart: the embedded CLIP on scikit-learn's handwritten digits.

python -m coop_jax.main --config=configs/quickstart.py --workdir=/tmp/quickstart
"""

from ml_collections import ConfigDict

import coop_jax.config


def get_config() -> ConfigDict:
    """Zero-shot CLIP and CoOp (M = 16, end) at 1 to 16 shots, seeds 1 to 3."""
    config = ConfigDict(coop_jax.config.default())
    config.augmentation.scale = (0.6, 1.0)
    config.augmentation.flip = 0.0
    return config
