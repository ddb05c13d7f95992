"""Sizes that all differ, so that none can be taken for another, and none is 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_clip
from flax import nnx

from coop_jax import images, methods
from coop_jax.clip.config import CLIPConfig, TextConfig, TransformerConfig, ViTConfig
from coop_jax.methods import Batch, Images, Learned

NAMES = ("circle", "hen-of-the-woods", "a", "seven", "black and gold garden spider")
EMBEDDING, WIDTH, HIDDEN = 80, 48, 5


@pytest.fixture(scope="module")
def uneven_clip(tiny_tokenizer):
    """3 and 4 heads, 2 and 3 layers, 9 patches, and a hidden layer of 5 in CoCoOp's meta-net."""
    vision = ViTConfig(24, 8, TransformerConfig(56, 2, 4, 72))
    text = TextConfig(len(tiny_tokenizer.words()), 77, TransformerConfig(WIDTH, 3, 3, 64))
    return random_clip(CLIPConfig(EMBEDDING, vision, text))


def created(name, clip, tokenizer, seed=1, **settings):
    return methods.create(name, clip, tokenizer, NAMES, settings, seed=seed)


def test_the_meta_net_begins_within_pytorch_s_bounds(uneven_clip, tiny_tokenizer):
    """Uniform within the inverse root of the number of inputs, as `torch.nn.Linear` begins."""
    nets = [
        created("cocoop", uneven_clip, tiny_tokenizer, seed=seed).meta_net for seed in range(1, 9)
    ]
    shapes = {
        "kernel1": (EMBEDDING, HIDDEN),
        "bias1": (HIDDEN,),
        "kernel2": (HIDDEN, WIDTH),
        "bias2": (WIDTH,),
    }
    for name, shape in shapes.items():
        values = np.stack([np.asarray(getattr(net, name)[...]) for net in nets])
        assert values.shape[1:] == shape
        bound = (EMBEDDING if name.endswith("1") else HIDDEN) ** -0.5
        assert np.abs(values).max() <= bound
        assert values.min() < -0.85 * bound and values.max() > 0.85 * bound
        spread = np.std(values) / bound  # 3**-0.5 of a uniform distribution
        assert 0.45 < spread < 0.7
        assert len(np.unique(values)) > 0.99 * values.size


