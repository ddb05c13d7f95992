"""Prompt learning methods, one file each; `create` finds them by name."""

from coop_jax.methods.base import Derived, Learned, Method, available, create, default_config

__all__ = ["Derived", "Learned", "Method", "available", "create", "default_config"]
