"""What holds for methods that adapt at test time, besides the recorded numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import refusal

from coop_jax import evaluate, methods, parallel
from coop_jax.classes import Classes
from coop_jax.clip import FeatureSpace
from coop_jax.data import memory
from coop_jax.methods import Images
from coop_jax.predictor import Predictor

VIEWS = 4


def views(count, seed=0, embedding=24):
    """Random views that agree about as much as those of an image do."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 1, embedding))
    return (images + 0.3 * rng.normal(size=(count, VIEWS, embedding))).astype(np.float32)


def create_tpt(clip, tokenizer, names=CLASS_NAMES, seed=0, shards=1, **config):
    config = {"views": VIEWS, "confident_share": 0.5, **config}
    return methods.create("tpt", clip, tokenizer, names, config, seed=seed, shards=shards)


def plain_tpt(clip, tokenizer, words, context, features, *, steps, rate, decay):
    """TPT as its paper states it: image by image, all 77 tokens of every prompt, AdamW by hand."""
    before = words.index("[CLS]") if "[CLS]" in words else len(context)
    table, names = clip.text.token_embedding[...], [name.replace("_", " ") for name in CLASS_NAMES]
    placeholder = " ".join(word for word in words if word != "[CLS]")
    tokens = tokenizer([f"{placeholder} {name}." for name in names])
    ends = np.argmax(tokens == tokenizer.end, axis=1)

    def prompt(row, context):
        embedded, name = table[tokens[row]], len(tokenizer.ids(names[row]))
        behind = 1 + len(context)
        parts = [embedded[:1], context[:before], embedded[behind : behind + name]]
        return jnp.concatenate([*parts, context[before:], embedded[behind + name :]])

    def logits(context, features):
        prompts = jnp.stack([prompt(row, context) for row in range(len(names))])
        x = prompts + clip.text.positional_embedding[...]
        hidden = jnp.triu(jnp.full((77, 77), -jnp.inf), 1)
        layers = jax.tree.leaves(clip.text.blocks)[0].shape[0]
        for layer in range(layers):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], clip.text.blocks)
            query, key, value = block.project(x)
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores + hidden), value)
            x = block.finish(x, mixed.reshape(x.shape))
        texts = clip.text.final_norm(x[np.arange(len(names)), ends]) @ clip.text.projection[...]
        texts = texts / jnp.linalg.norm(texts, axis=1, keepdims=True)
        features = features / jnp.linalg.norm(features, axis=1, keepdims=True)
        return jnp.exp(clip.logit_scale[...]) * features @ texts.T

    def loss(context, features):
        mean = jax.nn.softmax(logits(context, features)).mean(axis=0)
        return -jnp.sum(mean * jnp.log(mean))

    gradient_of, logits = jax.jit(jax.value_and_grad(loss)), jax.jit(logits)
    adapted, losses, chosen = [], [], []
    for image in features:
        probabilities = np.asarray(jax.nn.softmax(logits(context, image)), np.float64)
        entropies = -np.sum(probabilities * np.log(probabilities), axis=1)
        selected = np.argsort(entropies)[: VIEWS // 2]
        value, first, second, of_image = np.array(context), 0.0, 0.0, []
        for step in range(1, steps + 1):
            found, gradient = gradient_of(value, image[selected])
            of_image.append(float(found))
            first = 0.9 * first + 0.1 * np.asarray(gradient)
            second = 0.999 * second + 0.001 * np.asarray(gradient) ** 2
            root = np.sqrt(second / (1 - 0.999**step))
            value = value * (1 - rate * decay) - rate * first / (1 - 0.9**step) / (root + 1e-8)
        adapted.append(np.asarray(logits(value, image[:1]))[0])
        losses.append(of_image)
        chosen.append(selected)
    return np.stack(adapted), np.asarray(losses), np.stack(chosen)


@pytest.mark.parametrize(("phrase", "steps"), [("", 1), ("a dark [CLS] on white", 3)])
def test_tpt_is_its_plain_form(phrase, steps, tiny_clip, tiny_tokenizer):
    rate, decay = 2e-3, 0.1
    method = create_tpt(
        tiny_clip,
        tiny_tokenizer,
        context_init=phrase,
        steps=steps,
        learning_rate=rate,
        weight_decay=decay,
    )
    features, words = views(3), (phrase or "X X X X").split()
    expected, losses, selected = plain_tpt(
        tiny_clip,
        tiny_tokenizer,
        words,
        np.asarray(method.context[...]),
        features,
        steps=steps,
        rate=rate,
        decay=decay,
    )
    tuned = jax.jit(method.tune)(tiny_clip, features)
    np.testing.assert_array_equal(tuned.selected, selected)
    np.testing.assert_allclose(tuned.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(tuned.logits, expected, rtol=1e-4, atol=1e-4)
    assert (np.abs(tuned.logits - tuned.view_logits[:, 0]) > 1e-3).any(axis=1).all()


def test_tpt_of_an_image_depends_on_no_other(tiny_clip, tiny_tokenizer, one_device):
    method = create_tpt(tiny_clip, tiny_tokenizer)
    count = method.prompts.at_once + 3  # more than are worked on at once
    features = views(count)
    together = evaluate.logits(method, tiny_clip, Images(features=features), one_device)
    for place in (0, count // 2, count - 1):
        [alone] = evaluate.logits(
            method, tiny_clip, Images(features=features[place : place + 1]), one_device
        )
        np.testing.assert_allclose(together[place], alone, rtol=1e-4, atol=1e-4)
    assert np.ptp(together, axis=0).min() > 0.1


def test_tpt_starts_from_what_coop_learned(tiny_clip, tiny_tokenizer, one_device):
    """Without a rate, its logits of the first view are then CoOp's, also for other classes."""
    wanted = ("anemone", "bolete", "tench")
    coop = methods.create("coop", tiny_clip, tiny_tokenizer, wanted, {"n_ctx": 3}, seed=1)
    tpt = create_tpt(
        tiny_clip, tiny_tokenizer, wanted, n_ctx=3, context_init="", learning_rate=0.0, seed=2
    )
    assert tpt.stages({}) == () and set(methods.saved(tpt)) == {"context"}
    learned = {"context": coop.context[...]}
    methods.fill(
        tpt, learned, Classes(CLASS_NAMES), Classes(wanted).moved_from(Classes(CLASS_NAMES))
    )
    features = views(4)
    expected = evaluate.logits(coop, tiny_clip, Images(features=features[:, 0]), one_device)
    got = evaluate.logits(tpt, tiny_clip, Images(features=features), one_device)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"steps": 0}, "steps"),
        ({"context_init": "[CLS] or [CLS]"}, "context_init"),
        ({"confident_share": 0.1}, "confident_share"),
        ({"confident_share": 1.5}, "confident_share"),
    ],
)
def test_settings_that_tpt_refuses(config, part, tiny_clip, tiny_tokenizer):
    assert part in refusal(create_tpt, tiny_clip, tiny_tokenizer, **config)


