"""Prompt learning methods, one file each; `create` finds them by name."""

from coop_jax.methods.base import (
    ClosedForm,
    Derived,
    Learned,
    Method,
    available,
    create,
    default_config,
    has_texts_per_image,
    is_closed_form,
    move,
)

__all__ = [
    "ClosedForm",
    "Derived",
    "Learned",
    "Method",
    "available",
    "create",
    "default_config",
    "has_texts_per_image",
    "is_closed_form",
    "move",
]
