"""Modules that methods put into the towers and beside them: low rank, adapters, prompts, dropout.

A module around a stack of blocks has what the towers use of one (`project`, `finish`, a call), and
all its variables have a leading axis of layers, as the stack's own; so the towers take it
unchanged, and each layer sees its own part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from coop_jax.clip.config import TransformerConfig, ViTConfig
from coop_jax.clip.transformer import attend, precision, replace
from coop_jax.clip.vision import VisionTransformer
from coop_jax.errors import InputError
from coop_jax.methods.base import Given, Learned, Terms, cross_entropy

THIRDS = ("query", "key", "value")
"""The parts of what a block's `query_key_value` puts out."""


def vision_config(given: Given, name: str) -> TransformerConfig:
    """Return the dimensions of the vision transformer that a method learns in.

    Args:
        given: what the method is made of.
        name: of the method.

    Raises:
        InputError: the CLIP has another image tower.
    """
    vision = given.clip.config.vision
    if not isinstance(vision, ViTConfig):
        raise InputError(
            f"{name}: expected a CLIP with a vision transformer, got one with a ResNet; choose"
            " another, e.g. ViT-B/16"
        )
    return vision.transformer


def linear_init(key: Array, shape: Sequence[int], inputs: int) -> Float[Array, "..."]:
    """Draw uniformly within the inverse root of the number of inputs, float32.

    PyTorch's default for weights and biases of linear layers: `kaiming_uniform_` with a = sqrt(5).
    """
    bound = inputs**-0.5
    return jax.random.uniform(key, tuple(shape), jnp.float32, -bound, bound)


def kaiming_normal(key: Array, shape: Sequence[int], units: int) -> Float[Array, "..."]:
    """Draw normal with variance 2 / units, float32: PyTorch's `kaiming_normal_` for a ReLU."""
    return (2 / units) ** 0.5 * jax.random.normal(key, tuple(shape), jnp.float32)


def low_rank_init(
    key: Array, layers: int, inputs: int, outputs: int, rank: int
) -> tuple[Float[Array, "layers inputs rank"], Float[Array, "layers rank outputs"]]:
    """Return a drawn matrix and one of zeros, so that their product changes nothing (LoRA)."""
    down = linear_init(key, (layers, inputs, rank), inputs)
    return down, jnp.zeros((layers, rank, outputs), jnp.float32)


def product(x: Float[Array, "... a"], kernel: Float[Array, "a b"]) -> Float[Array, "... b"]:
    """Return the matrix product in the dtype of `x`, as exact as that is."""
    return jnp.dot(x, kernel.astype(x.dtype), precision=precision(x.dtype))


class TwoLayers(nnx.Module):
    """Two linear layers with biases and a function between them, as PyTorch draws them at first.

    Args:
        rngs: random numbers of the initialisation.
        inputs, hidden, outputs: their sizes.
        activation: the function.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int,
        hidden: int,
        outputs: int,
        activation: Callable[[Array], Array] = jax.nn.relu,
    ):
        def drawn(count: int, *shape: int) -> Learned:
            return Learned(linear_init(rngs.params(), shape, count))

        self.kernel1, self.bias1 = drawn(inputs, inputs, hidden), drawn(inputs, hidden)
        self.kernel2, self.bias2 = drawn(hidden, hidden, outputs), drawn(hidden, outputs)
        self.activation = activation

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Return the outputs, in the dtype of the variables."""
        x = x.astype(self.kernel1.dtype)
        hidden = self.activation(_affine(x, self.kernel1, self.bias1))
        return _affine(hidden, self.kernel2, self.bias2)


def _affine(
    x: Float[Array, "... inputs"], kernel: Learned, bias: Learned
) -> Float[Array, "... outputs"]:
    made = product(x, kernel[...])
    return made + jnp.broadcast_to(bias[...], made.shape)


def adapted(
    features: Float[Array, "*batch embedding"],
    down: Float[Array, "embedding hidden"],
    up: Float[Array, "hidden embedding"],
    ratio: float,
) -> Float[Array, "*batch embedding"]:
    """Return features with the share `ratio` of what a bottleneck of two ReLUs makes of them."""
    made = jax.nn.relu(product(jax.nn.relu(product(features, down)), up))
    return ratio * made + (1 - ratio) * features