CLASSES, EMBEDDING = 4, 6


def create_tda(texts=None, **config):
    """TDA in a space of given features."""
    texts = np.random.default_rng(9).normal(size=(CLASSES, EMBEDDING)) if texts is None else texts
    space = FeatureSpace(EMBEDDING, 10.0)
    names = [f"class {label}" for label in range(len(texts))]
    method = methods.create("tda", space, None, names, config, texts=texts[None])
    return method, space, texts / np.linalg.norm(texts, axis=1, keepdims=True)


def plain_tda(texts, features, config):
    """TDA as its paper states it, in dictionaries of lists; `[images, views, embedding]`."""
    caches, logits_of = {"positive": {}, "negative": {}}, []
    low, high = config["entropy_range"]
    least, most = config["probability_range"]

    def softmax(logits):
        return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)

    def entropy(probabilities):
        return -np.sum(probabilities * np.log(probabilities), axis=-1)

    for image in features.astype(np.float64):
        image = image / np.linalg.norm(image, axis=1, keepdims=True)
        logits = 10.0 * image @ texts.T
        if len(image) > 1:
            chosen = np.argsort(entropy(softmax(logits)))[: int(len(image) * 0.5)]
            image, logits = image[chosen], logits[chosen]
        key, probabilities, logits = image.mean(0), softmax(logits).mean(0), logits.mean(0)
        found, label = entropy(probabilities), int(logits.argmax())
        enters = {"positive": True, "negative": low < found / np.log2(len(texts)) < high}
        of_class = {"positive": np.eye(len(texts))[label]}
        of_class["negative"] = (least < probabilities) & (probabilities < most)
        for name, sign in (("positive", 1), ("negative", -1)):
            cache, capacity = caches[name], config[f"{name}_capacity"]
            if enters[name]:
                items = cache.setdefault(label, [])
                if len(items) < capacity:
                    items.append((found, key, of_class[name]))
                elif found < items[-1][0]:
                    items[-1] = (found, key, of_class[name])
                items.sort(key=lambda item: item[0])
            for _, other, values in (item for items in cache.values() for item in items):
                weight = np.exp(-config[f"{name}_beta"] * (1 - key @ other))
                logits = logits + sign * config[f"{name}_alpha"] * weight * values
        logits_of.append(logits)
    return np.stack(logits_of)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    positive=st.integers(1, 3),
    negative=st.integers(1, 3),
    several=st.booleans(),
)
def test_tda_is_its_plain_form(seed, positive, negative, several, one_device):
    config = {
        "positive_capacity": positive,
        "positive_alpha": 1.5,
        "positive_beta": 3.0,
        "negative_capacity": negative,
        "negative_alpha": 0.7,
        "negative_beta": 2.0,
        "entropy_range": (0.1, 0.45),
        "probability_range": (0.05, 0.9),
        "views": VIEWS if several else 1,
        "confident_share": 0.5,
    }
    method, space, texts = create_tda(**config)
    features = views(24, seed, EMBEDDING)[:, : config["views"]]
    images = Images(features=features if several else features[:, 0])
    logits = evaluate.logits(method, space, images, one_device)
    expected = plain_tda(texts, features, config)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 8])
