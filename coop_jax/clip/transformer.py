"""Residual attention blocks, their parameters stacked over layers and applied by one scan."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from coop_jax.clip.config import TransformerConfig

Carry = TypeVar("Carry")
Input = TypeVar("Input")
Output = TypeVar("Output")


def precision(dtype: DTypeLike) -> jax.lax.Precision:
    """Return the matmul precision under which `dtype` means what it says.

    TPUs and recent GPUs otherwise round the operands of a float32 product to bfloat16 or TF32.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return OpenAI's approximation of GELU, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class LayerNorm(nnx.Module):
    """Layer normalisation computed in float32 and cast back to the input's dtype."""

    def __init__(self, width: int, epsilon: float, *, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(
            width, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
        )

    @jax.named_scope("normalisation")
    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Normalise over the last axis."""
        return self.norm(x).astype(x.dtype)


@jax.named_scope("attention")
def attend(
    query: Float[Array, "... queries heads dim"],
    key: Float[Array, "... keys heads dim"],
    value: Float[Array, "... keys heads dim"],
    visible: Bool[Array, "queries keys"] | None = None,
) -> Float[Array, "... queries heads*dim"]:
    """Return softmax attention, the softmax in float32; `visible` hides the keys where false."""
    dtype, exact = query.dtype, precision(query.dtype)
    query = query * (query.shape[-1] ** -0.5)
    scores = jnp.einsum("...qhd,...khd->...hqk", query, key, precision=exact)
    scores = scores.astype(jnp.float32)
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
    mixed = jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=exact)
    return mixed.reshape(*mixed.shape[:-2], mixed.shape[-2] * mixed.shape[-1])


def create_linear(
    inputs: int, outputs: int, dtype: DTypeLike, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """Return a linear layer that stores and multiplies in `dtype`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=dtype,
        param_dtype=dtype,
        precision=precision(dtype),
        rngs=rngs,
    )


class FeedForward(nnx.Module):
    """A residual MLP with one hidden layer, behind a layer normalisation."""

    def __init__(self, config: TransformerConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.mlp_norm = LayerNorm(config.width, config.epsilon, rngs=rngs)
        self.mlp_input = create_linear(config.width, config.mlp_width, dtype, rngs=rngs)
        self.mlp_output = create_linear(config.mlp_width, config.width, dtype, rngs=rngs)

    def feed_forward(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Return the sum of the input and of what the MLP makes of it."""
        hidden = self.mlp_input(self.mlp_norm(x))
        with jax.named_scope("activation"):
            hidden = ACTIVATIONS[self.activation](hidden)
        return x + self.mlp_output(hidden)


class Block(FeedForward):
    """One residual attention block: attention and an MLP, each behind a layer normalisation."""

    def __init__(self, config: TransformerConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.attention_norm = LayerNorm(width, config.epsilon, rngs=rngs)
        self.query_key_value = create_linear(width, 3 * width, dtype, rngs=rngs)
        self.attention_output = create_linear(width, width, dtype, rngs=rngs)
        super().__init__(config, dtype, rngs=rngs)

    def project(self, x: Float[Array, "... length width"]) -> tuple[Array, Array, Array]:
        """Return queries, keys and values `[..., length, heads, dim]` of the normalised input."""
        projected = self.query_key_value(self.attention_norm(x))
        heads = (3, self.heads, x.shape[-1] // self.heads)
        query, key, value = jnp.moveaxis(projected.reshape(*x.shape[:-1], *heads), -3, 0)
        return query, key, value

    def finish(
        self, x: Float[Array, "... length width"], attended: Float[Array, "... length width"]
    ) -> Float[Array, "... length width"]:
        """Return the block's output, given its input and what its queries attended to."""
        return self.feed_forward(x + self.attention_output(attended))

    def __call__(self, x: Float[Array, "... length width"]) -> Float[Array, "... length width"]:
        """Attend from everywhere to everywhere, as in the vision tower."""
        query, key, value = self.project(x)
        return self.finish(x, attend(query, key, value))


def replace(
    x: Float[Array, "*batch length width"],
    start: int,
    vectors: Float[Array, "*vectors_batch vectors width"],
    active: Bool[Array, ""],
) -> Float[Array, "*batch length width"]:
    """Return `x` with these vectors from token `start` on, if `active`; else as it is."""
    stop = start + vectors.shape[-2]
    kept = x[..., start:stop, :]
    return x.at[..., start:stop, :].set(jnp.where(active, vectors.astype(x.dtype), kept))


def stack(config: TransformerConfig, dtype: DTypeLike, *, rngs: nnx.Rngs) -> Block:
    """Return all blocks of a tower in one module whose parameters have a leading axis of layers."""

    @nnx.split_rngs(splits=config.layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Block:
        return Block(config, dtype, rngs=rngs)

    return build(rngs)


def scan(
    blocks: Any,
    step: Callable[[Any, Carry, Input], tuple[Carry, Output]],
    carry: Carry,
    inputs: Input = None,
    *,
    recompute: bool = False,
) -> tuple[Carry, Output]:
    """Apply `step` for each layer of a stack in turn, with that layer's part of the inputs.

    Where the result is differentiated, the carries and the results of matrix products are kept;
    what lies between them is computed again, which takes less time than to write and read it.

    Args:
        blocks: a module all of whose variables, of whatever type, have a leading axis of layers:
            what `stack` returns, or a method's module around it.
        step: from a layer's block, the carry and the layer's inputs to the carry and an output.
        carry: what the first layer gets.
        inputs: a tree of arrays with a leading axis of layers.
        recompute: keep the carries alone, and compute the products again as well.

    Returns:
        The last carry, and the outputs with a leading axis of layers.
    """
    graphdef, layers = nnx.split(blocks)

    def body(carry: Carry, layer: tuple[nnx.State, Input]) -> tuple[Carry, Output]:
        state, given = layer
        return step(nnx.merge(graphdef, state), carry, given)

    policy = None if recompute else jax.checkpoint_policies.dots_saveable
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    return jax.lax.scan(body, carry, (layers, inputs))


def part(blocks: Any, layers: int | slice) -> Any:
    """Return one block of a stack, or the stack of some."""
    graphdef, state = nnx.split(blocks)
    return nnx.merge(graphdef, jax.tree.map(lambda stacked: stacked[layers], state))
