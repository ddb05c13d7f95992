"""Every setting, parameter and option with values that it cannot have: one line, nothing done."""

import math

import numpy as np
import pytest
from makers import feature_arrays

from coop_jax import Classifier, methods, protocols
from coop_jax import config as config_module
from coop_jax.errors import InputError

NAN, INF = math.nan, math.inf
NUMBERS = (NAN, INF, -INF, -1, -1.0, 1e300, 10**12, 10**400)
OTHERS = ("", "x\0", None, True, 0, 0.5, 3, (), (NAN, NAN), (INF, INF), ("",), (None,), {}, [[]])
FLAT = config_module.flat(config_module.default())
VALID = {
    "class_names": {""},
    "data_dir": {""},
    "targets": {(), ("",)},
    "clip.tokenizer": {""},
    "clip.activation": {""},
    "clip.heads": {()},
    "method.n_ctx": {3},
    "method.class_specific": {True},
    "method.context_init": {"", "x\0"},
    "templates": {(), ("",)},
    "feature_cache": {""},
    "epochs": {0, 3},
    "max_steps": {0, 3},
    "batch_size": {3},
    "encode_batch_size": {3},
    "runs_at_once": {3},
    "loggers": {()},
    "optimizer.learning_rate": {0.5, 3},
    "optimizer.momentum": {0, 0.5},
    "optimizer.epsilon": {0.5, 3},
    "optimizer.weight_decay": {0, 0.5, 3},
    "optimizer.half_period": {0, 3},
    "optimizer.warmup_epochs": {0, 3},
    "optimizer.warmup_learning_rate": {0, 0.5, 3},
    "optimizer.final_learning_rate": {0, 0.5, 3},
    "optimizer.clip_norm": {0, 0.5, 3},
    "augmentation.flip": {0, 0.5},
}
"""Those of the values that docs/settings.md allows: a name or path is looked up later."""


def with_value(key, value):
    group, _, name = key.rpartition(".")
    changed = {group: {name: value}} if group else {key: value}
    return config_module.merged(config_module.default(), changed)


def refusal_of(function, *arguments, **options):
    """The line of a refusal; None where there is none."""
    try:
        function(*arguments, **options)
    except InputError as error:
        assert "\n" not in str(error) and "expected" in str(error)
        return str(error)
    return None


def is_same(value, other):
    return type(value) is type(other) and value == other


@pytest.mark.parametrize("key", FLAT)
def test_every_setting_is_refused_or_valid(key, tiny_clip, tiny_tokenizer, tmp_path):
    for value in (*NUMBERS, *OTHERS):
        config = with_value(key, value)
        refused = refusal_of(config_module.check, config)
        if key == "protocol":
            refused = refusal_of(protocols.run, config, tmp_path / "run")
        if key.startswith("method.") and not refused:
            method = {**config["method"]}
            made_of = method.pop("name"), tiny_clip, tiny_tokenizer, ("cat", "dog"), method
            refused = refusal_of(methods.create, *made_of)
        is_valid = any(is_same(value, valid) for valid in VALID.get(key, ()))
        assert (refused is None) == is_valid, (key, value, refused)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", methods.available())
def test_every_number_of_a_method_is_refused(name):
    for key, default in methods.default_config(name).items():
        for value in NUMBERS[:3] + NUMBERS[5:]:
            several = (value,) * max(len(default), 1) if isinstance(default, tuple) else value
            assert refusal_of(methods.check_settings, name, {key: several}), (key, value)
        if isinstance(default, int | float) and not isinstance(default, bool):
            assert refusal_of(methods.check_settings, name, {key: type(default)(-1)}), key


PARAMETERS = ("shots", "epochs", "seed", "batch_size", "learning_rate", "encode_batch_size")


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_of_a_classifier_is_refused(name):
    arrays = feature_arrays()
    data = arrays["train_features"], arrays["train_labels"]
    texts = {
        "text_features": arrays["text_features"],
        "class_names": arrays["class_names"].tolist(),
    }
    for value in (*NUMBERS, "", "many", (), [1], {}, np.zeros(3)):
        classifier = Classifier(method="tip_adapter", **{name: value})
        refused = refusal_of(classifier.fit, *data, **texts)
        assert refused is not None and refused.startswith(name), (value, refused)
    for group, key in (("optimizer", "weight_decay"), ("augmentation", "flip")):
        for value in NUMBERS:
            classifier = Classifier(method="tip_adapter", **{group: {key: value}})
            refused = refusal_of(classifier.fit, *data, **texts)
            assert refused is not None and refused.startswith(f"{group}['{key}']"), refused
        assert refusal_of(Classifier(**{group: NAN}).fit, *data, **texts)


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "-1", "1e300", str(10**12), "", "9" * 9999]
)
def test_every_option_that_is_a_number_is_refused(value, tmp_path, refused, write_features):
    path = write_features(feature_arrays())
    for name in ("shots", "epochs", "seed", "batch-size", "learning-rate"):
        line = refused("fit", path, tmp_path / "new", f"--{name}={value}", "--method=tip_adapter")
        assert f"--{name}: expected" in line
    for command, words in {
        "predict": ("saved", path),
        "interpret": ("saved",),
    }.items():
        if value != str(10**12):  # more than there are is all of them
            assert "--top: expected" in refused(command, *words, f"--top={value}")
    words = ("quickstart", f"--workdir={tmp_path / 'sweep'}", "--ray=local")
    for name in ("cpus", "gpus", "retries", "resource"):
        said = f"--{name}=TPU={value}" if name == "resource" else f"--{name}={value}"
        assert f"--{name}: expected" in refused("sweep", *words, said)
    words = ("--config=quickstart", f"--workdir={tmp_path / 'run'}", "--coordinator=localhost:1")
    assert "--processes: expected" in refused("run", *words, f"--processes={value}", "--process=0")
    assert not list(tmp_path.glob("*[nr]")), list(tmp_path.iterdir())


def test_more_steps_than_memory_holds_are_refused(tmp_path, refused, write_features):
    words = ("--method=tip_adapter_f", "--epochs=1000000", "--shots=all", "--batch-size=1")
    arrays = feature_arrays()
    rows = np.resize(arrays["train_features"], (1001, 12))
    labels = np.arange(1001) % 4
    path = write_features(arrays | {"train_features": rows, "train_labels": labels}, "many.npz")
    line = refused("fit", path, tmp_path / "new", *words)
    assert "at most 1e+09 images in all steps of a run, got 1.001e+09" in line
