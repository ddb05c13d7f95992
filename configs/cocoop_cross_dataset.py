r"""CoCoOp paper, Table 2: from ImageNet to ten other datasets.

Words: cocoop or coop, a precision.

    coop_jax run --config=cocoop_cross_dataset:cocoop \
        --config.data_dir=$DATA --workdir=DIR

ViT-B/16, 16 shots, seeds 1 to 3, context from "a photo of a".
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.cross_dataset(argument))
