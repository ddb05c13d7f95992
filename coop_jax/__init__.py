"""coop_jax: prompt learning for CLIP-like models in JAX/Flax, for TPU and GPU."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coop_jax.classifier import Classifier

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    """Import the classifier, and JAX with it, when it is first asked for."""
    if name == "Classifier":
        from coop_jax.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
