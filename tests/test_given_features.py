"""Given features: learned from, saved and reported without a CLIP, as the official code does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import reference
from makers import TEXTURES, feature_arrays, image_folder, refusal
from recorded.case import relative
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from test_docs import blocks
from test_imports import assert_clean, run_python

from coop_jax import Classifier, config, methods, protocols, results
from coop_jax.data import catalog, features
from coop_jax.saved import Saved

TIP = ("--config=few_shot:tip_adapter", "--config.seeds=(1,)", "--config.loggers=()")
SMALL = ("--config.method.beta_steps=3", "--config.method.alpha_steps=2")


def test_a_run_trains_evaluates_saves_resumes_and_reports(write_features, run, refused, tmp_path):
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    words = ("run", *TIP, *SMALL, f"--config.dataset={path}", f"--workdir={workdir}")
    code, out, _ = run(*words, "--config.shots=(1,)")
    assert code == 0 and any("textures, 12-dimensional features" in line for line in out)
    zero_shot, learned = results.read(workdir / results.FILE_NAME)
    assert zero_shot.prompt == "given text features (1 per class)"
    assert (learned.method, learned.backbone) == ("tip_adapter", "12-dimensional features")
    assert learned.uses == ["validation"] and learned.config["clip"] == {}
    code, _, err = run(*words, "--config.shots=(1,2)")
    assert code == 0 and not any("1 shot," in line for line in err)
    rows = results.read(workdir / results.FILE_NAME)
    assert [row.shots for row in rows] == [0, 1, 2]
    classifier = Classifier.load(workdir / "saved" / "2_shots_seed_1")
    assert classifier.training_["uses"] == ["validation"]
    assert 100 * classifier.score(path) == pytest.approx(rows[-1].accuracy)
    code, out, _ = run("report", workdir)
    assert code == 0 and any("12-dimensional features" in line for line in out)
    arrays = feature_arrays()
    arrays["test_features"][0, 0] += 1
    write_features(arrays)
    assert "results of the same data" in refused(*words, "--config.shots=(1,2)")


def test_settings_that_do_nothing_with_features_are_refused(write_features, refused, tmp_path):
    path = write_features(feature_arrays())
    words = ("run", *TIP, *SMALL, f"--config.dataset={path}", f"--workdir={tmp_path / 'run'}")
    for setting in ("clip.dtype=bfloat16", "clip.tokenizer=here", "augmentation.flip=0.25"):
        name, _, value = setting.partition("=")
        line = refused(*words, f"--config.{setting}")
        assert f"--config.{name}: expected none with textures" in line and value in line
    new = ("fit", path, tmp_path / "new", "--method=tip_adapter")
    for option in ("--dtype=bfloat16", "--tokenizer=here"):
        line = refused(*new, option)
        assert f"{option.partition('=')[0]}: expected none with textures" in line
    arrays = feature_arrays()
    data = {"class_names": arrays["class_names"], "text_features": arrays["text_features"]}
    classifier = Classifier(method="tip_adapter", augmentation={"flip": 0.25})
    line = refusal(classifier.fit, arrays["train_features"], arrays["train_labels"], **data)
    assert line.startswith("augmentation['flip']: expected none with given features")
    assert not list(tmp_path.glob("[nr]*"))


def test_what_is_saved_is_what_the_results_are_of(write_features, run, tmp_path):
    """Also where results and checkpoints are deleted, and other images learned from."""
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    words = ("run", *TIP, *SMALL, "--config.shots=(1,)", f"--config.dataset={path}")
    assert run(*words, f"--workdir={workdir}")[0] == 0
    folder = workdir / "saved" / "1_shots_seed_1"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (workdir / results.FILE_NAME).unlink()
    code, _, err = run(*words, f"--workdir={workdir}")
    (line,) = (line for line in err if "made again" in line)
    assert code == 0 and line.startswith(f"{workdir / results.FILE_NAME}: has not all results of")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    arrays = feature_arrays()
    arrays["train_features"] = -arrays["train_features"]
    write_features(arrays)
    (workdir / results.FILE_NAME).unlink()
    shutil.rmtree(workdir / "checkpoints")
    code, _, err = run(*words, f"--workdir={workdir}")
    assert code == 0 and [line for line in err if line.endswith("it is made again")]
    (row,) = results.find(results.read(workdir / results.FILE_NAME), method="tip_adapter")
    learned = Classifier.load(folder)
    assert 100 * learned.score(path) == pytest.approx(row.accuracy)
    assert (folder / "learned.safetensors").read_bytes() != before["learned.safetensors"]
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)


def test_what_a_finished_run_has_saved_is_made_again(write_features, run, tmp_path):
    """Missing or damaged; from its checkpoints or, without these, from the beginning."""
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    words = ("run", *TIP, *SMALL, "--config.shots=(1,)", f"--config.dataset={path}")
    assert run(*words, f"--workdir={workdir}")[0] == 0
    folder, record = workdir / "saved" / "1_shots_seed_1", workdir / results.FILE_NAME
    learned = folder / "learned.safetensors"
    before = learned.read_bytes(), record.read_bytes()
    for harm in (
        lambda: shutil.rmtree(folder),
        lambda: flip(learned),
        lambda: (shutil.rmtree(folder), shutil.rmtree(workdir / "checkpoints")),
    ):
        harm()
        code, _, err = run(*words, f"--workdir={workdir}")
        assert code == 0 and (learned.read_bytes(), record.read_bytes()) == before
        assert any("is missing or damaged: it is made again" in line for line in err)
    assert not any("made again" in line for line in run(*words, f"--workdir={workdir}")[2])


def test_fit_evaluate_and_predict_take_a_file(write_features, run, refused, tmp_path):
    path, folder = write_features(feature_arrays()), tmp_path / "learned"
    settings = ("--set", "search=False", "--method=tip_adapter")
    code, out, _ = run("fit", path, folder, *settings)
    score = Classifier.load(folder).score(path)
    assert code == 0 and out[1] == f"accuracy on the test images: {100 * score:.1f} %"
    assert run("evaluate", folder, path)[1][0] == f"accuracy\t{100 * score:.4f} %"
    rows = feature_arrays()["test_features"]
    np.save(tmp_path / "rows.npy", rows[:2])
    code, out, _ = run("predict", folder, tmp_path / "rows.npy", path)
    predicted = Classifier.load(folder).predict(rows).tolist()
    lines = [line.split("\t")[:2] for line in out]
    assert lines[:2] == [["rows.npy/0", predicted[0]], ["rows.npy/1", predicted[1]]]
    assert [name for _, name in lines[2:]] == predicted
    assert lines[-1][0] == "textures.npz/test/19"
    np.save(tmp_path / "short.npy", rows[:, :5])
    assert "rows of 12 numbers" in refused("predict", folder, tmp_path / "short.npy")
    other = write_features(feature_arrays(text_features=np.eye(4, 5), **_cut(5)), "short.npz")
    assert "12-dimensional features, got 5-dimensional" in refused("evaluate", folder, other)
    classes = f"--classes=dataset:{other}"
    assert "got 5-dimensional" in refused("predict", folder, path, classes)
    with_classes = run("predict", folder, path, f"--classes=dataset:{path}")[1]
    assert with_classes == run("predict", folder, path)[1]
    assert "leave it out" in refused("evaluate", folder, path, "--clip=tiny")
    images = image_folder(tmp_path / "images", ["polka dot", "striped"], 1)
    assert "expected features, got images" in refused("evaluate", folder, images)
    assert "learned with, tiny, got 12-d" in refusal(catalog.load(path).check_space, "tiny")
    assert "takes given features" in refused("export", folder, tmp_path / "program.stablehlo")
    assert "--clip" in refused("fit", path, tmp_path / "new", *settings, "--clip=tiny")


def _cut(embedding):
    """Image features of fewer numbers."""
    arrays = feature_arrays()
    keys = [f"{split}_features" for split in ("train", "val", "test")]
    return {key: arrays[key][:, :embedding] for key in keys}


def test_evaluate_leaves_out_what_was_learned_from(write_features, run, tmp_path):
    arrays = feature_arrays()
    arrays["test_features"][:3] = arrays["train_features"][:3]
    path, folder = write_features(arrays), tmp_path / "learned"
    run("fit", path, folder, "--method=tip_adapter", "--set", "search=False")
    code, out, err = run("evaluate", folder, path)
    assert code == 0 and out[2] == "images\t17" and "3 of 20 test images were used" in err[0]
    code, out, _ = run("check", path)
    assert code == 0 and any("both in train and in test: 3 of 20" in line for line in out)


FEATURES_ALONE = {
    *("ape", "ape_t", "clap", "clip_adapter", "cross_modal", "cross_modal_adapter", "gda"),
    *("lfa", "linear_probe", "lp_plus_plus", "proker", "taskres", "tda", "tfup", "tfup_t"),
    *("tip_adapter", "tip_adapter_f", "tip_x", "transclip", "zero_shot", "zpe"),
}


@pytest.mark.parametrize("method", sorted({*methods.available()} - FEATURES_ALONE))
def test_a_method_that_needs_a_tower_is_refused(write_features, refused, tmp_path, method):
    path, workdir = write_features(feature_arrays()), tmp_path / "run"
    said = refused(
        *("run", f"--config=few_shot:{method}", f"--config.dataset={path}"),
        f"--workdir={workdir}",
    )
    assert "expected a CLIP, whose towers are needed here" in said and not workdir.exists()


def test_a_setting_that_means_nothing_is_refused(write_features, refused, tmp_path):
    path = write_features(feature_arrays())
    words = ("run", *TIP, f"--config.dataset={path}", f"--workdir={tmp_path / 'run'}")
    assert "--config.clip.name: expected none" in refused(*words, "--config.clip.name=RN50")
    templates = "--config.templates=('a {}.',)"
    assert "--config.templates: expected none" in refused(*words, templates)
    templates = "--config.method.templates=('a {}.',)"
    assert "templates: expected none where text features" in refused(*words, templates)
    without = write_features(feature_arrays(val_features=None, val_labels=None), "without.npz")
    words = ("run", *TIP, f"--config.dataset={without}", f"--workdir={tmp_path / 'run'}")
    assert "validation images" in refused(*words)
    test_alone = write_features(feature_arrays(train_features=None, train_labels=None), "test.npz")
    words = ("run", *TIP, f"--config.dataset={test_alone}", f"--workdir={tmp_path / 'run'}")
    assert "training images" in refused(*words)
    words = ("run", "--config=few_shot:tda", f"--config.dataset={path}")
    views = "--config.method.views=10"
    assert "10 views" in refused(*words, views, f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def config_of(method, path, **changes):
    """The config of a run."""
    settings = {"dataset": str(path), "shots": (2,), "seeds": (1,), "loggers": ()}
    return config.default(method) | settings | changes


def test_new_classes_and_other_datasets_have_features_of_their_own(write_features, tmp_path):
    path = write_features(feature_arrays(views=3))
    chosen = config_of("gda", path, protocol="base_to_new")
    chosen["method"] |= {"estimator": "base_to_new"}
    _, _, rows = protocols.run(chosen, tmp_path / "base")
    assert [row.split for row in rows] == ["base", "new"] * 2
    assert all(row.n_classes == 2 and row.accuracy > 50 for row in rows)
    new = write_features(feature_arrays(train_features=None, train_labels=None), "shifted.npz")
    chosen = config_of("gda", path, protocol="domain_generalization", targets=(str(new),))
    _, _, rows = protocols.run(chosen, tmp_path / "shifted")
    assert [row.dataset for row in rows] == ["textures", "shifted"] * 2
    other = write_features(feature_arrays(encoder=np.array("another")), "another.npz")
    for target in (str(other), str(image_folder(tmp_path / "images", TEXTURES[:2], 1))):
        message = refusal(protocols.run, chosen | {"targets": (target,)}, tmp_path / "refused")
        assert "12-dimensional features (cosine_multiplier 100) in" in message


def test_a_method_that_remembers_test_images_has_nothing_to_save(write_features, tmp_path):
    path = write_features(feature_arrays())
    experiment, _, rows = protocols.run(config_of("tda", path), tmp_path / "run")
    assert [row.method for row in rows] == ["zero_shot", "tda"]
    assert experiment.run(2, 1, "all").restore() and not (tmp_path / "run" / "saved").exists()


def test_each_view_counts_once(write_features):
    """However many passes a method makes over the images."""
    path = write_features(feature_arrays(views=3))
    views = feature_arrays(views=3)["train_features"]
    settings = {"search": False, "augmented_passes": 10}
    fitted = Classifier(method="tip_adapter", settings=settings, shots=None).fit(path)
    mean = views.mean(axis=0)
    keys = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.method_.keys[...], keys, rtol=1e-5)
    fitted = Classifier(method="gda", shots=1).fit(path)
    assert np.isfinite(fitted.method_.weight[...]).all()
    arrays = feature_arrays()
    one = write_features(arrays, "one.npz")
    assert "augmented views" in refusal(Classifier(method="gda", shots=1).fit, one)
    same = arrays["train_features"][arrays["train_labels"]]
    one = write_features(arrays | {"train_features": same}, "same.npz")
    assert "differ within a class" in refusal(Classifier(method="gda").fit, one)


TIP_ALONE = {"method": "tip_adapter", "settings": {"search": False}}


def test_a_classifier_takes_arrays(tmp_path):
    arrays = feature_arrays()
    given_features, texts = arrays["train_features"], arrays["text_features"]
    labels, tests = arrays["train_labels"], arrays["test_features"]
    classifier = Classifier(**TIP_ALONE)
    assert classifier.fit(given_features, labels, class_names=TEXTURES, text_features=texts)
    assert classifier.classes_.tolist() == TEXTURES
    probabilities = classifier.predict_proba(tests)
    predicted = classifier.predict(tests)
    assert predicted.tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    right = np.asarray(TEXTURES)[arrays["test_labels"]] == predicted
    assert classifier.score(tests, arrays["test_labels"]) == right.mean() > 0.5
    classifier.save(tmp_path / "learned")
    loaded = Classifier.load(tmp_path / "learned")
    np.testing.assert_array_equal(loaded.logits(tests), classifier.logits(tests))
    two = Classifier.load(tmp_path / "learned", class_names=["woven", "polka_dot"])
    np.testing.assert_allclose(
        two.logits(tests), classifier.logits(tests)[:, [3, 0]], rtol=1e-5, atol=1e-5
    )
    two.save(tmp_path / "two")
    again = Classifier.load(tmp_path / "two")
    np.testing.assert_array_equal(again.logits(tests), two.logits(tests))
    assert "another" in refusal(Classifier.load, tmp_path / "learned", class_names=["another"])
    assert clone(loaded).fit(given_features, labels, class_names=TEXTURES, text_features=texts)
    order = np.argsort(TEXTURES)
    by_name = clone(classifier).fit(
        given_features, np.asarray(TEXTURES)[labels], text_features=texts[order]
    )
    assert by_name.predict(tests).tolist() == predicted.tolist()
    scores = cross_val_score(
        *(Classifier(**TIP_ALONE), given_features, np.asarray(TEXTURES)[labels]),
        **{"cv": 3, "params": {"text_features": texts[order]}, "error_score": "raise"},
    )
    assert scores.mean() > 0.5


def test_a_dataset_in_memory_has_validation_images_too(write_features):
    arrays = feature_arrays(cosine_multiplier=30)
    in_memory = Classifier(method="gda").fit(features.dataset(arrays))
    of_file = Classifier(method="gda").fit(write_features(arrays))
    np.testing.assert_array_equal(
        in_memory.logits(arrays["test_features"]), of_file.logits(arrays["test_features"])
    )
    assert float(np.exp(in_memory.clip_.logit_scale[...])) == pytest.approx(30)


def test_arrays_that_do_not_fit_a_classifier_are_refused(write_features, tmp_path):
    arrays = feature_arrays()
    rows, labels, texts = (
        arrays[key] for key in ("train_features", "train_labels", "text_features")
    )
    new, words = Classifier(**TIP_ALONE), {"class_names": TEXTURES, "text_features": texts}
    assert "text_features" in refusal(new.fit, rows, labels, class_names=TEXTURES)
    assert "got 3; give one per class" in refusal(
        new.fit, rows, labels, class_names=TEXTURES, text_features=texts[:3]
    )
    assert "features: expected rows of 12" in refusal(new.fit, rows[:, :5], labels, **words)
    assert "features: expected floating" in refusal(new.fit, rows.astype(int), labels, **words)
    assert "11 labels" in refusal(new.fit, rows, labels[:-1], **words)
    assert "got none of woven" in refusal(new.fit, rows[:9], labels[:9], **words)
    assert "no text_features" in refusal(new.fit, write_features(arrays), text_features=texts)
    named = Classifier("tiny", **TIP_ALONE)
    assert "clip: expected none" in refusal(named.fit, rows, labels, **words)
    assert "towers" in refusal(Classifier().fit, rows, labels, **words)
    assert "validation" in refusal(Classifier(method="gda").fit, rows, labels, **words)
    fitted = new.fit(rows, labels, **words)
    assert "features: expected rows of 12" in refusal(fitted.predict, rows[:, :5])
    for images in (["cat.jpg"], [[1.0], [1.0, 2.0]], None):
        assert "features: expected floating" in refusal(fitted.predict, images)
    images = image_folder(tmp_path / "images", TEXTURES[:2], 1)
    assert "expected features, got images" in refusal(fitted.score, images)


@pytest.mark.heavy
def test_the_example_of_the_page(tmp_path, monkeypatch):
    """Zero-shot CLIP is as good on the features as on the images that they were made of."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    write, fit = blocks("adding-a-dataset.md", "python")
    path = tmp_path / "digits.npz"
    assert_clean(run_python(write.replace("digits.npz", str(path))))
    finished = run_python(fit.replace("digits.npz", str(path)))
    assert_clean(finished)
    on_features = Classifier(method="zero_shot").fit(path).score(path)
    on_images = Classifier("tiny", method="zero_shot", data_dir=tmp_path).fit("digits")
    assert on_features == pytest.approx(on_images.score("digits"), abs=2e-3)
    predicted, score = finished.stdout.splitlines()
    assert predicted.count("'") == 6 and float(score) > on_features


