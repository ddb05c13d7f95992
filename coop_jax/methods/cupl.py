"""CuPL: sentences that describe a class instead of one hand-crafted prompt (ICCV 2023)."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from coop_jax.clip import CLIP, unit
from coop_jax.methods import base, descriptions
from coop_jax.methods.base import Given, Kept, Stage

NAME = "CuPL"
PAPER = "Pratt et al., ICCV 2023"

FILES = NEEDED = ("sentences",)


def default_config() -> dict[str, Any]:
    """Return CuPL's settings.

    Settings:
        sentences: a JSON file of class names with lists of sentences; without one, those that the
            classes bring.
        templates: hand-crafted prompts with {} for the class name that count beside the sentences,
            each as much as one of them; none if empty.
        truncate: cut texts of more tokens than the CLIP reads, as the official code does; else they
            are refused.
    """
    return {"sentences": "", "templates": (), "truncate": False}


class Method(base.Method):
    """Logits of the mean of each class's sentences; nothing is trained.

    Attributes:
        bank: `[classes, embedding]`, means of features of length one, at length one. It is saved,
            so that a file that has changed changes nothing for classes that are known.
    """

    uses = frozenset({"sentences"})

    def __init__(self, given: Given, config: dict[str, Any]):
        found = descriptions.of_classes(given, config["sentences"])
        if templates := config["templates"]:
            found = found.beside(given, templates)
        features = descriptions.features(
            given,
            found.texts,
            found.source,
            truncate=config["truncate"],
            advice="shorten them, or set truncate",
        )
        mean = descriptions.mean(features, found.owners, len(given.classes))
        self.bank = Kept(unit(mean), per_class=True, unseen="initial")
        self.source = found.source

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return no stage."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the file's name with a digest of what it holds."""
        return {"sentences": self.source}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return the means of the classes' sentences."""
        return self.bank[...]
