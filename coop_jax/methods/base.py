"""What a method is: learned variables, and logits from image features and the frozen CLIP."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, Tokenizer
from coop_jax.clip.tokenizer import clean
from coop_jax.errors import InputError
from coop_jax.methods.prompts import readable

NOT_METHODS = ("base", "prompts")


class Learned(nnx.Param):
    """A variable that may learn: the only kind that gets gradients and is saved."""


class Derived(nnx.Variable):
    """Computed from the class names and the frozen CLIP at construction; never saved."""


@runtime_checkable
class Method(Protocol):
    """The interface that training and evaluation see; implementations are NNX modules.

    The frozen CLIP is handed in at every call, so that it stays an argument of whatever is
    compiled (DESIGN section 2).
    """

    def settings(self) -> dict[str, Any]:
        """What a record of results says of the method, as it is rather than as was asked for."""
        ...

    def encode_classes(self, clip: CLIP) -> Any:
        """All of the computation that does not depend on images, as a pytree."""
        ...

    def logits(
        self, clip: CLIP, classes: Any, image_features: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch classes"]:
        """Float32 logits; `classes` is what `encode_classes` gave, features are unnormalised."""
        ...


def cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    weights: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Weighted mean cross-entropy; a weight of zero leaves out a row that pads the batch."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    return -jnp.sum(picked * weights) / jnp.sum(weights)


def available() -> list[str]:
    """The names of all methods: the modules of this package."""
    package = importlib.import_module("coop_jax.methods")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name not in NOT_METHODS)


def default_config(name: str) -> dict[str, Any]:
    """A method's settings with their defaults.

    Raises:
        InputError: no method of that name.
    """
    return _module(name).default_config()


def check_class_names(names: Sequence[str]) -> None:
    """Refuse a list of class names that cannot define a classifier.

    Raises:
        InputError: the list is empty, a name is empty, or names read the same to the tokenizer.
    """
    if not names:
        raise InputError("expected at least one class name, got none; name the classes")
    spelled = [clean(readable(name)) for name in names]
    empty = [str(label) for label, name in enumerate(spelled) if not name]
    if empty:
        raise InputError(
            f"expected a name for every class, got an empty one for label {', '.join(empty)};"
            " name it"
        )
    repeats = [f"{name!r} ({count} times)" for name, count in Counter(spelled).items() if count > 1]
    if repeats:
        raise InputError(
            f"expected different class names, got {', '.join(repeats)}; rename or merge these"
            " classes"
        )


def create(
    name: str,
    clip: CLIP,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
) -> Any:
    """A method ready to train or evaluate on these classes.

    Args:
        name: a module of `coop_jax.methods`.
        clip: the frozen CLIP; only read, not kept.
        tokenizer: the CLIP's tokenizer.
        class_names: one per label; underscores read as spaces.
        config: settings that differ from the method's `default_config()`.
        seed: of the random initialisation.

    Raises:
        InputError: an unknown method or setting, or class names that do not fit.
    """
    module = _module(name)
    check_class_names(class_names)
    settings = module.default_config()
    unknown = sorted(set(config or {}) - set(settings))
    if unknown:
        raise InputError(
            f"method {name}: unknown settings {', '.join(unknown)}; valid ones are"
            f" {', '.join(settings) or '(none)'}"
        )
    settings.update(config or {})
    rngs = nnx.Rngs(seed)
    return module.Method(clip, tokenizer, tuple(class_names), settings, rngs=rngs)


def _module(name: str) -> Any:
    if name not in available():
        raise InputError(f"unknown method {name!r}: expected one of {', '.join(available())}")
    return importlib.import_module(f"coop_jax.methods.{name}")
