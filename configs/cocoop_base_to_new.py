r"""CoCoOp paper, Table 1: from base to new classes of one dataset.

Words: cocoop or coop, a dataset, halves or class_incremental (which adds all classes together), a
precision.

    coop_jax run --config=cocoop_base_to_new:dtd,cocoop \
        --config.data_dir=$DATA --workdir=DIR

ViT-B/16, 16 shots, seeds 1 to 3, context from "a photo of a". CoCoOp: 10 epochs of batches of 1;
CoOp: 200 epochs (50 on ImageNet) of batches of 32.
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.base_to_new(argument))