def golden(name, folder):
    """A recorded case as a file of features; its path, arrays and settings."""
    with np.load(reference.path(f"golden/methods/{name}.npz")) as file:
        case = {key: file[key] for key in file.files}
    meta = json.loads(str(case.pop("meta")))
    keys = [
        f"{split}_{what}" for split in ("train", "val", "test") for what in ("features", "labels")
    ]
    texts = case["text_weights"]
    arrays = {key: case[key] for key in keys} | {"text_features": texts}
    arrays["class_names"] = np.array([f"class {label}" for label in range(len(texts))])
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz", case, meta["cfg"]


def test_fit_agrees_with_the_official_tip_adapter(run, tmp_path):
    path, case, cfg = golden("tip_adapter_given", tmp_path)
    settings = {
        "augmented_passes": cfg["augment_epoch"],
        **{name: cfg[f"init_{name}"] for name in ("alpha", "beta")},
        **dict(zip(("beta_scale", "alpha_scale"), cfg["search_scale"], strict=True)),
        **dict(zip(("beta_steps", "alpha_steps"), cfg["search_step"], strict=True)),
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    folder = tmp_path / "learned"
    assert run("fit", path, folder, "--method=tip_adapter", "--shots=all", *words)[0] == 0
    learned = Saved.load(folder).learned
    np.testing.assert_allclose(learned["beta"], case["best_beta"], rtol=1e-6)
    np.testing.assert_allclose(learned["alpha"], case["best_alpha"], rtol=1e-6)
    logits = Classifier.load(folder).logits(case["test_features"])
    assert relative(logits, case["eval_logits"]) < 1e-4


def test_a_run_agrees_with_the_official_gda(run, tmp_path):
    """Whose four shots of every class are all that there are."""
    path, case, cfg = golden("gda_given", tmp_path)
    workdir = tmp_path / "run"
    words = ("--config=few_shot:gda", f"--config.dataset={path}", "--config.shots=(4,)")
    passes = f"--config.method.augmented_passes={cfg['augment_epoch']}"
    assert run("run", *words, passes, "--config.seeds=(1,)", f"--workdir={workdir}")[0] == 0
    row = results.read(workdir / results.FILE_NAME)[-1]
    assert row.accuracy == pytest.approx(float(case["test_acc"]))
    folder = Path(workdir / "saved" / "4_shots_seed_1")
    np.testing.assert_allclose(Saved.load(folder).learned["alpha"], case["best_alpha"], rtol=1e-6)
    logits = Classifier.load(folder).logits(case["test_features"])
    assert relative(logits, case["eval_logits"]) < 1e-4
