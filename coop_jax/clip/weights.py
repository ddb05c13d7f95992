"""Checkpoint tensors to a CLIP and back: one table per naming, everything filled, all checked.

Two namings are known: OpenAI's (also open_clip's publication of the same weights) and Hugging
Face transformers'. A table lists, for a given config, every tensor the checkpoint must hold and
the place it fills; both namings share it and differ only in names.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from coop_jax.clip.config import CLIPConfig, ResNetConfig, ViTConfig
from coop_jax.clip.fingerprint import digest
from coop_jax.clip.model import CLIP
from coop_jax.errors import InputError

IGNORED = ("position_ids", "num_batches_tracked", "attn_mask")
IGNORED_NAMES = {"input_resolution", "context_length", "vocab_size"}


class Tensors(Protocol):
    """A mapping from tensor names to arrays, read one at a time: the loader reads from it."""

    def names(self) -> set[str]:
        """All tensor names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class Slot:
    """One checkpoint tensor `name` and the place it fills in the module.

    `layer` is the index in a stack of blocks; `part` which third of a joint query-key-value
    projection; `transposed` whether the checkpoint stores outputs before inputs.
    """

    name: str
    path: tuple[str | int, ...]
    layer: int | None = None
    part: int | None = None
    transposed: bool = False

    def place(self, target: np.ndarray) -> np.ndarray:
        """The view of the whole parameter that this tensor fills."""
        view = target if self.layer is None else target[self.layer]
        if self.part is None:
            return view
        third = view.shape[-1] // 3
        return view[..., self.part * third : (self.part + 1) * third]

    def to_module(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor laid out as the module has it; `shape` is that of the place it fills."""
        if self.transposed:
            tensor = tensor.T if tensor.ndim == 2 else tensor.transpose(2, 3, 1, 0)
        return tensor.reshape(shape)

    def to_checkpoint(self, value: np.ndarray, patch: int) -> np.ndarray:
        """The inverse of `to_module`; `patch` unfolds the patch embedding."""
        if self.transposed and self.path[-2] == "patch_embedding":
            value = value.reshape(patch, patch, 3, -1)
        if self.transposed:
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        return value

    def checkpoint_shape(self, shape: tuple[int, ...], patch: int) -> tuple[int, ...]:
        """The shape that the tensor must have in the checkpoint."""
        return self.to_checkpoint(np.broadcast_to(np.float32(0), shape), patch).shape


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names one publisher gives to the parts of a CLIP."""

    text_block: str
    vision_block: str
    joint_attention: bool
    block: dict[str, str]
    single: dict[str, str]
    transposed_projections: bool


OPENAI = Naming(
    text_block="transformer.resblocks",
    vision_block="visual.transformer.resblocks",
    joint_attention=True,
    block={
        "attn.out_proj": "attention_output",
        "ln_1": "attention_norm.norm",
        "ln_2": "mlp_norm.norm",
        "mlp.c_fc": "mlp_input",
        "mlp.c_proj": "mlp_output",
    },
    single={
        "token_embedding.weight": "text.token_embedding",
        "positional_embedding": "text.positional_embedding",
        "ln_final": "text.final_norm.norm",
        "text_projection": "text.projection",
        "logit_scale": "logit_scale",
        "visual.class_embedding": "vision.class_embedding",
        "visual.positional_embedding": "vision.positional_embedding",
        "visual.conv1.weight": "vision.patch_embedding.kernel",
        "visual.ln_pre": "vision.initial_norm.norm",
        "visual.ln_post": "vision.final_norm.norm",
        "visual.proj": "vision.projection",
    },
    transposed_projections=False,
)

HUGGING_FACE = Naming(
    text_block="text_model.encoder.layers",
    vision_block="vision_model.encoder.layers",
    joint_attention=False,
    block={
        "self_attn.out_proj": "attention_output",
        "layer_norm1": "attention_norm.norm",
        "layer_norm2": "mlp_norm.norm",
        "mlp.fc1": "mlp_input",
        "mlp.fc2": "mlp_output",
    },
    single={
        "text_model.embeddings.token_embedding.weight": "text.token_embedding",
        "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
        "text_model.final_layer_norm": "text.final_norm.norm",
        "text_projection.weight": "text.projection",
        "logit_scale": "logit_scale",
        "vision_model.embeddings.class_embedding": "vision.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "vision.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "vision.patch_embedding.kernel",
        "vision_model.pre_layrnorm": "vision.initial_norm.norm",
        "vision_model.post_layernorm": "vision.final_norm.norm",
        "visual_projection.weight": "vision.projection",
    },
    transposed_projections=True,
)

NORM = {"weight": "scale", "bias": "bias"}
BATCH_NORM = {**NORM, "running_mean": "mean", "running_var": "var"}
LINEAR = {"weight": "kernel", "bias": "bias"}


def _path(dotted: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))


def _leaves(
    name: str, path: str, leaves: Mapping[str, str], layer: int | None = None
) -> Iterator[Slot]:
    for leaf, parameter in leaves.items():
        yield Slot(
            f"{name}.{leaf}",
            (*_path(path), parameter),
            layer=layer,
            transposed=parameter == "kernel",
        )


