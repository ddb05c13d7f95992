"""MMA: adapters beside the upper blocks of both towers, partly shared (Yang et al., CVPR 2024)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.clip.text import Inserted
from coop_jax.errors import InputError
from coop_jax.methods import base, layers, text
from coop_jax.methods.base import Fixed, Given, Images, Learned

NAME = "MMA"
PAPER = "Yang et al., CVPR 2024"

LIMITS = {"dim": (1, 4096)}


def default_config() -> dict[str, Any]:
    """Return MMA's settings, those of its official scripts.

    Settings:
        first, last: the layers that have adapters, counted from 1; 0 is the embedding.
        dim: width of the adapters.
        scale: of what they add.
        template: the hand-crafted prompt, with {} for the class name.
    """
    return {"first": 5, "last": 12, "dim": 32, "scale": 0.001, "template": "a photo of a {}."}


def recipe() -> dict[str, Any]:
    """Return what the official scripts train with from base to new classes."""
    optimizer = {"learning_rate": 0.0015, "warmup_epochs": 0}
    return {"epochs": 5, "batch_size": 16, "optimizer": optimizer}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """Return `x`; what is drawn back through it is multiplied by the factor."""
    del factor
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, gradient: (factor * gradient,))


class Linear(nnx.Module):
    """Linear layers, one for each layer of a tower, `[layers, inputs, outputs]`."""

    def __init__(self, given: Given, count: int, inputs: int, outputs: int):
        shape = count, inputs, outputs
        self.kernel = Learned(layers.kaiming_normal(given.rngs.params(), shape, outputs))
        self.bias = Learned(jnp.zeros((count, outputs), jnp.float32))

    def at(self, first: int, count: int) -> tuple[Array, Array]:
        """Return kernels and biases as all layers of a tower have them, those from `first` on."""
        kernel, bias = self.kernel[...], self.bias[...]
        stop = min(first + len(kernel), count)

        def spread(values: Array) -> Array:
            stacked = jnp.zeros((count, *values.shape[1:]), values.dtype)
            return stacked.at[first:stop].set(values[: stop - first])

        return spread(kernel), spread(bias)


class Bottleneck(nnx.Module):
    """The adapters of one tower, from stacked matrices; added where they are active."""

    def __init__(self, matrices: list[tuple[Array, Array]], active: Array, scale: float):
        self.kernels = nnx.List([nnx.Variable(kernel) for kernel, _ in matrices])
        self.biases = nnx.List([nnx.Variable(bias) for _, bias in matrices])
        self.active, self.scale = nnx.Variable(active), scale

    def __call__(self, block: Any, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Return the addition, of the block's normalised input.

        The adapter's variables get gradients as if the scale were one.
        """
        normalised = scale_gradient(block.attention_norm(x), self.scale)
        kernels = [kernel[...] for kernel in self.kernels]
        added = bottleneck(normalised, kernels, [bias[...] for bias in self.biases])
        added = self.scale * scale_gradient(added, 1 / self.scale)
        return jnp.where(self.active[...], added, 0).astype(x.dtype)


def bottleneck(x: Array, kernels: list[Array], biases: list[Array]) -> Array:
    """Return three linear layers with a ReLU after the first and the second."""
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        x = layers.product(x, kernel) + bias.astype(x.dtype)
        x = jax.nn.relu(x) if number < 2 else x
    return x


class Method(base.Method):
    """Logits of hand-crafted prompts and images through towers with adapters."""

    takes = ("pixels",)

    def __init__(self, given: Given, config: dict[str, Any]):
        text_tower = given.clip.config.text.transformer
        towers = {"text": text_tower, "vision": layers.vision_config(given, NAME)}
        most = max(tower.layers for tower in towers.values())
        first, last = config["first"], config["last"]
        if not 0 <= first <= last <= most:
            raise InputError(
                f"{NAME}: expected first and last as layers from 0 to {most}, the first not behind"
                f" the last, got {first} and {last}; correct them"
            )
        self.first, self.count, self.scale = first, last - first + 1, config["scale"]
        dim, count = config["dim"], self.count
        self.down = nnx.Dict({n: Linear(given, count, t.width, dim) for n, t in towers.items()})
        self.shared = Linear(given, count, dim, dim)
        self.up = nnx.Dict({n: Linear(given, count, dim, t.width) for n, t in towers.items()})
        self.prompts = text.HandCrafted(given, (config["template"],))
        if first == 0:
            tokens = np.asarray(self.prompts.packed.tokens[...])
            words, numbers = np.unique(tokens, return_inverse=True)
            self.words = Fixed(given.clip.text.embed(words)[None])
            self.numbers = Fixed(jnp.asarray(numbers.reshape(tokens.shape), jnp.int32))

    def adapt(self, clip: CLIP, key: Array | None) -> CLIP:
        """Return the CLIP with adapters beside its blocks."""
        for name in self.down:
            tower = getattr(clip, name)
            count = len(jax.tree.leaves(tower.blocks)[0])
            number = jnp.arange(count) + 1
            active = (number >= self.first) & (number < self.first + self.count)
            matrices = []
            for linear in (self.down[name], self.shared, self.up[name]):
                kernel, bias = linear.at(self.first, count + 1)
                matrices.append((kernel[1:], bias[1:]))
            tower.blocks = layers.WithAdapter(
                tower.blocks, Bottleneck(matrices, active, self.scale)
            )
        return clip

    def _embedded(self, name: str, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Return embeddings of a tower with what the adapter of layer 0 adds."""
        parts = self.down[name], self.shared, self.up[name]
        kernels = [part.kernel[...][0] for part in parts]
        added = bottleneck(x, kernels, [part.bias[...][0] for part in parts])
        return x + self.scale * added

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return text features of the hand-crafted prompts."""
        if self.first > 0:
            return self.prompts.encode(clip)[0]
        packed = self.prompts.packed
        start = self._embedded("text", self.prompts.start[...])
        inserted = Inserted(self._embedded("text", self.words[...]), self.numbers[...])
        return clip.text.encode(start, packed.tokens[...], packed.packing, inserted)

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return scaled cosine similarities, float32."""
        vision: Any = clip.vision
        x = vision.initial_norm(vision.embed(clip.normalized(jnp.asarray(images.pixels))))
        x = self._embedded("vision", x) if self.first == 0 else x
        return clip.logits(vision.pool(vision.layers(x)), texts)
