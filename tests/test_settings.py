"""Settings whose single values are valid, but not together."""

import pytest

from coop_jax import config as config_module
from coop_jax.errors import InputError

REFUSED = [
    ("seeds", (1, 2, 1), "different whole numbers"),
    ("shots", (2, 2), "different positive whole numbers"),
    ("seeds", (), "different whole numbers"),
    ("parts", ("new", "base", "new"), "some of base, new, all"),
    ("parts", (), "some of base, new, all"),
    ("loggers", ("tensorboard", "tensorboard"), "some of tensorboard, wandb"),
    ("augmentation.scale", (1.0, 0.08), "the smallest and largest part"),
    ("augmentation.scale", (0.0, 1.0), "the smallest and largest part"),
    ("augmentation.scale", (0.5, 1.5), "the smallest and largest part"),
    ("augmentation.scale", (0.1, 0.5, 1.0), "the smallest and largest part"),
    ("augmentation.ratio", (4 / 3, 3 / 4), "the smallest and largest aspect ratio"),
    ("augmentation.ratio", (0.0005, 1.0), "the smallest and largest aspect ratio"),
    ("augmentation.ratio", (1.0, 1001.0), "the smallest and largest aspect ratio"),
    ("augmentation.ratio", (-0.5, 1.0), "the smallest and largest aspect ratio"),
    ("augmentation.flip", 1.1, "a probability"),
    ("augmentation.flip", True, "a probability"),
    ("optimizer.betas", (0.9, 1.0), "two numbers, each 0 or more, less than 1"),
    ("optimizer.betas", (-0.1, 0.9), "two numbers, each 0 or more, less than 1"),
    ("optimizer.betas", (0.9,), "two numbers, each 0 or more, less than 1"),
    ("optimizer.momentum", 1, "a number from 0, less than 1"),
    ("encode_batch_size", 2**16 + 1, "a whole number from 1 to 65536"),
    ("batch_size", 10**6 + 1, "a whole number from 1 to 1000000"),
    ("epochs", 2.0, "a whole number from 0"),
    ("seeds", (2**32,), "from 1 to 4294967295"),
    ("optimizer.learning_rate", 1e-31, "a number from 1e-30"),
    ("optimizer.weight_decay", 1e-31, "0, or a number from 1e-30"),
    ("optimizer.learning_rate", 1.1e6, "to 1e\\+06"),
    ("clip.heads", (2,), "two numbers, the heads"),
    ("clip.heads", (2, 0), "two numbers, the heads"),
    ("templates", "a photo of a {}.", "texts"),
    ("data_dir", "gs://bucket/data", "a folder that this machine sees"),
    ("feature_cache", "s3://bucket", "a folder that this machine sees"),
    ("dataset", "  ", "a name or path"),
]

VALID = [
    ("seeds", (3, 1, 2)),
    ("seeds", (2**32 - 1,)),
    ("shots", [16, 1]),
    ("parts", ("all", "base")),
    ("parts", ["new"]),
    ("loggers", []),
    ("augmentation.scale", (0.5, 0.5)),
    ("augmentation.scale", [0.01, 1]),
    ("augmentation.ratio", (1, 1)),
    ("augmentation.ratio", (1e-3, 1e3)),
    ("augmentation.flip", 1),
    ("optimizer.betas", (0, 0.999)),
    ("optimizer.momentum", 0.999),
    ("encode_batch_size", 2**16),
    ("batch_size", 10**6),
    ("batch_size", 1),
    ("runs_at_once", 10**6),
    ("optimizer.learning_rate", 1e-30),
    ("optimizer.learning_rate", 1e6),
    ("clip.heads", [8, 12]),
    ("data_dir", "/data/c:d"),
    ("dataset", " photos"),
]


def check(key, value):
    group, _, name = key.rpartition(".")
    changed = {group: {name: value}} if group else {key: value}
    config_module.check(config_module.merged(config_module.default(), changed))


@pytest.mark.parametrize(("key", "value", "expected"), REFUSED)
def test_values_that_do_not_fit_together_are_refused(key, value, expected):
    with pytest.raises(InputError, match=rf"config\.{key}: expected .*{expected}"):
        check(key, value)


@pytest.mark.parametrize(("key", "value"), VALID)
def test_values_at_the_ends_of_a_range_are_valid(key, value):
    check(key, value)
