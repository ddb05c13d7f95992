"""CLIP's two image towers: the vision transformer and the modified ResNet."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from coop_jax.clip.config import ResNetConfig, TransformerConfig, ViTConfig
from coop_jax.clip.transformer import (
    FeedForward,
    LayerNorm,
    attend,
    create_linear,
    part,
    precision,
    scan,
    stack,
)
from coop_jax.errors import InputError


class AttentionHead(FeedForward):
    """Attention of a learned query to all tokens, and an MLP (SigLIP, Zhai et al., ICCV 2023)."""

    def __init__(self, config: TransformerConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width = config.width
        self.heads, self.dtype = config.heads, dtype
        initial = nnx.initializers.normal(width**-0.5, jnp.float32)
        self.probe = nnx.Param(initial(rngs(), (width,)))
        self.query_key_value = create_linear(width, 3 * width, dtype, rngs=rngs)
        self.attention_output = create_linear(width, width, dtype, rngs=rngs)
        super().__init__(config, dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Return one vector of each image, given its normalised tokens."""
        batch, tokens, width = x.shape
        joint: Any = self.query_key_value
        kernel, bias = joint.kernel[...], joint.bias[...]
        product = functools.partial(jnp.dot, precision=precision(self.dtype))
        probe = self.probe[...].astype(self.dtype)
        query = product(probe, kernel[:, :width]) + bias[:width]
        query = query.reshape(1, self.heads, -1)
        query = jnp.broadcast_to(query, (batch, *query.shape))
        key_value = product(x, kernel[:, width:]) + bias[width:]
        key, value = jnp.moveaxis(key_value.reshape(batch, tokens, 2, self.heads, -1), 2, 0)
        return self.feed_forward(self.attention_output(attend(query, key, value)[:, 0]))


