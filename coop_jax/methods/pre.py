"""PRE: a context that a small network makes of what is learned (Pham et al., arXiv 2023)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from coop_jax.clip import CLIP
from coop_jax.errors import InputError
from coop_jax.methods import layers, text
from coop_jax.methods.base import Given, Learned

NAME = "PRE"
PAPER = "Pham et al., arXiv 2023"

BOTTLENECK = 64
"""The width of the MLP's hidden layer."""


def default_config() -> dict[str, Any]:
    """Return PRE's settings, those of its official script.

    Settings:
        n_ctx: number of context vectors M, where `context_init` is empty.
        class_token_position: "end", "middle" or "front".
        class_specific: one context per class (CSC) instead of one for all; one encoder.
        context_init: a phrase whose token embeddings start what the encoder is given; then its
            words are counted.
        encoder: "lstm", in both directions over the vectors, or "mlp", of each vector alone.
        residual: add what the encoder is given to what it returns.
    """
    return {
        "n_ctx": 4,
        "class_token_position": "end",
        "class_specific": False,
        "context_init": "a photo of a",
        "encoder": "lstm",
        "residual": True,
    }


def recipe() -> dict[str, Any]:
    """Return what the official script trains with: 50 epochs."""
    return {"epochs": 50}


class Recurrent(nnx.Module):
    """One direction of an LSTM, `[..., M, width]` to `[..., M, size]`, as PyTorch has it.

    The gates are input, forget, cell and output; PyTorch's two bias vectors are two here as well,
    since what they learn adds up.
    """

    def __init__(self, given: Given, width: int, size: int, *, backward: bool):
        def drawn(*shape: int) -> Learned:
            return Learned(layers.linear_init(given.rngs.params(), shape, size))

        self.backward = backward
        self.input_kernel, self.state_kernel = drawn(width, 4 * size), drawn(size, 4 * size)
        self.input_bias, self.state_bias = drawn(4 * size), drawn(4 * size)

    def __call__(self, x: Float[Array, "*classes M width"]) -> Float[Array, "*classes M size"]:
        """Return the outputs at all vectors."""
        kernel, bias = self.state_kernel[...], self.input_bias[...] + self.state_bias[...]
        given = jnp.moveaxis(layers.product(x, self.input_kernel[...]) + bias, -2, 0)

        def step(state: tuple[Array, Array], given: Array) -> tuple[tuple[Array, Array], Array]:
            output, cell = state
            gates = given + layers.product(output, kernel)
            enter, forget, new, leave = jnp.split(gates, 4, axis=-1)
            cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            output = jax.nn.sigmoid(leave) * jnp.tanh(cell)
            return (output, cell), output

        zeros = jnp.zeros((*given.shape[1:-1], len(kernel)), given.dtype)
        _, outputs = jax.lax.scan(step, (zeros, zeros), given, reverse=self.backward)
        return jnp.moveaxis(outputs, 0, -2)


class LSTM(nnx.Module):
    """One layer in both directions, each of half the width."""

    def __init__(self, given: Given, width: int):
        half = width // 2
        self.forward = Recurrent(given, width, width - half, backward=False)
        self.backward = Recurrent(given, width, half, backward=True)

    def __call__(self, x: Float[Array, "*classes M width"]) -> Float[Array, "*classes M width"]:
        """Return the outputs of both directions, end to end."""
        return jnp.concatenate([self.forward(x), self.backward(x)], axis=-1)


def _mlp(given: Given, width: int) -> layers.TwoLayers:
    """Return two linear layers, of each vector alone."""
    return layers.TwoLayers(given.rngs, width, BOTTLENECK, width)


ENCODERS = {"lstm": LSTM, "mlp": _mlp}


class Method(text.Prompted):
    """CoOp whose context in the prompts is `encoder` of the one that is learned.

    `context` is `[M, width]`, or `[C, M, width]` class-specific. Where it starts from words, the
    prompts do not start with them: the encoder, which is drawn, changes it from the first step on.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        if config["encoder"] not in ENCODERS:
            raise InputError(
                f"encoder: expected one of {', '.join(ENCODERS)}, got {config['encoder']!r:.80};"
                " choose one"
            )
        others = {"encoder", "residual"}
        words = {name: value for name, value in config.items() if name not in others}
        self.context, self.prompts = text.learned_prompts(given, **words)
        self.encoder = ENCODERS[config["encoder"]](given, self.context.shape[-1])
        self.residual = config["residual"]

    def encoded(self) -> Float[Array, "*classes M width"]:
        """Return the context that stands in the prompts."""
        context = self.context[...]
        encoded = self.encoder(context)
        return context + encoded if self.residual else encoded

    def word_vectors(self) -> dict[str, Array]:
        """Return the context that stands in the prompts."""
        return {"context": self.encoded()}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes embedding"]:
        """Return unnormalised text features of the prompts."""
        return self.prompts.encode(clip, self.encoded())