class Channelwise(nnx.Module):
    """A learned scale and shift of each channel of features (FiLM, Perez et al., AAAI 2018)."""

    def __init__(self, size: int, rate: float):
        self.scale = Learned(jnp.ones(size, jnp.float32), rate=rate)
        self.bias = Learned(jnp.zeros(size, jnp.float32), rate=rate)

    def __call__(self, features: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
        """Return the features scaled and shifted, in the dtype of the variables."""
        return features.astype(self.scale.dtype) * self.scale[...] + self.bias[...]


class DecoupledHead(nnx.Module):
    """Linear logits beside cosines, of features scaled and shifted before (DePT, CVPR 2024).

    Features are unnormalised. What belongs to a class moves with it; where a class was not trained
    on, the cosines alone count, for all classes.

    Args:
        given: what the method is made of.
        weight: of the linear logits, in the loss and beside the cosines.
        rate: of all that is learned here, as a factor on the learning rate.
    """

    def __init__(self, given: Given, weight: float, rate: float):
        self.share, self.fuses = weight, all(given.classes.seen)
        size, count = given.clip.config.embedding, len(given.classes)
        self.of_texts, self.of_images = Channelwise(size, rate), Channelwise(size, rate)
        marks = {"per_class": True, "unseen": "initial", "rate": rate}
        drawn = linear_init(given.rngs.params(), (count, size), size)
        self.weight = Learned(drawn, **marks)
        self.bias = Learned(linear_init(given.rngs.params(), (count,), size), **marks)

    def linear(self, images: Float[Array, "rows size"]) -> Float[Array, "rows classes"]:
        """Return the linear logits of image features."""
        return self._logits(self.of_images(images))

    def fused(
        self, similar: Float[Array, "rows classes"], images: Float[Array, "rows size"]
    ) -> Float[Array, "rows classes"]:
        """Return the weighted sum of cosines' logits and of linear ones; of new classes the former.

        Args:
            similar: logits of the cosines.
            images: image features.
        """
        if not self.fuses:
            return similar
        return (1 - self.share) * similar + self.share * self.linear(images)

    def losses(
        self,
        similar: Float[Array, "rows classes"],
        texts: Float[Array, "rows size"],
        images: Float[Array, "rows size"],
        labels: Int[Array, " rows"],
        weights: Float[Array, " rows"],
    ) -> Terms:
        """Return the weighted cross-entropies of cosines and, over texts and images, of the head.

        Args:
            similar: logits of the cosines.
            texts: text features of the images' labels.
            images: image features.
            labels: of the images.
            weights: of the images.
        """
        both = jnp.concatenate([self._logits(self.of_texts(texts)), self.linear(images)])
        twice = jnp.concatenate([labels, labels]), jnp.concatenate([weights, weights])
        return {
            "cross_entropy": (1 - self.share) * cross_entropy(similar, labels, weights),
            "linear": self.share * cross_entropy(both, *twice),
        }

    def _logits(self, features: Float[Array, "rows size"]) -> Float[Array, "rows classes"]:
        logits = product(features, self.weight[...].T) + self.bias[...]
        return logits.astype(jnp.float32)


def dropout(
    x: Float[Array, "rows ..."], key: Array | None, rate: float
) -> Float[Array, "rows ..."]:
    """Return `x` with some entries dropped and the others scaled up; as it is without a key.

    Whether an entry is dropped depends on the key and its place in `x` alone: neither on how many
    rows follow nor on the devices that share them.
    """
    if key is None or rate == 0:
        return x
    with jax.threefry_partitionable(True):
        kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Dropout(nnx.Module):
    """Dropout whose masks differ between layers and between the parts of a layer.

    Args:
        key: of the step.
        layers: their number.
        rate: of the entries that are dropped.
        parts: names of the parts.
    """

    def __init__(self, key: Array, layers: int, rate: float, parts: Sequence[str] = THIRDS):
        self.keys = nnx.Variable(jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(layers)))
        self.rate, self.parts = rate, tuple(parts)

    def __call__(self, x: Float[Array, "..."], part: str) -> Float[Array, "..."]:
        """Drop entries of what a part gets."""
        return dropout(x, jax.random.fold_in(self.keys[...], self.parts.index(part)), self.rate)


