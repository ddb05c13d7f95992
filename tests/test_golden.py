"""Agreement with numbers recorded from the official implementations."""

import json
import operator

import jax.numpy as jnp
import numpy as np
from reference import cases

from coop_jax import clip as clip_package
from coop_jax import evaluate, methods, optim, train
from coop_jax.chunks import Batches
from coop_jax.methods import Images, Stage


def relative(got, expected):
    """The norm of the difference over the norm of what is expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def load(case, tokenizer):
    """The arrays of a case, its description, and its CLIP."""
    arrays = np.load(case)
    meta = json.loads(str(arrays["meta"]))
    clip, tokens = clip_package.load(str(case.parent / meta["clip"]), tokenizer=tokenizer)
    return arrays, meta, clip, tokens


def image_features(clip, images):
    """Features of `[N, 3, H, W]` images that are already preprocessed."""
    return np.asarray(clip.encode_image(jnp.asarray(images.transpose(0, 2, 3, 1))))


KINDS = {
    "tokens": "test_golden.py",
    "zeroshot": "test_golden.py",
    "coop": "test_golden.py",
    "preprocess": "test_preprocess.py",
    "cocoop": "test_golden.py",
}


@cases("*.npz")
def test_every_recorded_case_is_known(case):
    assert case.stem.split("_")[0] in KINDS, f"no test reads {case}"


@cases("tokens.npz")
def test_tokens(case, openai_tokenizer):
    texts = json.loads((case.parent / "tokens_texts.json").read_text())
    tokenizer = clip_package.Tokenizer(openai_tokenizer)
    np.testing.assert_array_equal(tokenizer(texts, truncate=True), np.load(case)["tokens"])


@cases("zeroshot_*.npz")
def test_zero_shot(case, openai_tokenizer, one_device):
    arrays, meta, clip, tokenizer = load(case, openai_tokenizer)
    texts = [meta["template"].format(name.replace("_", " ")) for name in meta["classnames"]]
    tokens = tokenizer(texts)
    np.testing.assert_array_equal(tokens, arrays["tokens"])
    assert relative(clip.encode_text(jnp.asarray(tokens)), arrays["text_features"]) < 1e-5
    features = image_features(clip, arrays["images"])
    assert relative(features, arrays["image_features"]) < 1e-5
    method = methods.create(
        "zero_shot", clip, tokenizer, meta["classnames"], {"templates": (meta["template"],)}
    )
    logits = evaluate.logits(method, clip, Images(features=features), one_device)
    assert relative(logits, arrays["logits_per_image"]) < 3e-5


PARAMETERS = {
    "ctx": ("context", False),
    "meta_net.linear1.weight": ("meta_net.kernel1", True),
    "meta_net.linear1.bias": ("meta_net.bias1", False),
    "meta_net.linear2.weight": ("meta_net.kernel2", True),
    "meta_net.linear2.bias": ("meta_net.bias2", False),
}
"""The official name of each learned parameter: ours, and whether PyTorch stores it transposed."""


def learned(method):
    """The learned variables by their official names, and whether they are transposed there."""
    found = {}
    for official, (path, transposed) in PARAMETERS.items():
        if path == "context" or hasattr(method, "meta_net"):
            found[official] = operator.attrgetter(path)(method), transposed
    return found


def create_method(meta, clip, tokenizer):
    """The method that the case describes, as the package makes it."""
    config = {"n_ctx": meta["n_ctx"], "context_init": meta["ctx_init"] or ""}
    if meta["method"] == "coop":
        config["class_token_position"] = meta["class_token_position"]
        config["class_specific"] = meta["csc"]
    return methods.create(meta["method"], clip, tokenizer, meta["classnames"], config)


@cases("co*op_*.npz")
def test_trajectory(case, openai_tokenizer, one_device):
    arrays, meta, clip, tokenizer = load(case, openai_tokenizer)
    features = image_features(clip, arrays["images"])
    assert relative(features, arrays["image_features"]) < 1e-5
    order = arrays["order"]
    steps_per_epoch = len(order) // meta["epochs"]
    config = optim.OptimizerConfig()
    rates = optim.learning_rates(config, meta["epochs"], steps_per_epoch)
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-6)

    method = create_method(meta, clip, tokenizer)
    if meta["ctx_init"]:
        np.testing.assert_array_equal(method.context[...], arrays["init/ctx"])
    for name, (variable, transposed) in learned(method).items():
        start = arrays[f"init/{name}"].T if transposed else arrays[f"init/{name}"]
        assert variable.shape == start.shape
        variable[...] = jnp.asarray(start)
    # A chunk is at least an epoch: to see the parameters after every step, number the steps.
    batches = Batches(order, np.arange(len(order)), rates, arrays["labels"])
    recorded = {1: "step1", len(order) // 2 + 1: "mid", len(order): "final"}
    losses = []
    run = train.Run(method, batches, lambda wanted: Images(features=features[wanted[:, 1]]))
    stage = Stage(optimizer=config)
    for [progress] in train.fit([run], clip, stage, one_device, images_per_chunk=1):
        losses.extend(progress.losses)
        done = progress.done
        if done not in recorded:
            continue
        for name, (variable, transposed) in learned(method).items():
            got = variable[...].T if transposed else variable[...]
            assert relative(got, arrays[f"{recorded[done]}/{name}"]) < 1e-4, (name, done)
    np.testing.assert_allclose(losses, arrays["loss"], rtol=1e-4)
    logits = evaluate.logits(method, clip, Images(features=features), one_device)
    assert relative(logits, arrays["eval_logits"]) < 3e-5
