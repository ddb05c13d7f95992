"""What a method is: learned variables, and logits from image features and the frozen CLIP."""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from coop_jax.clip import CLIP, Tokenizer
from coop_jax.clip.tokenizer import check_class_names
from coop_jax.clip.tokenizer import readable as readable
from coop_jax.errors import InputError

NOT_METHODS = ("base", "prompts")


class Learned(nnx.Param):
    """A variable that may learn: the only kind that gets gradients and is saved."""


class Derived(nnx.Variable):
    """Computed from the class names and the frozen CLIP at construction; never saved."""


@runtime_checkable
class Method(Protocol):
    """The interface that training and evaluation see; implementations are NNX modules.

    The frozen CLIP is handed in at every call, so that it stays an argument of whatever is
    compiled (DESIGN section 2). A method that is not trained by gradient steps is a `ClosedForm`
    as well.
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


@runtime_checkable
class ClosedForm(Protocol):
    """What a method has besides when it computes its Learned variables at once."""

    def fit(
        self,
        features: Float[np.ndarray, "train embedding"],
        labels: Int[np.ndarray, " train"],
        val_features: Float[np.ndarray, "val embedding"],
        val_labels: Int[np.ndarray, " val"],
    ) -> None:
        """Set the Learned variables from unnormalised features of images under the test transform.

        Raises:
            InputError: the method cannot be fitted to these images.
        """
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


def has_texts_per_image(method: Method, clip: CLIP) -> bool:
    """Whether every image has texts of its own, so that nothing can be computed for classes alone.

    Devices then share the classes of each image instead of the images of a batch.
    """
    return not jax.tree.leaves(jax.eval_shape(lambda: method.encode_classes(clip)))


def is_closed_form(name: str) -> bool:
    """Whether a method computes what it learns at once.

    Raises:
        InputError: no method of that name.
    """
    return issubclass(_module(name).Method, ClosedForm)


def move(method: Any, fresh: Any, classes: Sequence[str], wanted: Sequence[str]) -> Any:
    """Give what a method has learned to the same method made for other classes.

    A shared context serves any classes. A Learned variable marked `per_class` has a row per class,
    and the rows of the wanted classes are taken.

    Args:
        method: the method that has learned.
        fresh: what receives it; of the same settings.
        classes: what identifies the classes of `method`, in the order of its labels.
        wanted: the same of `fresh`.

    Returns:
        `fresh`.

    Raises:
        InputError: rows are wanted of classes that `method` did not learn.
    """
    unknown = [name for name in wanted if name not in set(classes)]

    def rows(variable: nnx.Variable) -> nnx.Variable:
        if not variable.get_metadata().get("per_class"):
            return variable
        if unknown:
            raise InputError(
                f"expected only classes that were learned, one by one, got {len(unknown)} others"
                f" ({', '.join(unknown[:3])}); what a class-specific method learns cannot move to"
                " them: choose a shared context (e.g. config.method.class_specific=False)"
            )
        return variable.replace(variable[...][jnp.asarray([classes.index(n) for n in wanted])])

    learned = nnx.state(method, Learned)
    nnx.update(
        fresh, jax.tree.map(rows, learned, is_leaf=lambda node: isinstance(node, nnx.Variable))
    )
    return fresh


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


def check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that a method does not have, or of another type than their defaults.

    Raises:
        InputError: there is such a setting, or no method of that name.
    """
    defaults = default_config(name)
    if not isinstance(settings, Mapping):
        raise InputError(
            f"method {name}: expected settings by name, got {settings!r:.80}; give a mapping such"
            f" as {defaults}"
        )
    unknown = sorted(str(key) for key in settings if key not in defaults)
    if unknown:
        raise InputError(
            f"method {name}: expected settings among {', '.join(defaults) or '(none)'}, got"
            f" {', '.join(unknown)}; correct them"
        )
    for key, value in settings.items():
        default = defaults[key]
        kinds = {tuple: (tuple, list), float: (float, int)}.get(type(default), (type(default),))
        if type(value) not in kinds:
            raise InputError(
                f"method {name}: expected {key} as {type(default).__name__}, like {default!r}, got"
                f" {value!r:.80}; correct it"
            )


def create(
    name: str,
    clip: CLIP,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    config: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    repeated: Sequence[str] = (),
    shards: int = 1,
) -> Any:
    """A method ready to train or evaluate on these classes.

    Args:
        name: a module of `coop_jax.methods`.
        clip: the frozen CLIP; only read, not kept.
        tokenizer: the CLIP's tokenizer.
        class_names: one per label; underscores read as spaces.
        config: settings that differ from the method's `default_config()`.
        seed: of the random initialisation.
        repeated: class names that several labels may have, as two pairs of ImageNet's do: their
            logits are equal, and the first label wins.
        shards: into how many parts the classes are cut, for as many devices.

    Raises:
        InputError: an unknown method or setting, or class names or a tokenizer that do not fit.
    """
    module = _module(name)
    embeddings = clip.config.text.vocabulary_size
    if tokenizer.size > embeddings:
        raise InputError(
            f"expected a tokenizer of at most {embeddings} tokens, which the CLIP has embeddings"
            f" for, got one of {tokenizer.size}; name the one that belongs to the weights"
            " (config.clip.tokenizer)"
        )
    check_class_names(class_names, repeated)
    check_settings(name, config or {})
    settings = {**module.default_config(), **(config or {})}
    longest = clip.config.text.context_length
    if settings.get("n_ctx", 0) > longest:
        raise InputError(
            f"method {name}: expected at most {longest} tokens, which the CLIP reads, got"
            f" {settings['n_ctx']} context vectors; lower n_ctx"
        )
    with jax.threefry_partitionable(True), jax.disable_jit(False):
        rngs, names = create_rngs(seed), tuple(class_names)
        return module.Method(clip, tokenizer, names, settings, rngs=rngs, shards=shards)


def create_rngs(seed: int) -> nnx.Rngs:
    """Random numbers that depend on the seed alone: on none of JAX's switches.

    They are those of `nnx.Rngs(seed)` where the switches are as JAX has them. Of the seed the 32
    lowest bits count.
    """
    words = jax.device_put(np.asarray([0, seed % 2**32], np.uint32))
    return nnx.Rngs(jax.random.wrap_key_data(words, impl="threefry2x32"))


def _module(name: str) -> Any:
    if name not in available():
        raise InputError(f"unknown method {name!r}: expected one of {', '.join(available())}")
    return importlib.import_module(f"coop_jax.methods.{name}")