def test_tda_remembers_from_batch_to_batch(devices, one_device):
    method, space, _ = create_tda(views=VIEWS, confident_share=0.5)
    features = views(20, embedding=EMBEDDING)
    whole = evaluate.logits(method, space, Images(features=features), one_device)
    scorer = evaluate.Scorer(method, space, parallel.create_mesh(jax.devices()[:devices]))
    parts = [scorer.logits(Images(features=part)) for part in np.split(features, 2)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-5)
    alone = evaluate.logits(method, space, Images(features=features[10:]), one_device)
    assert np.abs(alone - parts[1]).max() > 0.1


def test_a_predictor_begins_a_stream_with_every_call(tiny_clip, tiny_tokenizer, one_device):
    method = methods.create("tda", tiny_clip, tiny_tokenizer, CLASS_NAMES)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    features = np.asarray(tiny_clip.encode_image(jnp.asarray(pixels)))
    expected = evaluate.logits(method, tiny_clip, Images(features=features), one_device)
    predictor = Predictor(method, tiny_clip, encode_batch_size=8)
    for _ in range(2):
        np.testing.assert_allclose(predictor.logits(pixels), expected, rtol=1e-4, atol=1e-4)
    split, order = memory.examples(pixels, split="test"), [4, 0, 1, 2, 3]
    drawn = Images(features=features[order])
    expected = evaluate.logits(method, tiny_clip, drawn, one_device)
    got = predictor.logits_of(split)[order]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_tda_treats_all_classes_alike(one_device):
    texts, order = np.random.default_rng(3).normal(size=(CLASSES, EMBEDDING)), [2, 0, 3, 1]
    images = Images(features=views(30, embedding=EMBEDDING)[:, 0])

    def logits(texts):
        method, space, _ = create_tda(texts)
        return evaluate.logits(method, space, images, one_device)

    np.testing.assert_allclose(logits(texts)[:, order], logits(texts[order]), rtol=1e-5, atol=1e-5)


def test_tda_without_its_caches_is_zero_shot_clip(tiny_clip, tiny_tokenizer, one_device):
    template = "a drawing of a {}."
    config = {"templates": (template,), "positive_alpha": 0.0, "negative_alpha": 0.0}
    made = [
        methods.create(name, tiny_clip, tiny_tokenizer, CLASS_NAMES, own, **others)
        for name, own, others in (
            ("tda", config, {}),
            ("tda", {**config, "templates": ()}, {"template": template}),
            ("zero_shot", {"templates": (template,)}, {}),
        )
    ]
    images = Images(features=views(6)[:, 0])
    named, own, expected = (
        evaluate.logits(method, tiny_clip, images, one_device) for method in made
    )
    np.testing.assert_allclose(named, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(named, own)


@pytest.mark.parametrize("name", ["positive_capacity", "negative_capacity"])
def test_tda_refuses_caches_without_room(name):
    assert name in refusal(create_tda, **{name: 0})


def test_tda_refuses_too_few_views():
    assert "confident_share" in refusal(create_tda, views=VIEWS)
