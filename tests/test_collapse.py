"""A run that learns nothing says so once, with the step and why; others say nothing."""

import re

import numpy as np
import pytest
from makers import feature_arrays

from coop_jax import Classifier, collapse

HEAD = """
import jax.numpy as jnp
from coop_jax.methods import Learned, Stage, base

NAME, PAPER = "head", "nobody, nowhere"


def default_config():
    return {"scale": 1.0, "bias": 0.0}


class Method(base.Method):
    def __init__(self, given, config):
        shape = (given.clip.config.embedding, len(given.classes))
        self.weight = Learned(jnp.zeros(shape))
        self.scale, self.bias = config["scale"], config["bias"]

    def logits(self, clip, texts, images):
        logits = self.scale * images.features @ self.weight[...]
        return logits + self.bias * (jnp.arange(logits.shape[1]) == 1)
"""
"""A linear head without weights at first."""

FIT = ("--batch-size=4", "--epochs=9", "--shots=all")


@pytest.fixture
def head(tmp_path):
    (tmp_path / "head.py").write_text(HEAD)
    return tmp_path / "head.py"


def said(lines):
    return [
        line
        for line in lines
        if "that of guessing" in line or "for one" in line or "takes all" in line
    ]


def quick(path, workdir, method, *flags):
    few = ("--config.shots=(2,)", "--config.seeds=(1,)", "--config.loggers=()")
    few += ("--config.epochs=6", "--config.batch_size=4", f"--config.method.name={method}")
    return (
        "run",
        "--config=few_shot",
        f"--config.dataset={path}",
        f"--workdir={workdir}",
        *few,
        *flags,
    )


def test_a_loss_of_guessing_is_said_once(write_features, head, run, tmp_path):
    path = write_features(feature_arrays())
    still = "--config.optimizer.learning_rate=1e-9"
    warm = "--config.optimizer.warmup_epochs=0"
    code, _, err = run(*quick(path, tmp_path / "run", head, still, warm))
    assert code == 0 and len(said(err)) == 1, err
    (line,) = said(err)
    assert "seed 1: the loss is that of guessing (log 4 = 1.386) from step 0 to 9;" in line
    assert re.search(r"what is learned has hardly moved \(.*\): raise the learning rate$", line)
    again = run(*quick(path, tmp_path / "run", head, still, warm))
    assert again[0] == 0 and not said(again[2])


def test_a_run_that_learns_says_nothing(write_features, head, run, tmp_path):
    path = write_features(feature_arrays())
    for number, rate in enumerate(("0.1", "0.002")):
        learns = f"--config.optimizer.learning_rate={rate}"
        code, _, err = run(*quick(path, tmp_path / f"run{number}", head, learns))
        assert code == 0 and not said(err), err


def test_one_class_for_all_images_is_said(write_features, head, run, tmp_path):
    path = write_features(feature_arrays())
    bias = "--config.method.bias=1000000.0"
    code, _, err = run(*quick(path, tmp_path / "run", head, bias))
    (line,) = said(err)
    name = str(feature_arrays()["class_names"][1])
    assert code == 0 and f"after step 11 it takes all 20 test images for {name!r}; " in line
    settings = ("--method", head, "--set", "bias=1000000.0")
    code, _, err = run("fit", path, tmp_path / "mine", *FIT, *settings)
    (line,) = said(err)
    assert code == 0 and f"takes all 20 test images for {name!r}; lower the learning rate" in line


def test_zero_shot_and_methods_that_do_not_learn_say_nothing(write_features, run, tmp_path):
    """Where the texts of all classes are the same, so that the first is always chosen."""
    arrays = feature_arrays()
    arrays["text_features"] = np.repeat(arrays["text_features"][..., :1, :], 4, axis=-2)
    path = write_features(arrays)
    for method in ("zero_shot", "tda"):
        code, _, err = run("fit", path, tmp_path / method, f"--method={method}")
        assert code == 0 and not said(err)


@pytest.mark.parametrize(
    ("labels", "predicted", "expected"),
    [
        (20 * [0, 1], 40 * [1], True),
        (20 * [0, 1], 39 * [1] + [0], False),
        (9 * [0, 1], 18 * [1], False),  # a coin falls so once in 260,000 times
        (5 * [0, 1, 2, 3], 20 * [3], True),
        (20 * [1], 20 * [1], False),
        (19 * [1] + [0], 20 * [1], False),
        ([], [], False),
    ],
)
def test_what_labels_or_chance_explain_is_no_collapse(labels, predicted, expected):
    arrays = np.asarray(predicted, int), np.asarray(labels, int)
    assert collapse.is_one_class(*arrays) is expected


def test_a_classifier_says_it_too(head, caplog):
    arrays = feature_arrays()
    slow = {"learning_rate": 1e-9, "optimizer": {"warmup_epochs": 0}}
    classifier = Classifier(method=str(head), epochs=20, batch_size=4, shots=None, **slow)
    names = arrays["class_names"].tolist()
    data = {"class_names": names, "text_features": arrays["text_features"]}
    classifier.fit(arrays["train_features"], arrays["train_labels"], **data)
    (line,) = said(record.getMessage() for record in caplog.records)
    assert "all images, seed 1: the loss is that of guessing (log 4 = 1.386)" in line
