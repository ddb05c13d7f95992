"""A method in a file outside the package: pixels, two loss terms, AdamW, two stages."""

import json

import numpy as np
import pytest
from makers import image_folder

from coop_jax import Classifier, results
from coop_jax.__main__ import main
from coop_jax.clip import source

CODE = '''
"""A shift inside the vision tower, and then a residual of the text features."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp

from coop_jax.methods import Fixed, Images, Learned, Stage, base, layers, text
from coop_jax.methods import cross_entropy, weighted_mean
from coop_jax.optim import OptimizerConfig

NAME = "shift and residual"
PAPER = "nobody, nowhere"


def default_config():
    return {"weight": 0.5}


def recipe():
    return {"optimizer": {"name": "adamw", "learning_rate": 0.01}}


class Shift(base.nnx.Module):
    def __init__(self, count, width):
        self.vector = Learned(jnp.zeros((count, width)))

    def __call__(self, block, x):
        return self.vector[...]


class Method(base.Method):
    takes = ("pixels", "features")

    def __init__(self, given, config):
        tower = layers.vision_config(given, NAME)
        self.shift = Shift(tower.layers, tower.width)
        self.bank = Fixed(text.hand_crafted_features(given, ""))
        self.residual = Learned(jnp.zeros(self.bank.shape), per_class=True, unseen="initial")
        self.weight = config["weight"]

    def stages(self, config):
        first = Stage.of(config, learns=("shift",), batch_size=4)
        second = Stage.of(config, learns=("residual",), batch_size=4)
        return first, dataclasses.replace(second, epochs=2 * first.epochs)

    def prepare(self, clip, stage, data):
        if stage == 1 and Path(__file__).with_name("stop").exists():
            raise KeyboardInterrupt
        return data

    def adapt(self, clip, key):
        clip.vision.blocks = layers.WithAdapter(clip.vision.blocks, self.shift)
        return clip

    def texts(self, clip, key):
        return self.bank[...] + self.residual[...]

    def logits(self, clip, texts, images):
        return clip.logits(clip.encode_image(jnp.asarray(images.pixels)), texts)

    def losses(self, clip, texts, batch):
        images = batch.images
        moved = clip.encode_image(jnp.asarray(images.pixels)) - images.features
        far = weighted_mean(jnp.mean(moved**2, axis=-1), batch.weights)
        logits = self.logits(clip, texts, images)
        return {
            "cross_entropy": cross_entropy(logits, batch.labels, batch.weights),
            "far": self.weight * far,
        }
'''


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    image_folder(folder, ("blue", "green", "red"), 4)
    return folder


def run(method, pictures, workdir, *words):
    """Run the command on the method's file."""
    return main(
        [
            "run",
            "--config=few_shot",
            f"--config.dataset={pictures}",
            f"--config.clip.name={source.EMBEDDED}",
            f"--config.method.name={method}",
            "--config.shots=(2,)",
            "--config.seeds=(1,)",
            "--config.epochs=2",
            f"--workdir={workdir}",
            *words,
        ]
    )


def test_it_trains_resumes_saves_loads_and_reports(pictures, tmp_path, capfd):
    method = tmp_path / "mine.py"
    method.write_text(CODE)
    assert run(method, pictures, tmp_path / "whole") == 0
    assert "shift and residual" in capfd.readouterr().out
    rows = results.read(tmp_path / "whole" / results.FILE_NAME)
    (row,) = (row for row in rows if row.method == str(method))
    assert row.settings == {"weight": 0.5} and row.epochs == 6
    (log,) = (tmp_path / "whole" / "metrics").glob("*.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"loss/cross_entropy", "loss/far"} <= set(line) for line in lines[:-1])

    # Killed after its first stage: the same command ends with the same numbers.
    stopped, stop = tmp_path / "stopped", tmp_path / "stop"
    stop.touch()
    assert run(method, pictures, stopped) == 130
    stop.unlink()
    assert run(method, pictures, stopped) == 0
    again = results.read(stopped / results.FILE_NAME)
    assert [r.accuracy for r in again] == [r.accuracy for r in rows]

    saved = [folder / "saved" / "2_shots_seed_1" for folder in (tmp_path / "whole", stopped)]
    loaded = [Classifier.load(folder) for folder in saved]
    images = sorted((pictures / "test").rglob("*.jpg"))
    first, second = (classifier.logits(images) for classifier in loaded)
    np.testing.assert_array_equal(first, second)
    names = [path.parent.name for path in images]
    assert 100 * loaded[0].score(images, names) == pytest.approx(row.accuracy)

    capfd.readouterr()
    assert main(["report", str(tmp_path / "whole"), "--csv", str(tmp_path / "report.csv")]) == 0
    assert "shift and residual" in capfd.readouterr().out

    # Other code goes on with nothing that this code has made.
    method.write_text(CODE.replace("0.5", "0.25"))
    assert run(method, pictures, stopped) == 2
    assert "different: method.weight, method_code" in capfd.readouterr().err
    assert main(["predict", str(saved[0]), str(images[0])]) == 2
    assert "got other code" in capfd.readouterr().err
