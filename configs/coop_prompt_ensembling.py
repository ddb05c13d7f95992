r"""CoOp paper, prompt engineering and ensembling against CoOp on ImageNet.

Words: a backbone and a precision.

    coop_jax run --config=coop_prompt_ensembling:vit_b16 \
        --config.data_dir=$DATA --workdir=DIR

The dataset's own prompt, ensembles of 7 and of 80 templates, and CoOp at 16 shots.
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.prompt_ensembling(argument))
