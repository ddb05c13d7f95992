"""The text tower in its plain form: all 77 tokens of every prompt, nothing shared, no scan.

Written after Radford et al.'s description in NumPy float64, as an oracle for the fast form.
"""

import numpy as np
from flax import nnx

from coop_jax.clip import CLIP


def plain_text_features(clip: CLIP, embeddings: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Features `[texts, embedding]` of whole prompts `[texts, length, width]`."""
    state = nnx.to_pure_dict(nnx.state(clip.text))

    def array(*path):
        value = state
        for part in path:
            value = value[part]
        return np.asarray(value, np.float64)

    config = clip.config.text.transformer
    x = np.asarray(embeddings, np.float64)
    length = x.shape[1]
    x = x + array("positional_embedding")[:length]
    hidden = np.triu(np.ones((length, length), bool), 1)
    for layer in range(config.layers):

        def linear(x, name, layer=layer):
            return x @ array("blocks", name, "kernel")[layer] + array("blocks", name, "bias")[layer]

        def norm(x, name, layer=layer):
            scale, bias = (
                array("blocks", name, "norm", "scale"),
                array("blocks", name, "norm", "bias"),
            )
            return normalised(x, config.epsilon) * scale[layer] + bias[layer]

        query, key, value = np.split(linear(norm(x, "attention_norm"), "query_key_value"), 3, -1)
        mixed = np.empty_like(query)
        dimension = config.width // config.heads
        for head in range(config.heads):
            part = slice(head * dimension, (head + 1) * dimension)
            scores = query[..., part] @ key[..., part].swapaxes(1, 2) / np.sqrt(dimension)
            scores = np.where(hidden, -np.inf, scores)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed[..., part] = weights / weights.sum(-1, keepdims=True) @ value[..., part]
        x = x + linear(mixed, "attention_output")
        inner = linear(norm(x, "mlp_norm"), "mlp_input")
        x = x + linear(inner / (1 + np.exp(-1.702 * inner)), "mlp_output")
    x = x[np.arange(len(x)), end]
    scale, bias = array("final_norm", "norm", "scale"), array("final_norm", "norm", "bias")
    x = normalised(x, config.epsilon) * scale + bias
    return x @ array("projection")


def normalised(x: np.ndarray, epsilon: float) -> np.ndarray:
    """Zero mean and unit variance over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def plain_prompts(clip, tokenizer, class_names, context, position) -> tuple[np.ndarray, np.ndarray]:
    """CoOp's whole prompts, pieced together class by class as the official code does.

    `context` is `[M, width]` or `[C, M, width]`. Returns embeddings `[C, 77, width]` and the end
    positions `[C]`.
    """
    table = np.asarray(clip.text.token_embedding[...])
    context = np.broadcast_to(context, (len(class_names), *np.shape(context)[-2:]))
    count = context.shape[1]
    prompts, ends = [], []
    for name, vectors in zip(class_names, context, strict=True):
        ids = tokenizer([" ".join(["X"] * count) + " " + name + "."])[0]
        ends.append(int(np.argmax(ids == tokenizer.end)))
        embedded = table[ids]
        start, rest = embedded[:1], embedded[1 + count :]
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
