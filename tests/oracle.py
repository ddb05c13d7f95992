"""The towers in their plain form: all 77 tokens of every prompt, nothing shared, no scan.

Written after Radford et al.'s description in NumPy float64, as an oracle for the fast form; and
after what methods put inside: prompts at the input of a layer, low rank, an adapter beside a block.
"""

import functools
import operator
from collections.abc import Callable

import numpy as np
from flax import nnx

from coop_jax.clip import CLIP


def numbers(module: nnx.Module) -> Callable[..., np.ndarray]:
    """A function from the path of a variable in a module to its values in float64."""
    state = nnx.to_pure_dict(nnx.state(module))

    def array(*path: str) -> np.ndarray:
        return np.asarray(functools.reduce(operator.getitem, path, state), np.float64)

    return array


ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def plain_layers(tower, config, x, *, causal, deep=None, low_rank=None, adapter=None):
    """Outputs of all blocks of a tower, layer by layer, head by head.

    Args:
        tower: with the frozen blocks.
        config: of its transformer.
        x: `[batch, length, width]`.
        causal: whether a token attends to none behind it.
        deep: vectors `[layers, n, width]`, where they are active `[layers]`, and the first token
            that they replace.
        low_rank: by "query", "key", "value" and "output", an update `[layers, width, width]` of the
            matrix.
        adapter: matrices `[layers, width, rank]` and `[layers, rank, width]`, with a ReLU between
            them, from a block's normalised input to what is added to its output.
    """
    array, length, x = numbers(tower), x.shape[1], np.asarray(x, np.float64)
    hidden = np.triu(np.ones((length, length), bool), 1) & causal
    for layer in range(config.layers):

        def linear(x, name, layer=layer):
            return x @ array("blocks", name, "kernel")[layer] + array("blocks", name, "bias")[layer]

        def norm(x, name, layer=layer):
            scale, bias = (array("blocks", name, "norm", part)[layer] for part in ("scale", "bias"))
            return normalised(x, config.epsilon) * scale + bias

        def update(x, name, layer=layer):
            return x @ np.asarray(low_rank[name][layer], np.float64) if low_rank else 0.0

        if deep is not None and deep[1][layer]:
            x = x.copy()
            x[:, deep[2] : deep[2] + deep[0].shape[1]] = deep[0][layer]
        first = norm(x, "attention_norm")
        query, key, value = (
            part + update(first, name)
            for part, name in zip(
                np.split(linear(first, "query_key_value"), 3, -1),
                ("query", "key", "value"),
                strict=True,
            )
        )
        mixed = np.empty_like(query)
        dimension = config.width // config.heads
        for head in range(config.heads):
            part = slice(head * dimension, (head + 1) * dimension)
            scores = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(dimension)
            scores = np.where(hidden, -np.inf, scores)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[..., part] = weights / weights.sum(-1, keepdims=True) @ value[..., part]
        beside = 0.0
        if adapter is not None:
            down, up = (np.asarray(matrix[layer], np.float64) for matrix in adapter)
            beside = np.maximum(first @ down, 0) @ up
        x = x + linear(mixed, "attention_output") + update(mixed, "output")
        inner = linear(norm(x, "mlp_norm"), "mlp_input")
        x = x + linear(ACTIVATIONS[config.activation](inner), "mlp_output") + beside
    return x


def plain_norm(module, config, x, name) -> np.ndarray:
    """One of a tower's own layer normalisations."""
    scale, bias = (numbers(module)(name, "norm", part) for part in ("scale", "bias"))
    return normalised(x, config.epsilon) * scale + bias


def plain_text_features(
    clip: CLIP, embeddings: np.ndarray, end: np.ndarray, **inside
) -> np.ndarray:
    """Features `[texts, embedding]` of whole prompts `[texts, length, width]`.

    `inside` is what `plain_layers` takes besides.
    """
    array, config = numbers(clip.text), clip.config.text.transformer
    x = np.asarray(embeddings, np.float64)
    x = x + array("positional_embedding")[: x.shape[1]]
    x = plain_layers(clip.text, config, x, causal=clip.config.text.causal, **inside)
    x = plain_norm(clip.text, config, x[np.arange(len(x)), end], "final_norm")
    bias = array("projection_bias") if clip.config.text.projection == "linear" else 0
    return x @ array("projection") + bias


def plain_vision_tokens(clip: CLIP, images: np.ndarray, prompts=None, **inside) -> np.ndarray:
    """The last block's outputs of normalised images, behind whose patches stand prompts.

    Patches are cut out one by one, row by row. `inside` is what `plain_layers` takes besides.
    """
    array, config, size = numbers(clip.vision), clip.config.vision, clip.config.vision.patch_size
    places = range(0, config.image_size, size)
    patches = [
        np.asarray(images, np.float64)[:, top : top + size, left : left + size].reshape(
            len(images), -1
        )
        for top in places
        for left in places
    ]
    embedded = np.stack(patches, 1) @ array("patch_embedding", "kernel")
    first = np.broadcast_to(array("class_embedding"), (len(images), 1, config.transformer.width))
    x = np.concatenate([first, embedded], axis=1) + array("positional_embedding")
    if prompts is not None:
        x = np.concatenate([x, np.broadcast_to(prompts, (len(x), *prompts.shape))], axis=1)
    x = plain_norm(clip.vision, config.transformer, x, "initial_norm")
    return plain_layers(clip.vision, config.transformer, x, causal=False, **inside)


def plain_image_features(clip: CLIP, tokens: np.ndarray) -> np.ndarray:
    """Features of the last block's outputs."""
    config = clip.config.vision.transformer
    first = plain_norm(clip.vision, config, tokens[:, 0], "final_norm")
    return first @ numbers(clip.vision)("projection")


def normalised(x: np.ndarray, epsilon: float) -> np.ndarray:
    """Zero mean and unit variance over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def plain_prompts(clip, tokenizer, class_names, context, position) -> tuple[np.ndarray, np.ndarray]:
    """CoOp's whole prompts, pieced together class by class as the official code does.

    `context` is `[M, width]` or `[C, M, width]`. Returns embeddings `[C, 77, width]` and the end
    positions `[C]`; of a tower that reads the last token, the last ones.
    """
    table = np.asarray(clip.text.token_embedding[...])
    context = np.broadcast_to(context, (len(class_names), *np.shape(context)[-2:]))
    count = context.shape[1]
    prompts, ends = [], []
    for name, vectors in zip(class_names, context, strict=True):
        ids = tokenizer([" ".join([tokenizer.placeholder] * count) + " " + name + "."])[0]
        reads_last = clip.config.text.pooling == "last"
        ends.append(len(ids) - 1 if reads_last else int(np.argmax(ids == tokenizer.end)))
        embedded, first = table[ids], len(tokenizer.starts)
        start, rest = embedded[:first], embedded[first + count :]
        length = len(tokenizer.ids(name))
        label, rest = rest[:length], rest[length:]
        half = {"end": count, "middle": count // 2, "front": 0}[position]
        prompts.append(np.concatenate([start, vectors[:half], label, vectors[half:], rest]))
    return np.stack(prompts), np.asarray(ends)


def products(jaxpr):
    """Every matrix product and convolution of a program, also inside its loops and functions."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)