def test_the_meta_net_has_a_relu_between_two_layers(uneven_clip, tiny_tokenizer):
    net = created("cocoop", uneven_clip, tiny_tokenizer).meta_net
    kernel1, bias1, kernel2, bias2 = (
        np.asarray(getattr(net, name)[...], np.float64)
        for name in ("kernel1", "bias1", "kernel2", "bias2")
    )
    features = np.random.default_rng(0).normal(size=(7, EMBEDDING))
    hidden = features @ kernel1 + bias1
    assert (hidden < 0).any(axis=0).all() and (hidden > 0).any(axis=0).all()
    expected = np.maximum(hidden, 0) @ kernel2 + bias2
    np.testing.assert_allclose(net(features.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)


@nnx.jit
def compute(method, clip, features):
    return method.logits(clip, method.texts(clip, None), Images(features=features))


def logits(method, clip, features):
    return np.asarray(compute(method, clip, jnp.asarray(features, jnp.float32)), np.float64)


def test_each_image_has_the_prompts_that_the_meta_net_gives_it(uneven_clip, tiny_tokenizer):
    """CoCoOp's logits of an image are CoOp's with the context that the meta-net shifts."""
    method = created("cocoop", uneven_clip, tiny_tokenizer, n_ctx=3, context_init="")
    coop = created("coop", uneven_clip, tiny_tokenizer, n_ctx=3)
    assert method.context.shape == coop.context.shape == (3, WIDTH)
    features = np.random.default_rng(0).normal(size=(4, EMBEDDING))
    together = logits(method, uneven_clip, features)
    assert together.shape == (4, len(NAMES))
    for number, image in enumerate(features):
        alone = logits(method, uneven_clip, image[None])
        np.testing.assert_allclose(together[number : number + 1], alone, rtol=1e-4)
        unit = (image / np.linalg.norm(image)).astype(np.float32)
        coop.context[...] = method.context[...] + method.meta_net(unit[None])
        np.testing.assert_allclose(alone, logits(coop, uneven_clip, image[None]), rtol=1e-4)
    assert np.std(together, axis=0).min() > 1e-3


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_class_specific_contexts_go_to_their_classes(uneven_clip, tiny_tokenizer, position):
    """Each class's column is that of a shared context equal to its own."""
    settings = {"n_ctx": 3, "class_token_position": position}
    own = created("coop", uneven_clip, tiny_tokenizer, class_specific=True, **settings)
    shared = created("coop", uneven_clip, tiny_tokenizer, **settings)
    assert own.context.shape == (len(NAMES), 3, WIDTH)
    features = np.random.default_rng(1).normal(size=(4, EMBEDDING))
    whole = logits(own, uneven_clip, features)
    for label in range(len(NAMES)):
        shared.context[...] = own.context[label]
        column = logits(shared, uneven_clip, features)[:, label]
        np.testing.assert_allclose(whole[:, label], column, rtol=1e-4)


@pytest.mark.parametrize("tower", ["text", "image"])
def test_what_is_encoded_beside_it_changes_no_row(uneven_clip, tiny_tokenizer, tower):
    """In towers of several heads and layers; images are no square's."""
    if tower == "text":
        inputs = np.asarray(tiny_tokenizer([f"a photo of a {name}." for name in NAMES]))
        others = np.asarray(tiny_tokenizer(["seven"] * len(NAMES)))
    else:
        rng = np.random.default_rng(2)
        inputs, others = rng.integers(0, 256, (2, 5, 24, 24, 3)).astype(np.uint8)
    encode = nnx.jit(lambda clip, rows: getattr(clip, f"encode_{tower}")(rows))
    whole = np.asarray(encode(uneven_clip, inputs))
    assert whole.shape == (len(NAMES), EMBEDDING)
    assert np.std(whole, axis=0).min() > 1e-4
    np.testing.assert_allclose(encode(uneven_clip, inputs[::-1])[::-1], whole, rtol=1e-4, atol=1e-5)
    for row in (0, 3):
        mixed = others.copy()
        mixed[row] = inputs[row]
        got = np.asarray(encode(uneven_clip, mixed))
        np.testing.assert_allclose(got[row], whole[row], rtol=1e-4, atol=1e-5)
        assert np.abs(got[row - 1] - whole[row - 1]).max() > 1e-3
    if tower == "image":
        turned = np.asarray(encode(uneven_clip, inputs.transpose(0, 2, 1, 3)))
        assert np.abs(turned - whole).max() > 1e-3


def taken(method, clip):
    """The shapes of what a method takes of 7 images."""
    pixels = jax.ShapeDtypeStruct((7, 24, 24, 3), jnp.uint8)
    made = {"pixels": pixels}
    for field in {*method.takes} - {"pixels"}:
        name = "features" if field == "teacher" else field
        encode = lambda pixels, name=name: images.of_tower(clip, clip.normalized(pixels), name)  # noqa: E731
        made[field] = jax.eval_shape(encode, pixels)
    views = method.views.train

    def in_views(leaf):
        shape = leaf.shape if views == 1 else (leaf.shape[0], views, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return Images(**{field: in_views(made[field]) for field in method.takes})


DEPTHS = {
    "ivlp": {"depth_text": 3, "depth_vision": 2},
    "promptsrc": {"depth_text": 3, "depth_vision": 2},
    "maple": {"depth": 2},
    "mma": {"first": 2, "last": 2},
    "tcp": {"layer": 3},
}
"""The towers have 2 and 3 layers."""


NOTHING_LEARNED = {"cupl", "tda", "tpt", "waffleclip", "zero_shot"}


@pytest.mark.parametrize("name", sorted({*methods.available()} - NOTHING_LEARNED))
def test_every_method_s_gradient_has_the_shapes_of_what_it_learns(
    uneven_clip, tiny_tokenizer, name
):
    """Of all that take one, where widths, the embedding and the numbers of layers differ."""
    method = created(name, uneven_clip, tiny_tokenizer, **DEPTHS.get(name, {}))
    clip_graph, frozen = nnx.split(uneven_clip)
    graph, learned, rest = nnx.split(method, Learned, ...)
    batch = Batch(
        taken(method, uneven_clip),
        jax.ShapeDtypeStruct((7,), jnp.int32),
        jax.ShapeDtypeStruct((7,), jnp.float32),
        jax.random.key(0),
    )

    def losses(learned, batch):
        method = nnx.merge(graph, learned, rest, copy=True)
        clip = method.adapt(nnx.merge(clip_graph, frozen), jax.random.key(1))
        texts = method.texts(clip, jax.random.key(2))
        return sum(method.losses(clip, texts, batch).values())

    gradient = jax.eval_shape(jax.grad(losses), learned, batch)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (gradient, learned)]
    assert shapes[0] == shapes[1]
