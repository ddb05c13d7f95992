r"""CoOp paper, Figure 3: linear-probe CLIP on one dataset.

Words: a dataset, a backbone and a precision, as in coop_few_shot.py.

    coop_jax run --config=linear_probe:dtd \
        --config.data_dir=$DATA --workdir=DIR

Logistic regression on image features, C sought on few-shot validation images (protocol
section 10).
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.linear_probe(argument))