def unchanged(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return what is given, in place of a normalisation that a tower does not have."""
    return x


class VisionTransformer(nnx.Module):
    """Normalised images `[batch, size, size, 3]` to unnormalised features `[batch, embedding]`."""

    def __init__(self, config: ViTConfig, embedding: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        width, epsilon = config.transformer.width, config.transformer.epsilon
        patches = (config.image_size // config.patch_size) ** 2
        initial = nnx.initializers.normal(width**-0.5, jnp.float32)
        self.config = config
        self.dtype = dtype
        self.patch_embedding = create_linear(
            config.patch_size**2 * 3, width, dtype, bias=config.patch_bias, rngs=rngs
        )
        self.first_patch = 0 if config.pooling == "attention" else 1
        if self.first_patch:
            self.class_embedding = nnx.Param(initial(rngs(), (width,)))
        positions = patches + self.first_patch
        self.positional_embedding = nnx.Param(initial(rngs(), (positions, width)))
        normed = config.initial_norm
        self.initial_norm = LayerNorm(width, epsilon, rngs=rngs) if normed else unchanged
        self.blocks: Any = stack(config.transformer, dtype, rngs=rngs)
        self.final_norm = LayerNorm(width, epsilon, rngs=rngs)
        if config.pooling == "attention":
            self.head = AttentionHead(config.transformer, dtype, rngs=rngs)
        if config.projection:
            self.projection = nnx.Param(initial(rngs(), (width, embedding), dtype))

    def embed(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch tokens width"]:
        """Return the class embedding, if any, and the patches' embeddings, with positions.

        Pixels at the right and below that fill no patch are left out.
        """
        batch, size = images.shape[:2]
        patch = self.config.patch_size
        grid = size // patch
        images = images[:, : grid * patch, : grid * patch].astype(self.dtype)
        patches = images.reshape(batch, grid, patch, grid, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, -1)
        x = self.patch_embedding(patches)
        if self.first_patch:
            first = self.class_embedding[...].astype(self.dtype)
            first = jnp.broadcast_to(first, (batch, 1, first.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        return x + self.positional_embedding[...].astype(self.dtype)[None]

    def layers(
        self, x: Float[Array, "batch tokens width"], blocks: Any = None
    ) -> Float[Array, "batch tokens width"]:
        """Return the output of the last block, given what `initial_norm` made of the embeddings.

        Where it is differentiated, the activations of each block are computed again.

        Args:
            x: the class token, the patches, and whatever else there is.
            blocks: what applies instead of the tower's own blocks, e.g. a module around them.
        """
        blocks = self.blocks if blocks is None else blocks
        return scan(blocks, lambda block, x, _: (block(x), None), x, recompute=True)[0]

    def pool(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch embedding"]:
        """Return unnormalised features, given the output of the last block."""
        return self.to_embedding(self.pooled(x))

    def pooled(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """Return what the projection makes features of, given the output of the last block."""
        if self.config.pooling == "class":
            return self.final_norm(x[:, 0])
        if self.config.pooling == "attention":
            return self.head(self.final_norm(x))
        patches = x[:, self.first_patch :]
        if self.config.pool_first:
            return self.final_norm(patches.mean(axis=1))
        return self.final_norm(patches).mean(axis=1)

    def to_embedding(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch embedding"]:
        """Return normalised outputs of the last block in the space that images and texts share."""
        if not self.config.projection:
            return x
        return jnp.dot(x, self.projection[...], precision=precision(self.dtype))

    def tokens(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch tokens width"]:
        """Return all outputs of the last block, before the last normalisation."""
        return self.layers(self.initial_norm(self.embed(images)))

    def unprojected(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch width"]:
        """Return what the projection makes features of."""
        return self.pooled(self.tokens(images))

    def local(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch patches width"]:
        """Return every patch as it goes through the last block alone, after the last normalisation.

        In that block each patch attends to itself only. What GalLoP (Lafon et al., ECCV 2024)
        calls local features, before its own projection and `to_embedding`.
        """
        x = self.layers(self.initial_norm(self.embed(images)), part(self.blocks, slice(-1)))
        x, last = x[:, self.first_patch :], part(self.blocks, -1)
        return self.final_norm(last.finish(x, last.project(x)[2].reshape(x.shape)))

    def patches(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch patches embedding"]:
        """Return every patch's output of the last block in the space of images and texts.

        Unnormalised, as the class token's feature is; of a tower without one, features are the mean
        of these where the last normalisation comes before the pooling.
        """
        return self.to_embedding(self.final_norm(self.tokens(images)[:, self.first_patch :]))

    @property
    def local_width(self) -> int:
        """The width of what `local` returns.

        Raises:
            InputError: the tower pools with an attention of its own, which no patch goes through.
        """
        if self.config.pooling == "attention":
            raise InputError(
                "expected an image tower whose projection is that of its patches, too, got one that"
                " pools them with a learned query; choose another method or CLIP, e.g. ViT-B/16"
            )
        return self.final_norm.norm.num_features

    def project_local(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch embedding"]:
        """Return what `local` returned in the space that images and texts share."""
        return self.to_embedding(x)

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch embedding"]:
        """Return unnormalised features, in the tower's dtype."""
        return self.pool(self.tokens(images))


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
    """Return a convolution without bias, padded as in PyTorch (1 for a kernel of 3, 0 for 1)."""
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
    """Return means of disjoint windows; rows and columns left over are dropped, as in PyTorch."""
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
        """Shrink height and width by the stride."""
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

    def local(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch embedding"]:
        """Return every position through value and output alone, without its embedding."""
        return self.output(self.value(x))

    def unprojected(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch 1 c"]:
        """Attend from the mean position to itself and all positions."""
        return self._attended(x, slice(1))

    def patches(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch positions embedding"]:
        """Attend from every position, but the mean, to the mean position and all positions."""
        return self.output(self._attended(x, slice(1, None)))

    def _attended(
        self, x: Float[Array, "batch h w c"], queries: slice
    ) -> Float[Array, "batch queries c"]:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        x = x + self.positional_embedding[...].astype(x.dtype)[None]

        def split(projected: Array) -> Array:
            return projected.reshape(*projected.shape[:-1], self.heads, -1)

        return attend(split(self.query(x[:, queries])), split(self.key(x)), split(self.value(x)))

    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch embedding"]:
        """Return the output of what the mean position attends to."""
        return self.output(self.unprojected(x))[:, 0]


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

    def trunk(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch h w c"]:
        """Return the map of the last stage, before the attention pooling."""
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
        return x

    def tokens(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch tokens c"]:
        """Return all positions of the last map."""
        x = self.trunk(images)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    def unprojected(self, images: Float[Array, "batch size size 3"]) -> Float[Array, "batch width"]:
        """Return what the output of the attention pooling makes features of."""
        return self.pool.unprojected(self.trunk(images))[:, 0]

    def local(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch positions embedding"]:
        """Return every position through the values and outputs alone of the attention pooling."""
        return self.pool.local(self.tokens(images))

    def patches(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch positions embedding"]:
        """Return the output of what every position of the attention pooling attends to."""
        return self.pool.patches(self.trunk(images))

    @property
    def local_width(self) -> int:
        """The width of what `local` returns."""
        return self.pool.output.out_features

    def project_local(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch embedding"]:
        """Return what `local` returned, which is in the space that images and texts share."""
        return x

    def __call__(
        self, images: Float[Array, "batch size size 3"]
    ) -> Float[Array, "batch embedding"]:
        """Return unnormalised features, in the tower's dtype."""
        return self.pool(self.trunk(images))
