r"""Many methods on one dataset, each with its paper's settings, in one table.

Words: a dataset (a name, or the path of own images), then methods; all, if there are none.

    coop_jax run --config=compare:digits --workdir=DIR
    coop_jax run --config=compare:dtd,coop,clap,tip_adapter_f --config.clip.name=ViT-B/16 \
        --config.data_dir=$DATA --workdir=DIR
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_configs(argument: str = "digits", clip: str = "tiny") -> dict[str, ConfigDict]:
    """The settings of each method, by its name; `clip` is what --config.clip.name says."""
    return {name: ConfigDict(each) for name, each in presets.compare(argument, clip).items()}
