"""CLIP's two image towers: the vision transformer and the modified ResNet."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from coop_jax.clip.config import ResNetConfig, ViTConfig
from coop_jax.clip.transformer import (
    LayerNorm,
    attend,
    create_linear,
    precision,
    scan,
    stack,
)


class VisionTransformer(nnx.Module):
    """Normalised images `[batch, size, size, 3]` to unnormalised features `[batch, embedding]`."""

    def __init__(self, config: ViTConfig, embedding: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.transformer.width
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        initial = nnx.initializers.normal(width**-0.5, jnp.float32)
        self.patch_size = config.patch_size
        self.dtype = dtype
        self.patch_embedding = create_linear(
            config.patch_size**2 * 3, width, dtype, bias=False, rngs=rngs
        )
        self.class_embedding = nnx.Param(initial(rngs(), (width,)))
        self.positional_embedding = nnx.Param(initial(rngs(), (tokens, width)))
        self.initial_norm = LayerNorm(width, config.transformer.epsilon, rngs=rngs)
        self.blocks = stack(config.transformer, dtype, rngs=rngs)
        self.final_norm = LayerNorm(width, config.transformer.epsilon, rngs=rngs)
        self.projection = nnx.Param(initial(rngs(), (width, embedding), dtype))

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch embedding"]:
        """Unnormalised features, in the tower's dtype."""
        batch, size = images.shape[:2]
        grid, patch = size // self.patch_size, self.patch_size
        patches = images.astype(self.dtype).reshape(batch, grid, patch, grid, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        embedded = self.patch_embedding(patches)
        first = self.class_embedding[...].astype(self.dtype)
        first = jnp.broadcast_to(first, (batch, 1, first.shape[-1]))
        x = jnp.concatenate([first, embedded], axis=1)
        x = self.initial_norm(x + self.positional_embedding[...].astype(self.dtype)[None])
        x, _ = scan(self.blocks, lambda block, x, _: (block(x), None), x)
        pooled = self.final_norm(x[:, 0])
        return jnp.dot(pooled, self.projection[...], precision=precision(self.dtype))


class BatchNorm(nnx.Module):
    """Batch normalisation with frozen statistics, in float32, cast back to the input's dtype."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(features, use_running_average=True, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        """Normalise every feature by its running statistics."""
        return self.norm(x).astype(x.dtype)


def convolution(
    inputs: int, outputs: int, kernel: int, dtype: DTypeLike, *, stride: int = 1, rngs: nnx.Rngs
) -> nnx.Conv:
    """A convolution without bias, padded as in PyTorch (1 for a kernel of 3, 0 for 1)."""
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        dtype=dtype,
        param_dtype=dtype,
        precision=precision(dtype),
        rngs=rngs,
    )


def average_pool(x: Float[Array, "b h w c"], window: int) -> Float[Array, "b h/w w/w c"]:
    """Means of disjoint windows; rows and columns left over are dropped, as in PyTorch."""
    return nnx.avg_pool(x, (window, window), (window, window), padding="VALID")


class Bottleneck(nnx.Module):
    """A residual bottleneck whose stride is an average pooling."""

    def __init__(self, inputs: int, width: int, stride: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        outputs = width * 4
        self.stride = stride
        self.conv1 = convolution(inputs, width, 1, dtype, rngs=rngs)
        self.norm1 = BatchNorm(width, rngs=rngs)
        self.conv2 = convolution(width, width, 3, dtype, rngs=rngs)
        self.norm2 = BatchNorm(width, rngs=rngs)
        self.conv3 = convolution(width, outputs, 1, dtype, rngs=rngs)
        self.norm3 = BatchNorm(outputs, rngs=rngs)
        self.reshapes = stride > 1 or inputs != outputs
        if self.reshapes:
            self.shortcut_conv = convolution(inputs, outputs, 1, dtype, rngs=rngs)
            self.shortcut_norm = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h/s w/s d"]:
        """Height and width shrink by the stride."""
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(average_pool(y, self.stride)))
        if self.reshapes:
            x = self.shortcut_norm(self.shortcut_conv(average_pool(x, self.stride)))
        return jax.nn.relu(x + y)


class AttentionPool(nnx.Module):
    """One attention query, the mean position, over all positions."""

    def __init__(
        self,
        positions: int,
        width: int,
        heads: int,
        embedding: int,
        dtype: DTypeLike,
        *,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.positional_embedding = nnx.Param(
            nnx.initializers.normal(width**-0.5, jnp.float32)(rngs(), (positions + 1, width))
        )
        self.query = create_linear(width, width, dtype, rngs=rngs)
        self.key = create_linear(width, width, dtype, rngs=rngs)
        self.value = create_linear(width, width, dtype, rngs=rngs)
        self.output = create_linear(width, embedding, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch embedding"]:
        """The mean position attends to itself and all positions."""
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].astype(x.dtype)[None]

        def split(projected: Array) -> Array:
            return projected.reshape(*projected.shape[:-1], self.heads, -1)

        attended = attend(split(self.query(x[:, :1])), split(self.key(x)), split(self.value(x)))
        return self.output(attended)[:, 0]


class ModifiedResNet(nnx.Module):
    """Normalised images `[batch, size, size, 3]` to unnormalised features `[batch, embedding]`.

    Three stem convolutions instead of one, average pooling before every stride, and attention
    pooling at the end.
    """

    def __init__(self, config: ResNetConfig, embedding: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.width
        self.dtype = dtype
        self.conv1 = convolution(3, width // 2, 3, dtype, stride=2, rngs=rngs)
        self.norm1 = BatchNorm(width // 2, rngs=rngs)
        self.conv2 = convolution(width // 2, width // 2, 3, dtype, rngs=rngs)
        self.norm2 = BatchNorm(width // 2, rngs=rngs)
        self.conv3 = convolution(width // 2, width, 3, dtype, rngs=rngs)
        self.norm3 = BatchNorm(width, rngs=rngs)
        stages, inputs = [], width
        for index, blocks in enumerate(config.blocks):
            stage_width = width * 2**index
            stage = []
            for block in range(blocks):
                stride = 2 if index > 0 and block == 0 else 1
                stage.append(Bottleneck(inputs, stage_width, stride, dtype, rngs=rngs))
                inputs = stage_width * 4
            stages.append(nnx.List(stage))
        self.stages = nnx.List(stages)
        positions = (config.image_size // 32) ** 2
        self.pool = AttentionPool(positions, inputs, config.heads, embedding, dtype, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch embedding"]:
        """Unnormalised features, in the tower's dtype."""
        x = images.astype(self.dtype)
        for conv, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ):
            x = jax.nn.relu(norm(conv(x)))
        x = average_pool(x, 2)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.pool(x)
