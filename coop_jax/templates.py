"""OpenAI's hand-crafted prompts for ImageNet, which several methods and protocols use."""

from coop_jax import assets

IMAGENET_7 = tuple(assets.read_json("templates.json")["imagenet_7"])
"""OpenAI's selection of seven, which CoOp's ensemble baseline uses (coop_protocol section 8)."""

IMAGENET_80 = tuple(assets.read_json("templates.json")["imagenet_80"])
"""The templates of OpenAI's notebook `Prompt_Engineering_for_ImageNet`, in its order."""
