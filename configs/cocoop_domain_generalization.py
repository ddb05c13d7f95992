r"""CoCoOp paper, Table 3: from ImageNet to V2, Sketch, A and R.

Words: cocoop or coop, a precision.

    coop_jax run --config=cocoop_domain_generalization:cocoop \
        --config.data_dir=$DATA --workdir=DIR

ViT-B/16, 16 shots, seeds 1 to 3, context from "a photo of a".
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.domain_generalization(argument))
