"""Every method through its files and exports: what it has learned gives the same logits."""

import collections

import numpy as np
import pytest
from makers import SMALL, refusal

from coop_jax import config as config_module
from coop_jax import evaluate, images, methods, run, train
from coop_jax.classes import Classes
from coop_jax.data import memory
from coop_jax.errors import InputError
from coop_jax.images import Encoder
from coop_jax.methods import Data
from coop_jax.saved import Saved, export

NAMES = ("red circle", "blue square", "black star")
OTHERS = ("black star", "green_triangle", "red circle")
TEMPLATE = "a small drawing of a {}."
REFUSE_NEW = (
    *("ape", "ape_t", "clap", "cross_modal", "cross_modal_adapter", "linear_probe"),
    *("lp_plus_plus", "proker", "taskres", "tfup", "tfup_t", "tip_adapter"),
    *("tip_adapter_f", "tip_x", "transclip"),
)
"""Methods that serve the classes they have learned alone."""

LINEAR = (
    "cross_modal",
    *("clap", "coop", "cupl", "gda", "kgcoop", "linear_probe", "lp_plus_plus", "pre", "prograd"),
    *("taskres", "tcp", "upl", "waffleclip", "zero_shot", "zpe"),
)
"""Methods whose logits are linear in image features."""

QUICK = (
    "coop",
    "cocoop",
    "cupl",
    "gda",
    "linear_probe",
    "maple",
    "tda",
    "tip_adapter_f",
    "zero_shot",
)
"""One method of each kind; the others' tests are heavy."""

every_method = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.heavy)
        for name in methods.available()
    ],
)


def pixels(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def examples(seed):
    """Two images of each class."""
    return memory.labelled(memory.examples(pixels(seed, 6), split="train"), list(NAMES) * 2, NAMES)


def create(name, clip, tokenizer, classes, seed=0):
    settings = SMALL.get(name, {})
    return methods.create(name, clip, tokenizer, classes, settings, seed=seed, template=TEMPLATE)


@pytest.fixture(scope="module")
def learn(tiny_clip, tiny_tokenizer, one_device):
    """A function from a method's name to a method that has learned in a few steps; each once."""
    learned = {}

    def learn_once(name):
        if name in learned:
            return learned[name]
        method = create(name, tiny_clip, tiny_tokenizer, NAMES)
        encoder = Encoder(tiny_clip, one_device, method.takes, batch_size=8)
        train_split, val = (images.split(encoder, examples(seed), seed=1) for seed in (0, 1))
        unlabeled = images.split(encoder, examples(2), seed=1, labelled=False)
        config = {**config_module.default(name), "epochs": 1, "batch_size": 3}
        for number, stage in enumerate(method.stages(config)):
            data = method.prepare(tiny_clip, number, Data(train_split, val, unlabeled))
            if stage.epochs == 0:
                continue
            steps = run.batches(stage, data.train, seed=1, shots=2, dataset="")
            encode = data.train.encode
            augmented = lambda requests, encode=encode: encode(requests, True)  # noqa: E731
            runs = [train.Run(method, steps, augmented)]
            collections.deque(train.fit(runs, tiny_clip, stage, one_device), maxlen=0)
        learned[name] = method
        return method

    return learn_once


@pytest.fixture(scope="module")
def images_of(tiny_clip, one_device):
    """A function from fields, and a number of views, to a few test images."""

    def of_fields(*fields, views=1):
        encoder = images.Encoder(tiny_clip, one_device, fields, batch_size=8)
        requests = np.asarray([[0, place] for place in range(4)])
        return encoder.images(examples(3), requests, seed=0, augmented=False, views=views)

    return of_fields


@pytest.fixture(scope="module")
def logits(images_of, tiny_clip, one_device):
    """A function from a method to its logits of the test images."""

    def of_method(method):
        seen = images_of(*method.takes, views=method.views.test)
        return evaluate.logits(method, tiny_clip, seen, one_device)

    return of_method


@every_method
def test_what_is_saved_gives_the_same_logits(
    name, learn, logits, tiny_clip, tiny_tokenizer, tmp_path
):
    method, classes = learn(name), Classes(NAMES)
    Saved.of(
        method,
        name=name,
        settings=SMALL.get(name, {}),
        clip=tiny_clip,
        backbone="tiny vit",
        classes=classes,
        template=TEMPLATE,
    ).save(tmp_path / "mine")
    saved = Saved.load(tmp_path / "mine")
    assert saved.learned.keys() == methods.saved(method).keys()
    again = saved.for_classes(tiny_clip, tiny_tokenizer)
    np.testing.assert_array_equal(logits(again), logits(method))
    wanted = OTHERS
    if name in REFUSE_NEW:
        with pytest.raises(InputError, match="green_triangle"):
            saved.for_classes(tiny_clip, tiny_tokenizer, Classes(OTHERS))
        wanted = NAMES[::-2]
    moved = Classes(wanted).moved_from(classes)
    fresh = create(name, tiny_clip, tiny_tokenizer, moved, seed=5)
    expected = logits(methods.move(method, fresh, classes, moved))
    again = saved.for_classes(tiny_clip, tiny_tokenizer, Classes(wanted))
    np.testing.assert_array_equal(logits(again), expected)
    assert not np.array_equal(expected, logits(method))


@every_method
def test_a_program_gives_the_same_logits(name, learn, logits, images_of, tiny_clip):
    method = learn(name)
    if name == "tda":
        assert "or the images before" in refusal(export.program, method, tiny_clip)
        return
    program = export.program(method, tiny_clip, platforms=["cpu"])
    pixels = images_of("pixels", views=method.views.test).pixels
    got, expected = program.call(pixels), logits(method)
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-5 * np.abs(expected).max())


@every_method
def test_class_weights_give_the_same_logits(name, learn, logits, images_of, tiny_clip):
    method = learn(name)
    if name not in LINEAR:
        message = refusal(export.class_weights, method, tiny_clip)
        assert f"got {name}, which is not" in message
        assert (".stablehlo" in message) == (name != "tda")
        return
    found, features = export.class_weights(method, tiny_clip), images_of("features").features
    if found.normalizes:
        features = features / np.linalg.norm(features, axis=1, keepdims=True)
    got, expected = features @ found.coefficients.T + found.intercept, logits(method)
    np.testing.assert_allclose(got, expected, rtol=3e-5, atol=3e-5 * np.abs(expected).max())
    assert found.normalizes == (name != "linear_probe")
    assert bool(found.intercept.any()) == (name in ("gda", "linear_probe", "lp_plus_plus"))
