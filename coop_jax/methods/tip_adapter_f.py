"""Tip-Adapter-F: a cache of few-shot features whose keys are trained (Zhang et al., ECCV 2022)."""

from collections.abc import Mapping
from typing import Any

from coop_jax.clip import CLIP
from coop_jax.methods import cache
from coop_jax.methods.base import Data, Given, Learned, Stage

NAME = "Tip-Adapter-F"
PAPER = "Zhang et al., ECCV 2022"

LIMITS = cache.LIMITS


def default_config() -> dict[str, Any]:
    """Return Tip-Adapter-F's settings: those of `cache.default_config`.

    The keys are trained at `alpha` and `beta`.
    """
    return cache.default_config()


def recipe() -> dict[str, Any]:
    """Return what the official code trains with: 20 epochs (100 on EuroSAT) of AdamW."""
    return {
        "epochs": 20,
        "batch_size": 256,
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-3,
            "epsilon": 1e-4,
            "weight_decay": 0.01,
            "schedule_by": "step",
            "warmup_epochs": 0,
        },
        "augmentation": {"scale": (0.5, 1.0)},
    }


class Method(cache.Cached):
    """The cache with keys that are learned, then a search. It serves the classes it was built for.

    Training ends with the last epoch. The official code takes the best epoch on test images, and
    reports the better of the test accuracies before and after the search.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config, Learned)

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return the training of the keys and a stage without steps, the search."""
        training = Stage.of(config, drop_last=False)
        return (training, Stage(epochs=0)) if self.uses else (training,)

    def prepare(self, clip: CLIP, stage: int, data: Data) -> Data:
        """Build the cache before the training; search alpha and beta after it."""
        if stage == 0:
            self.build(data)
        else:
            self.search(clip, data)
        return data
