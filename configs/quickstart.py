"""The quickstart: the embedded CLIP on scikit-learn's handwritten digits.

coop_jax run --config=quickstart --workdir=/tmp/quickstart
"""

from typing import Any

from ml_collections import ConfigDict

import coop_jax.config


def get_config(method: str = "coop") -> ConfigDict:
    """Zero-shot CLIP and the method at 1, 2, 4, 8 and 16 shots, seeds 1 to 3."""
    config: Any = ConfigDict(coop_jax.config.default(method))
    config.templates = (
        "a photo of a {}.",
        "a photo of the digit {}.",
        "a handwritten {}.",
        "a picture of the number {}.",
    )
    # Digits are not what they were when mirrored or cut to an eighth.
    config.augmentation.scale = (0.6, 1.0)
    config.augmentation.flip = 0.0
    return config
