r"""CoOp paper, Table 1: from ImageNet to V2, Sketch, A and R.

Words: coop or linear_probe, a backbone, m16 or m4, a precision.

    coop_jax run --config=coop_domain_generalization:rn50,m4 \
        --config.data_dir=$DATA --workdir=DIR

16 shots, seeds 1 to 3, 50 epochs.
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.coop_domain_generalization(argument))
