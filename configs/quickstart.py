"""The quickstart: the embedded CLIP on scikit-learn's handwritten digits.

coop_jax run --config=quickstart --workdir=/tmp/quickstart
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(method: str = "coop") -> ConfigDict:
    """Zero-shot CLIP and the method at 1, 2, 4, 8 and 16 shots, seeds 1 to 3."""
    templates = (
        "a photo of a {}.",
        "a photo of the digit {}.",
        "a handwritten {}.",
        "a picture of the number {}.",
    )
    return ConfigDict(presets.digits(method) | {"templates": templates})