class LowRank(nnx.Module):
    """Linear layers with low-rank updates of parts of their outputs (LoRA, Hu et al., ICLR 2022).

    Args:
        linear: a stack of linear layers, e.g. `blocks.query_key_value`.
        factors: by the name of a part, matrices `[layers, inputs, rank]` and `[layers, rank,
            outputs / parts]`.
        scale: of the updates.
        dropped: from the input and the name of a part to what its update gets, e.g. `Dropout`; a
            module's variables have a leading axis of layers. None for the input as it is.
        parts: names of the parts of one size that the outputs are cut into.
    """

    def __init__(
        self,
        linear: Any,
        factors: Mapping[str, tuple[Any, Any]],
        scale: float,
        dropped: Callable[[Array, str], Array] | None = None,
        parts: Sequence[str] = THIRDS,
    ):
        self.linear, self.scale, self.dropped = linear, scale, dropped
        self.parts = tuple(parts)
        self.down = nnx.Dict({name: variable(down) for name, (down, _) in factors.items()})
        self.up = nnx.Dict({name: variable(up) for name, (_, up) in factors.items()})

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Return the outputs with the updates."""
        outputs = dict(
            zip(self.parts, jnp.split(self.linear(x), len(self.parts), axis=-1), strict=True)
        )
        for name, down in self.down.items():
            given = x if self.dropped is None else self.dropped(x, name)
            update = product(product(given, down[...]), self.up[name][...])
            outputs[name] = outputs[name] + self.scale * update
        return jnp.concatenate(list(outputs.values()), axis=-1)


class WithAdapter(nnx.Module):
    """Blocks with something beside them: `adapter(block, x)` is added to the output of each.

    Args:
        block: a stack of blocks, or a module around one.
        adapter: a module whose variables have a leading axis of layers; `x` is the block's input.
    """

    def __init__(self, block: Any, adapter: Any):
        self.block, self.adapter = block, adapter

    def project(self, x: Float[Array, "... length width"]) -> tuple[Array, Array, Array]:
        """Return queries, keys and values of the block."""
        return self.block.project(x)

    def finish(
        self, x: Float[Array, "... length width"], attended: Float[Array, "... length width"]
    ) -> Float[Array, "... length width"]:
        """Return the block's output with the adapter's."""
        return self.block.finish(x, attended) + self.adapter(self.block, x)

    def __call__(self, x: Float[Array, "... length width"]) -> Float[Array, "... length width"]:
        """Attend from everywhere to everywhere, as in the vision tower."""
        query, key, value = self.project(x)
        return self.finish(x, attend(query, key, value))


class PromptedBlock(nnx.Module):
    """Blocks of the vision tower that find some tokens replaced at the input of some layers.

    It goes around all others: what they get as their input are the tokens after the replacement.
    In the text tower, `coop_jax.clip.text.Deep` does this.

    Args:
        block: a stack of blocks, or a module around one.
        vectors: `[layers, n, width]` or, where each image has its own, `[layers, batch, n, width]`.
        active: `[layers]`, where they replace.
        start: the first token that they replace; None for the last n tokens.
    """

    def __init__(
        self,
        block: Any,
        vectors: Float[Array, "layers *batch n width"],
        active: Bool[Array, " layers"],
        start: int | None = None,
    ):
        self.block, self.start = block, start
        self.vectors, self.active = variable(vectors), variable(active)

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """Replace, then apply the block."""
        vectors = self.vectors[...]
        start = x.shape[1] - vectors.shape[-2] if self.start is None else self.start
        return self.block(replace(x, start, vectors, self.active[...]))


def variable(value: Any) -> nnx.Variable:
    """Return a variable as it is, and an array as one that nothing is said of."""
    return value if isinstance(value, nnx.Variable) else nnx.Variable(jnp.asarray(value))


def prompted_tokens(
    vision: VisionTransformer,
    images: Float[Array, "batch size size 3"],
    prompts: Float[Array, "*batch n width"],
    deep: tuple[Float[Array, "layers *batch n width"], Bool[Array, " layers"]] | None = None,
) -> Float[Array, "batch tokens width"]:
    """Return the last block's outputs for images behind whose patches stand prompts.

    VPT (Jia et al., ECCV 2022) as IVLP, MaPLe and PromptSRC use it; `vision.pool` makes features
    of them.

    Args:
        vision: a vision transformer.
        images: normalised, as `clip.normalized` returns them.
        prompts: what stands there before the initial normalisation, without positions.
        deep: what replaces them at the input of each layer, and in which layers that happens;
            None for none.
    """
    x = vision.embed(images)
    behind = jnp.broadcast_to(prompts.astype(x.dtype), (x.shape[0], *prompts.shape[-2:]))
    x = vision.initial_norm(jnp.concatenate([x, behind], axis=1))
    return vision.layers(x, None if deep is None else PromptedBlock(vision.blocks, *deep))
