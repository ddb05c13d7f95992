"""The names that publishers give to the tensors of a checkpoint, and the places these fill.

A table lists, for a given config, every tensor that the checkpoint must hold and the place it
fills. Each tower has its publisher's names: OpenAI's (also open_clip's), transformers', or timm's.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from coop_jax.clip.config import CLIPConfig, ResNetConfig, ViTConfig


@dataclasses.dataclass(frozen=True)
class Slot:
    """One checkpoint tensor `name` and the place it fills in the module.

    `layer` is the index in a stack of blocks; `thirds` says which of a joint query-key-value
    projection; `transposed` whether the checkpoint stores outputs before inputs.
    """

    name: str
    path: tuple[str | int, ...]
    layer: int | None = None
    thirds: tuple[int, int] = (0, 3)
    transposed: bool = False

    def place(self, target: np.ndarray) -> np.ndarray:
        """The view of the whole parameter that this tensor fills."""
        view = target if self.layer is None else target[self.layer]
        if self.thirds == (0, 3):
            return view
        third = view.shape[-1] // 3
        start, stop = self.thirds
        return view[..., start * third : stop * third]

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


Thirds = dict[str, tuple[int, int]]
"""Names of tensors, {} for a leaf, and the thirds of a joint projection that they are."""

SEPARATE: Thirds = {
    "self_attn.q_proj.{}": (0, 1),
    "self_attn.k_proj.{}": (1, 2),
    "self_attn.v_proj.{}": (2, 3),
}


@dataclasses.dataclass(frozen=True)
class Naming:
    """The names that one publisher gives to the parts of a tower.

    Attributes:
        blocks: what the names of the blocks' tensors begin with, before the layer's number.
        attention: of the joint projection of a block.
        block: of its other parts.
        single: of the tower's other parts.
        head: of the joint projection of an attention that pools.
    """

    blocks: str
    attention: Thirds
    block: dict[str, str]
    single: dict[str, str]
    head: Thirds = dataclasses.field(default_factory=dict)

    def projecting(self, name: str, *, linear: bool) -> "Naming":
        """Return these names and that of the text projection: a matrix, or a linear layer."""
        names = {f"{name}.weight": "projection", f"{name}.bias": "projection_bias"}
        single = self.single | (names if linear else {name: "projection"})
        return dataclasses.replace(self, single=single)

    def behind(self, prefix: str) -> "Naming":
        """Return the same names behind a prefix."""
        single = {prefix + name: path for name, path in self.single.items()}
        return dataclasses.replace(self, blocks=prefix + self.blocks, single=single)


OPENAI_BLOCK = {
    "attn.out_proj": "attention_output",
    "ln_1": "attention_norm.norm",
    "ln_2": "mlp_norm.norm",
    "mlp.c_fc": "mlp_input",
    "mlp.c_proj": "mlp_output",
}
TRANSFORMERS_BLOCK = {
    "self_attn.out_proj": "attention_output",
    "layer_norm1": "attention_norm.norm",
    "layer_norm2": "mlp_norm.norm",
    "mlp.fc1": "mlp_input",
    "mlp.fc2": "mlp_output",
}

OPENAI_TEXT = Naming(
    blocks="transformer.resblocks",
    attention={"attn.in_proj_{}": (0, 3)},
    block=OPENAI_BLOCK,
    single={
        "token_embedding.weight": "token_embedding",
        "positional_embedding": "positional_embedding",
        "ln_final": "final_norm.norm",
    },
)
OPENAI_VISION = Naming(
    blocks="visual.transformer.resblocks",
    attention={"attn.in_proj_{}": (0, 3)},
    block=OPENAI_BLOCK,
    single={
        "visual.class_embedding": "class_embedding",
        "visual.positional_embedding": "positional_embedding",
        "visual.conv1.weight": "patch_embedding.kernel",
        "visual.ln_pre": "initial_norm.norm",
        "visual.ln_post": "final_norm.norm",
        "visual.proj": "projection",
    },
)
TIMM_VISION = Naming(
    blocks="visual.trunk.blocks",
    attention={"attn.qkv.{}": (0, 3)},
    block={
        "attn.proj": "attention_output",
        "norm1": "attention_norm.norm",
        "norm2": "mlp_norm.norm",
        "mlp.fc1": "mlp_input",
        "mlp.fc2": "mlp_output",
    },
    single={
        "visual.trunk.pos_embed": "positional_embedding",
        "visual.trunk.patch_embed.proj.weight": "patch_embedding.kernel",
        "visual.trunk.patch_embed.proj.bias": "patch_embedding.bias",
        "visual.trunk.norm": "final_norm.norm",
        "visual.trunk.attn_pool.latent": "head.probe",
        "visual.trunk.attn_pool.proj": "head.attention_output",
        "visual.trunk.attn_pool.norm": "head.mlp_norm.norm",
        "visual.trunk.attn_pool.mlp.fc1": "head.mlp_input",
        "visual.trunk.attn_pool.mlp.fc2": "head.mlp_output",
    },
    head={"visual.trunk.attn_pool.q.{}": (0, 1), "visual.trunk.attn_pool.kv.{}": (1, 3)},
)
TRANSFORMERS_TEXT = Naming(
    blocks="text_model.encoder.layers",
    attention=SEPARATE,
    block=TRANSFORMERS_BLOCK,
    single={
        "text_model.embeddings.token_embedding.weight": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm": "final_norm.norm",
    },
)
TRANSFORMERS_VISION = Naming(
    blocks="vision_model.encoder.layers",
    attention=SEPARATE,
    block=TRANSFORMERS_BLOCK,
    single={
        "vision_model.embeddings.class_embedding": "class_embedding",
        "vision_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "patch_embedding.kernel",
        "vision_model.embeddings.patch_embedding.bias": "patch_embedding.bias",
        "vision_model.pre_layrnorm": "initial_norm.norm",
        "vision_model.post_layernorm": "final_norm.norm",
        "visual_projection.weight": "projection",
        "vision_model.head.probe": "head.probe",
        "vision_model.head.attention.out_proj": "head.attention_output",
        "vision_model.head.layernorm": "head.mlp_norm.norm",
        "vision_model.head.mlp.fc1": "head.mlp_input",
        "vision_model.head.mlp.fc2": "head.mlp_output",
    },
    head={"vision_model.head.attention.in_proj_{}": (0, 3)},
)


def is_of_transformers(names: Collection[str]) -> bool:
    """Return True if tensors have the names that transformers gives."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in names)


