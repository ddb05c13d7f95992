"""Cross-modal linear probing: texts are training samples beside the images (CVPR 2023)."""

from typing import Any

from coop_jax.methods import mixed

NAME = "cross-modal linear probe"
PAPER = "Lin et al., CVPR 2023"

LIMITS = mixed.LIMITS


def default_config() -> dict[str, Any]:
    """Return the settings of the official script: those of `mixed.default_config`, and others.

    Settings:
        rates: learning rates that are tried.
        decays: weight decays.
        batch_sizes: sizes of a batch, half of which are images and half texts.
    """
    return mixed.default_config() | {
        "rates": (1e-3, 1e-4),
        "decays": (0.0, 1e-2, 1e-4),
        "batch_sizes": (8, 32),
    }


def recipe() -> dict[str, Any]:
    """Return the official view beside the image itself, its mirror image."""
    return mixed.recipe()


class Method(mixed.CrossModal):
    """A linear layer on image features of length one, without a bias.

    It serves the classes that it was trained for, or some of them.
    """
