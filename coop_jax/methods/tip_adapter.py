"""Tip-Adapter: a cache of few-shot features, without training (Zhang et al., ECCV 2022)."""

from collections.abc import Mapping
from typing import Any

from coop_jax.clip import CLIP
from coop_jax.methods import cache
from coop_jax.methods.base import Data, Given, Kept, Stage

NAME = "Tip-Adapter"
PAPER = "Zhang et al., ECCV 2022"

LIMITS = cache.LIMITS


def default_config() -> dict[str, Any]:
    """Return Tip-Adapter's settings, which are those of `cache.default_config`."""
    return cache.default_config()


def recipe() -> dict[str, Any]:
    """Return how the official code crops the training images."""
    return {"augmentation": {"scale": (0.5, 1.0)}}


class Method(cache.Cached):
    """The cache as it is built. It serves the classes that it was built for, or some of them.

    Where the official code searches alpha and beta on test images (ImageNet), here that is always
    done on the few validation images.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config, Kept)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps."""
        return (Stage(epochs=0),)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Build the cache and search alpha and beta."""
        self.build(data)
        self.search(clip, data)
        return data
