r"""CoOp paper, Figure 3 and its ablations: few-shot learning on one dataset.

Words: a dataset (imagenet, caltech101, oxford_pets, stanford_cars, oxford_flowers, food101,
fgvc_aircraft, sun397, dtd, eurosat, ucf101), a backbone (rn50, rn101, vit_b32, vit_b16), a class
token position (end, middle, front), a context (m16, m8, m4, phrase), unified or class_specific,
float32 or float16 (the official precision).

    coop_jax run --config=coop_few_shot:dtd,middle,class_specific \
        --config.data_dir=$DATA --workdir=DIR

Zero-shot CLIP, then seeds 1 to 3 at 1, 2, 4, 8 and 16 shots (phrase: at 16 alone): 50, 100, 100,
200 and 200 epochs, 50 on ImageNet. Published, RN50, M = 16, end: `coop_jax report DIR`
shows it beside.
"""

from ml_collections import ConfigDict

from coop_jax import presets


def get_config(argument: str = "") -> ConfigDict:
    """The settings; the argument's words may come in any order, and each has a default."""
    return ConfigDict(presets.coop_few_shot(argument))
