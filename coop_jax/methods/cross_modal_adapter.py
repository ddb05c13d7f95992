"""Cross-modal adapter: a bottleneck trained on images and on texts alike (CVPR 2023)."""

from typing import Any

from coop_jax.methods import layers, mixed
from coop_jax.methods.base import Given, Kept

NAME = "cross-modal adapter"
PAPER = "Lin et al., CVPR 2023"

LIMITS = {**mixed.LIMITS, "ratio": (0, 1), "reduction": (1, 10**4)}


def default_config() -> dict[str, Any]:
    """Return the settings of the official script: those of `mixed.default_config`, and others.

    Settings:
        rates: learning rates that are tried.
        decays: weight decays.
        batch_sizes: sizes of a batch, half of which are images and half texts.
        ratio: of the adapter's output in the mean with its input.
        reduction: how many times narrower the bottleneck is.
    """
    return mixed.default_config() | {
        "rates": (1e-4, 1e-5, 1e-6, 1e-7),
        "decays": (0.0, 1e-3, 1e-5),
        "batch_sizes": (8,),
        "ratio": 0.2,
        "reduction": 4,
    }


def recipe() -> dict[str, Any]:
    """Return the official view beside the image itself, its mirror image."""
    return mixed.recipe()


class Method(mixed.CrossModal):
    """A linear layer on features after a bottleneck, in a mean with them as they were.

    It serves the classes that it was trained for, or some of them. Images and texts go through the
    same bottleneck.

    Attributes:
        down: of the bottleneck, `[embedding, hidden]`.
        up: `[hidden, embedding]`.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        super().__init__(given, config)
        size, self.ratio = self.bank.shape[-1], config["ratio"]
        hidden = max(size // config["reduction"], 1)
        self.down = Kept(layers.linear_init(given.rngs.params(), (size, hidden), size))
        self.up = Kept(layers.linear_init(given.rngs.params(), (hidden, size), hidden))

    def head(self) -> mixed.Head:
        """Return the head as it is kept."""
        return mixed.Head(self.weight[...], self.down[...], self.up[...])