def namings(names: Collection[str], config: CLIPConfig) -> dict[str, Naming]:
    """Return whose names the tensors of a checkpoint have, by tower."""
    linear = config.text.projection == "linear"
    if is_of_transformers(names):
        return transformers_namings(config)
    text = OPENAI_TEXT.projecting("text_projection", linear=linear)
    timm = any(name.startswith("visual.trunk.") for name in names)
    return {
        "text": text.behind("text.") if "text.token_embedding.weight" in names else text,
        "vision": TIMM_VISION if timm else OPENAI_VISION,
    }


def transformers_namings(config: CLIPConfig) -> dict[str, Naming]:
    """Return the names that transformers gives to the tensors of a CLIP or SigLIP, by tower."""
    linear = config.text.projection == "linear"
    name = "text_model.head" if linear else "text_projection.weight"
    return {
        "text": TRANSFORMERS_TEXT.projecting(name, linear=linear),
        "vision": TRANSFORMERS_VISION,
    }


Paths = Collection[tuple[Any, ...]]
"""The places of a module's parameters."""

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


def _projection_slots(
    names: Thirds, path: str, prefix: str = "", layer: int | None = None
) -> Iterator[Slot]:
    for name, thirds in names.items():
        for leaf, parameter in LINEAR.items():
            target = (*_path(path), "query_key_value", parameter)
            transposed = parameter == "kernel"
            yield Slot(prefix + name.format(leaf), target, layer, thirds, transposed)


def _tower_slots(naming: Naming, tower: str, paths: Paths, layers: int) -> Iterator[Slot]:
    for name, path in naming.single.items():
        whole = f"{tower}.{path}"
        if not any(known[: whole.count(".") + 1] == _path(whole) for known in paths):
            continue
        if path.endswith("norm"):
            yield from _leaves(name, whole, NORM)
        elif path.startswith("head.") and not path.endswith("probe"):
            yield from _leaves(name, whole, LINEAR)
        else:
            stored_by_torch = name.endswith(".weight") and path.endswith("projection")
            yield Slot(name, _path(whole), transposed=path.endswith("kernel") or stored_by_torch)
    if (tower, "head", "probe") in paths:
        yield from _projection_slots(naming.head, f"{tower}.head")
    for layer in range(layers):
        prefix, blocks = f"{naming.blocks}.{layer}.", f"{tower}.blocks"
        yield from _projection_slots(naming.attention, blocks, prefix, layer)
        for name, part in naming.block.items():
            leaves = NORM if part.endswith("norm") else LINEAR
            yield from _leaves(f"{prefix}{name}", f"{blocks}.{part}", leaves, layer)


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


def slots(config: CLIPConfig, naming: Mapping[str, Naming], paths: Paths) -> list[Slot]:
    """Every tensor that a checkpoint of this config must hold, in this naming."""
    text, vision = config.text, config.vision
    table = [Slot("logit_scale", ("logit_scale",))]
    if config.logit_bias:
        table.append(Slot("logit_bias", ("logit_bias",)))
    table += _tower_slots(naming["text"], "text", paths, text.transformer.layers)
    if isinstance(vision, ViTConfig):
        table += _tower_slots(naming["vision"], "vision", paths, vision.transformer.layers)
    else:
        table += _resnet_slots(vision)
    return table