def _block_slots(naming: Naming, tower: str, prefix: str, layers: int) -> Iterator[Slot]:
    joint = (*_path(tower), "blocks", "query_key_value")
    for layer in range(layers):
        for name, part in naming.block.items():
            leaves = NORM if part.endswith("norm") else LINEAR
            yield from _leaves(f"{prefix}.{layer}.{name}", f"{tower}.blocks.{part}", leaves, layer)
        for leaf, parameter in LINEAR.items():
            transposed = parameter == "kernel"
            if naming.joint_attention:
                name = f"{prefix}.{layer}.attn.in_proj_{leaf}"
                yield Slot(name, (*joint, parameter), layer, transposed=transposed)
                continue
            for part, letter in enumerate("qkv"):
                name = f"{prefix}.{layer}.self_attn.{letter}_proj.{leaf}"
                yield Slot(name, (*joint, parameter), layer, part, transposed)


def _resnet_slots(config: ResNetConfig) -> Iterator[Slot]:
    for index in (1, 2, 3):
        yield from _leaves(f"visual.conv{index}", f"vision.conv{index}", {"weight": "kernel"})
        yield from _leaves(f"visual.bn{index}", f"vision.norm{index}.norm", BATCH_NORM)
    inputs = config.width
    for stage, blocks in enumerate(config.blocks):
        outputs = config.width * 2**stage * 4
        for block in range(blocks):
            name, path = f"visual.layer{stage + 1}.{block}", f"vision.stages.{stage}.{block}"
            pairs = [(f"conv{i}", f"bn{i}", f"conv{i}", f"norm{i}") for i in (1, 2, 3)]
            if block == 0 and (stage > 0 or inputs != outputs):
                pairs.append(("downsample.0", "downsample.1", "shortcut_conv", "shortcut_norm"))
            for conv, norm, conv_path, norm_path in pairs:
                yield from _leaves(f"{name}.{conv}", f"{path}.{conv_path}", {"weight": "kernel"})
                yield from _leaves(f"{name}.{norm}", f"{path}.{norm_path}.norm", BATCH_NORM)
        inputs = outputs
    pool = "visual.attnpool"
    yield Slot(f"{pool}.positional_embedding", ("vision", "pool", "positional_embedding"))
    for name, path in (("q", "query"), ("k", "key"), ("v", "value"), ("c", "output")):
        yield from _leaves(f"{pool}.{name}_proj", f"vision.pool.{path}", LINEAR)


def slots(config: CLIPConfig, naming: Naming) -> list[Slot]:
    """Every tensor that a checkpoint of this config must hold, in this naming."""
    found = []
    vit = isinstance(config.vision, ViTConfig)
    for name, path in naming.single.items():
        if path.startswith("vision.") and not vit:
            continue
        if path.endswith("norm"):
            found += _leaves(name, path, NORM)
            continue
        transposed = path.endswith("kernel") or (
            path.endswith("projection") and naming.transposed_projections
        )
        found.append(Slot(name, _path(path), transposed=transposed))
    found += _block_slots(naming, "text", naming.text_block, config.text.transformer.layers)
    if isinstance(config.vision, ViTConfig):
        layers = config.vision.transformer.layers
        found += _block_slots(naming, "vision", naming.vision_block, layers)
    else:
        found += _resnet_slots(config.vision)
    return found


def build(
    tensors: Tensors, config: CLIPConfig, naming: Naming, dtype: DTypeLike, where: str
) -> CLIP:
    """A CLIP of this config filled from the tensors.

    Raises:
        InputError: tensors are missing, unknown or of another shape; all of them are listed.
    """
    abstract = nnx.eval_shape(lambda: CLIP(config, dtype, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    flat = dict(nnx.to_flat_state(state))
    patch = config.vision.patch_size if isinstance(config.vision, ViTConfig) else 0
    table = slots(config, naming)
    assert flat.keys() == {slot.path for slot in table}, "a parameter that no tensor fills"
    present = tensors.names()
    problems = [
        f"{name}: unknown"
        for name in sorted(present - {slot.name for slot in table} - IGNORED_NAMES)
        if not name.endswith(IGNORED)
    ]
    values = {path: np.empty(leaf.shape, np.float32) for path, leaf in flat.items()}
    for slot in table:
        place = slot.place(values[slot.path])
        if slot.name not in present:
            problems.append(f"{slot.name}: missing")
            continue
        expected, got = slot.checkpoint_shape(place.shape, patch), tensors.shape(slot.name)
        if got != expected and not (place.ndim == 0 and got == (1,)):
            problems.append(f"{slot.name}: expected {list(expected)}, got {list(got)}")
            continue
        place[...] = slot.to_module(np.asarray(tensors.read(slot.name)), place.shape)
    if problems:
        raise InputError(
            f"{where}: {len(problems)} tensors do not fit a CLIP of these dimensions"
            f" ({'; '.join(problems)}); use a complete, unmodified checkpoint"
        )
    rounded = {path: values[path].astype(leaf.dtype, copy=False) for path, leaf in flat.items()}
    filled = [(path, leaf.replace(jax.device_put(rounded[path]))) for path, leaf in flat.items()]
    clip = nnx.merge(graphdef, nnx.from_flat_state(filled))
    if dtype != jnp.float32:
        clip.rounded_from = digest(rounded), digest(values)
    return clip


def hugging_face_tensors(clip: CLIP) -> dict[str, np.ndarray]:
    """The weights under transformers' names, as `model.safetensors` of a CLIP folder holds them."""
    flat = dict(nnx.to_flat_state(nnx.state(clip)))
    vision = clip.config.vision
    if not isinstance(vision, ViTConfig):
        raise InputError("transformers' CLIP has no ResNet: expected a ViT image tower")
    return {
        slot.name: np.array(
            slot.to_checkpoint(slot.place(np.asarray(flat[slot.path][...])), vision.patch_size),
            order="C",
        )
        for slot in slots(clip.config, HUGGING_FACE)
    }
