"""No number that is not finite is kept, saved, read or shown, and a refusal says where it is."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from makers import feature_arrays, write_image
from safetensors.numpy import save
from test_train import problem
from test_train import run as train_run

from coop_jax import Classifier, methods, results, states
from coop_jax import clip as clip_package
from coop_jax.checkpoint import Checkpoints
from coop_jax.classes import Classes
from coop_jax.clip import source
from coop_jax.errors import InputError
from coop_jax.methods import Images
from coop_jax.saved import Saved, files

NAMES = ("blue", "green", "red")
QUICK = ("--config.shots=(1,)", "--config.seeds=(1,)", "--config.epochs=1", "--config.loggers=()")


def saved(folder, number):
    """A prompt, a vector of which has this number alone, with right digests."""
    clip = clip_package.load("tiny")[0]
    tokenizer = clip_package.Tokenizer(source.EMBEDDED_FOLDER)
    method = methods.create("coop", clip, tokenizer, NAMES, {"n_ctx": 4})
    said = {"name": "coop", "settings": {"n_ctx": 4}, "clip": clip, "backbone": "tiny"}
    learned = Saved.of(method, **said, classes=Classes(NAMES))
    learned.save(folder)
    context = learned.learned["context"]
    context[1] = number
    content = save({"context": context})
    (folder / files.TENSORS).write_bytes(content)
    record = json.loads((folder / files.RECORD).read_text())
    kept = {name: record[name] for name in files.FIELDS}
    (folder / files.RECORD).write_bytes(files.signed(kept, content))
    return folder


@pytest.fixture
def picture(tmp_path):
    write_image(tmp_path / "cat.png", np.random.default_rng(0))
    return tmp_path / "cat.png"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_read(tmp_path, picture, refused, number):
    folder = saved(tmp_path / "mine", number)
    for words in (("predict", folder, picture), ("interpret", folder), ("push", folder, "me/it")):
        line = refused(*words)
        assert "expected finite numbers in" in line and "got others in context" in line
    with pytest.raises(InputError, match="context"):
        Classifier.load(folder)


def test_logits_that_are_not_finite_are_not_shown(tmp_path, picture, refused):
    """Learned numbers so large that the text tower overflows, with right digests."""
    folder, out = saved(tmp_path / "mine", 3e38), tmp_path / "out.json"
    for name in NAMES:
        write_image(tmp_path / "images" / "train" / name / "cat.png", np.random.default_rng(0))
        write_image(tmp_path / "images" / "test" / name / "cat.png", np.random.default_rng(1))
    line = refused("predict", folder, picture, f"--json={out}")
    assert "cat.png: expected finite logits, got nan" in line
    assert "what is learned is as large as 3e+38" in line
    assert "as large as 3e+38" in refused("evaluate", folder, tmp_path / "images")
    for name in ("weights.npz", "program.stablehlo"):
        assert "expected finite" in refused("export", folder, tmp_path / name)
    assert "expected finite" in refused("interpret", folder)
    classifier = Classifier.load(folder)
    for method in (classifier.predict, classifier.predict_proba, classifier.predict_many):
        with pytest.raises(InputError, match="expected finite logits"):
            method([picture])
    with pytest.raises(InputError, match="expected finite logits"):
        classifier.score([picture], ["red"])
    assert not out.exists()


def test_what_becomes_infinite_is_not_kept(tmp_path, write_features, run):
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    optimizer = ("--config.optimizer.learning_rate=1e6", "--config.optimizer.weight_decay=1e6")
    small = ("--config.method.beta_steps=3", "--config.method.alpha_steps=2", *optimizer)
    words = (*QUICK, *small, f"--config.dataset={path}", f"--workdir={workdir}")
    code, _, err = run("run", "--config=few_shot:tip_adapter_f", *words, "--config.epochs=20")
    assert code == 2 and re.search(r"^error: expected .* step \d+: .*; lower the le", err[-1]), err
    (row,) = results.read(workdir / results.FILE_NAME)
    assert row.method == "zero_shot"
    assert not (workdir / "saved").exists()
    assert not list((workdir / "checkpoints").rglob("complete"))


def test_a_checkpoint_that_is_not_finite_is_not_read(
    tiny_clip, tiny_tokenizer, tmp_path, one_device
):
    parts = problem(tiny_clip, tiny_tokenizer)
    state = states.initial_state(parts[0], tiny_clip, parts[1])
    state["learned"] = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), state["learned"])
    state["step"] += 2
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, last=True)
    with pytest.raises(InputError, match=r"in the checkpoint .*/2, got others in learned.context"):
        train_run(tiny_clip, parts, one_device, checkpoints=checkpoints)
    checkpoints.close()


def broken(clip, parts, mesh, change=lambda images, requests: images):
    """The line that ends a run whose images are changed."""
    method, stage, batches, images_of = parts
    changed = lambda requests: change(images_of(requests), requests)  # noqa: E731
    with pytest.raises(InputError) as error:
        train_run(clip, (method, stage, batches, changed), mesh)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_loss_that_is_not_finite_says_where_it_comes_from(tiny_clip, tiny_tokenizer, one_device):
    def spoil(images, requests):
        features = images.features.copy()
        features[requests[:, 0] >= 2] = np.nan
        return Images(features=features)

    parts = problem(tiny_clip, tiny_tokenizer)
    line = broken(tiny_clip, parts, one_device, spoil)
    assert line.startswith("expected a finite loss, got nan in step 4: the images' features are")

    parts = problem(tiny_clip, tiny_tokenizer)
    before = tiny_clip.logit_scale[...]
    tiny_clip.logit_scale[...] = jnp.nan * before
    line = broken(tiny_clip, parts, one_device)
    tiny_clip.logit_scale[...] = before
    assert "in step 0: the CLIP's weights are not finite (logit_scale); fetch" in line

    line = broken(tiny_clip, problem(tiny_clip, tiny_tokenizer, learning_rate=1e37), one_device)
    assert "got inf after step 3: by the optimizer's step itself; lower the learning rate" in line


def test_features_that_are_not_finite_are_not_read(tmp_path, write_features, refused):
    for number in (np.nan, np.inf):
        arrays = feature_arrays()
        arrays["test_features"][3, 2] = number
        line = refused("fit", write_features(arrays), tmp_path / "new")
        assert "test_features: expected rows of a finite length above 0" in line
