"""CoOp's class names, shipped for datasets that do not bring them and to check those that do."""

from coop_jax import assets
from coop_jax.classes import spelled


def shipped(dataset: str) -> tuple[str, ...]:
    """The class names of a dataset of the papers in label order, with spaces (protocol 2.4).

    ImageNet's variants have ImageNet's; ImageNet-A and -R use 200 of them.
    """
    table = assets.read_json("class_names.json")
    names = table.get(dataset) or table["imagenet"]
    return spelled(names.values() if isinstance(names, dict) else names)


def imagenet() -> dict[str, str]:
    """CoOp's names of ImageNet's classes by wnid, in label order."""
    return dict(assets.read_json("class_names.json")["imagenet"])
