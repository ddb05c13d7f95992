"""What tests of the towers' insides share."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import CLASS_NAMES
from flax import nnx

from coop_jax.methods import Learned, layers

RANK, SCALE = 2, 0.7


def draw(seed, *shape):
    return 0.3 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


class Bottleneck(nnx.Module):
    """A method's own adapter; its two variables are of two types."""

    def __init__(self, down, up):
        self.down, self.up = Learned(jnp.asarray(down)), nnx.Variable(jnp.asarray(up))

    def __call__(self, block, x):
        hidden = jax.nn.relu(layers.product(block.attention_norm(x), self.down[...]))
        return layers.product(hidden, self.up[...])


def factors(config, names, seed=1):
    """Matrices of low rank by the name of a part, and the updates that they amount to."""
    drawn = {
        name: (
            draw(seed + index, config.layers, config.width, RANK),
            draw(seed + index + 10, config.layers, RANK, config.width),
        )
        for index, name in enumerate(names)
    }
    return drawn, {name: SCALE * down @ up for name, (down, up) in drawn.items()}


def prompts(clip, tokenizer, context):
    """Embeddings `[classes, 77, width]` of prompts with a context behind the start token, ends."""
    tokens = tokenizer([" ".join(["X"] * len(context)) + f" {name}." for name in CLASS_NAMES])
    embeddings = np.asarray(clip.text.token_embedding[...])[tokens]
    embeddings[:, 1 : 1 + len(context)] = context
    return embeddings, np.argmax(tokens == tokenizer.end, axis=1)
