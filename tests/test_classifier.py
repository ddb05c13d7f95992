"""The classifier: fit, predict, score, save and load, as scikit-learn's users expect them."""

import logging
import pickle
import shutil

import numpy as np
import pytest
from makers import coop_data, openai_tensors, refusal, write_image
from PIL import Image
from safetensors.numpy import save_file
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from test_imports import assert_clean, run_python

from coop_jax import Classifier, evaluate, frozen, methods, parallel, protocols, run
from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import images as images_module
from coop_jax.data import catalog, memory
from coop_jax.predictor import Predictor

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
FEW = {"shots": 2, "learning_rate": 0.02, "settings": {"n_ctx": 4}}  # one program for all


def labels_of(paths):
    return [path.parts[-2] for path in paths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three colours, as {train,val,test}/<class>/*.png."""
    root, rng = tmp_path_factory.mktemp("data") / "colours", np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name, colour in COLOURS.items():
            for number in range(count):
                write_image(root / split / name / f"{number}.png", rng, colour)
    return root


@pytest.fixture(scope="module")
def given(folder):
    """The training images as PIL images, and their class names."""
    paths = sorted((folder / "train").glob("*/*.png"))
    return [Image.open(path) for path in paths], labels_of(paths)


@pytest.fixture(scope="module")
def tests(folder):
    """The paths of the test images."""
    return sorted((folder / "test").glob("*/*.png"))


@pytest.fixture(scope="module")
def fitted(folder):
    return Classifier("tiny", **FEW).fit(folder)


def test_it_learns_colours(folder, given, tests):
    """From two images of each, where zero-shot CLIP is no better than chance."""
    unlearned = Classifier("tiny", method="zero_shot").fit(folder)
    assert unlearned.score(folder) < 0.5
    classifier = Classifier("tiny", **FEW)
    assert classifier.fit(*given) is classifier
    assert classifier.classes_.tolist() == ["blue", "green", "red"]
    assert (classifier.training_["images"], classifier.training_["epochs"]) == (6, 100)
    assert classifier.training_["uses"] == [] == unlearned.training_["uses"]
    assert classifier.losses_.shape == (100,)
    assert classifier.losses_[-9:].mean() < classifier.losses_[:9].mean() / 2
    assert classifier.score(folder) == 1
    assert classifier.predict(tests).tolist() == labels_of(tests)


def test_a_fit_is_the_training_of_a_run(folder, tmp_path):
    """The same images, batches, features and context, and the run's folder of features serves."""
    config = config_module.default()
    config |= {"dataset": str(folder), "shots": (2,), "seeds": (3,)}
    config |= {"feature_cache": str(tmp_path / "features")}
    config["method"]["n_ctx"], config["optimizer"]["learning_rate"] = 4, 0.02
    experiment, _, rows = protocols.run(config, tmp_path / "run")
    kept = set((tmp_path / "features").rglob("*.features"))
    classifier = Classifier("tiny", **FEW, seed=3, feature_cache=tmp_path / "features")
    classifier.fit(folder)
    assert set((tmp_path / "features").rglob("*.features")) == kept
    expected = experiment.run(2, 3, "all").restore().context[...]
    np.testing.assert_array_equal(classifier.method_.context[...], expected)
    (row,) = (row for row in rows if row.method == "coop")
    assert 100 * classifier.score(folder) == pytest.approx(row.accuracy)


def test_the_defaults_are_those_of_a_run():
    config = Classifier("tiny")._config()
    assert config == {**config_module.default(), "shots": (16,)}
    assert Classifier().clip == "ViT-B/16"
    adapter = Classifier("tiny", method="tip_adapter_f", shots=2)._config()
    recipe = config_module.default("tip_adapter_f")
    assert adapter == {**recipe, "shots": (2,)} and recipe["epochs"] == 20
    faster = Classifier("tiny", method="tip_adapter_f", epochs=0, learning_rate=0.1)._config()
    assert (faster["epochs"], faster["optimizer"]["learning_rate"]) == (0, 0.1)


@pytest.mark.parametrize(
    ("shots", "images", "epochs"), [(1, 9, 50), (4, 9, 100), (16, 9, 200), (None, 1, 50)]
)
def test_without_epochs_it_is_the_papers_number(shots, images, epochs):
    pixels = np.zeros((images, 2, 2, 3), np.uint8)
    dataset = memory.dataset(pixels, ["red"] * images)
    for given, expected in ((0, epochs), (7, 7)):
        config = config_module.default() | {"epochs": given}
        learning = run.TrainingRun(frozen.Frozen(config, dataset), dataset, shots, seed=1)
        assert learning.epochs == expected


def test_images_are_the_same_from_paths_images_and_arrays(fitted, tests):
    images = [Image.open(path) for path in tests]
    expected = fitted.logits(tests)
    assert expected.shape == (9, 3) and expected.dtype == np.float32
    np.testing.assert_array_equal(fitted.logits(images), expected)
    np.testing.assert_array_equal(fitted.logits(np.stack(images)), expected)
    np.testing.assert_array_equal(fitted.logits(list(map(str, tests))), expected)


def test_the_numbers_of_images_change_nothing(fitted, tests, tmp_path):
    expected = fitted.logits(tests)
    one_by_one = np.concatenate([fitted.logits([path]) for path in tests])
    np.testing.assert_allclose(one_by_one, expected, rtol=0, atol=1e-4)
    fitted.save(tmp_path / "prompt")
    small = Classifier.load(tmp_path / "prompt", encode_batch_size=2)
    np.testing.assert_allclose(small.logits(tests), expected, rtol=0, atol=1e-4)


def test_probabilities_belong_to_the_predictions(fitted, tests):
    probabilities = fitted.predict_proba(tests)
    assert probabilities.dtype == np.float32 and (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    predicted = fitted.predict(tests)
    assert predicted.tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    right = predicted == np.array(labels_of(tests))
    assert fitted.score(tests, labels_of(tests)) == right.mean()
    numbers = [fitted.classes_.tolist().index(name) for name in labels_of(tests)]
    assert fitted.score(tests, numbers) == right.mean()
    assert fitted.score(tests, numbers, sample_weight=np.eye(9)[4]) == right[4]


def test_unreadable_images_are_named_or_left_out(fitted, tests, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    images = [tests[0], tmp_path / "text.jpg", *tests[1:], tmp_path / "absent.jpg"]
    found = fitted.predict_many(images)
    assert found.kept.tolist() == [0, *range(2, 10)]
    np.testing.assert_allclose(found.probabilities, fitted.predict_proba(tests), atol=1e-6)
    assert list(found.failures) == [1, 10]
    assert "text.jpg" in found.failures[1] and "absent.jpg" in found.failures[10]
    message = refusal(fitted.predict, images)
    assert "11 readable images, got 2" in message
    assert "text.jpg" in message and "absent.jpg" in message
    assert "text.jpg, got 8 bytes" in refusal(fitted.predict, images[:2])
    nothing = fitted.predict_many(images[1:2])
    assert (len(nothing.kept), nothing.probabilities.shape) == (0, (0, 3))


def test_saved_and_loaded_it_predicts_the_same(fitted, tests, tmp_path):
    fitted.save(tmp_path / "prompt")
    loaded = Classifier.load(tmp_path / "prompt")
    assert loaded.classes_.tolist() == fitted.classes_.tolist()
    assert (loaded.training_["dataset"], loaded.training_["shots"]) == ("colours", 2)
    np.testing.assert_array_equal(loaded.logits(tests), fitted.logits(tests))
    assert loaded.settings == {**methods.default_config("coop"), "n_ctx": 4}
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(
        Classifier.load(str(tmp_path / "again"), "tiny").logits(tests), fitted.logits(tests)
    )


def test_a_loaded_prompt_serves_other_classes(fitted, tests, tmp_path):
    fitted.save(tmp_path / "prompt")
    names = np.array(["red", "a yellow square", "blue"])
    loaded = Classifier.load(tmp_path / "prompt", class_names=names)
    assert loaded.classes_.tolist() == names.tolist()
    expected = fitted.logits(tests)
    np.testing.assert_allclose(loaded.logits(tests)[:, [2, 0]], expected[:, [0, 2]], rtol=1e-4)
    with pytest.raises(ValueError, match="a yellow square"):
        loaded.score(tests, ["green"] * 9)


def test_another_clip_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "prompt")
    other = tmp_path / "other.safetensors"
    save_file(openai_tensors(), other, {"naming": "openai"})
    tokenizer = clip_package.source.EMBEDDED_FOLDER
    message = refusal(Classifier.load, tmp_path / "prompt", other, tokenizer=tokenizer)
    assert "learned with, tiny" in message and f"got {other}" in message


def test_what_is_learned_class_by_class_keeps_its_classes(folder, tests, tmp_path):
    classifier = Classifier("tiny", method="linear_probe", shots=4).fit(folder)
    assert classifier.score(folder) == 1
    classifier.save(tmp_path / "prompt")
    loaded = Classifier.load(tmp_path / "prompt", class_names=["red", "blue"])
    expected = classifier.logits(tests)[:, [2, 0]]
    np.testing.assert_allclose(loaded.logits(tests), expected, rtol=1e-5, atol=1e-5)
    loaded.save(tmp_path / "two")
    again = Classifier.load(tmp_path / "two")
    np.testing.assert_array_equal(again.logits(tests), loaded.logits(tests))
    refusal(Classifier.load, tmp_path / "prompt", class_names=["red", "yellow"])


def test_zero_shot_learns_nothing(folder, tests, tmp_path):
    classifier = Classifier("tiny", method="zero_shot").fit(folder)
    dataset, (clip, tokenizer) = catalog.load(str(folder)), clip_package.load("tiny")
    method = methods.create("zero_shot", clip, tokenizer, dataset.classes)
    encoder = images_module.Encoder(clip, parallel.create_mesh())
    requests = np.stack([np.zeros(len(dataset.test), int), np.arange(len(dataset.test))], axis=1)
    images = encoder.images(dataset.test, requests, seed=0, augmented=False)
    expected = evaluate.logits(method, clip, images, parallel.create_mesh())
    np.testing.assert_allclose(classifier.logits(tests), expected, rtol=1e-5)
    assert classifier.losses_.shape == (0,)
    assert classifier.training_["epochs"] is None
    classifier.save(tmp_path / "mine")
    again = Classifier.load(tmp_path / "mine")
    np.testing.assert_array_equal(again.logits(tests), classifier.logits(tests))


def test_a_dataset_of_the_catalogue_and_its_template(tmp_path):
    coop_data(tmp_path, ["dtd"], classes=3)
    classifier = Classifier("tiny", method="zero_shot", shots=1, data_dir=tmp_path).fit("dtd")
    dtd, (clip, tokenizer) = catalog.load("dtd", tmp_path), clip_package.load("tiny")
    templates = {"templates": ("{} texture.",)}
    method = methods.create("zero_shot", clip, tokenizer, dtd.classes, templates)
    encoder = images_module.Encoder(clip, parallel.create_mesh())
    requests = np.stack([np.zeros(15, int), np.arange(15)], axis=1)
    images = encoder.images(dtd.test, requests, seed=0, augmented=False)
    found = evaluate.logits(method, clip, images, parallel.create_mesh())
    assert classifier.score("dtd") == np.mean(found.argmax(axis=1) == dtd.test.labels)


def test_a_linear_probe_needs_validation_images(given):
    classifier = Classifier("tiny", method="linear_probe")
    assert "validation images" in refusal(classifier.fit, *given)


def test_scikit_learns_habits(given):
    classifier = Classifier("tiny", shots=2, learning_rate=0.01)
    assert is_classifier(classifier)
    assert classifier.get_params()["learning_rate"] == 0.01
    assert repr(classifier) == "Classifier(clip='tiny', learning_rate=0.01, shots=2)"
    copied = clone(classifier.set_params(seed=7))
    assert copied is not classifier and copied.get_params() == classifier.get_params()
    assert pickle.loads(pickle.dumps(classifier)).get_params() == classifier.get_params()
    fast = Classifier("tiny", **FEW)
    scores = cross_val_score(fast, *given, cv=2, error_score="raise")
    assert scores.shape == (2,) and (scores >= 0).all() and (scores <= 1).all()
    search = GridSearchCV(fast, {"learning_rate": np.array([1e-9, 1e-2])}, cv=2, refit=False)
    assert np.isfinite(search.fit(*given).cv_results_["mean_test_score"]).all()


def test_a_fitted_classifier_can_be_pickled(fitted, tests):
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.logits(tests), fitted.logits(tests))


def test_a_fit_that_fails_leaves_what_was_learned(fitted, tests, given):
    classifier = clone(fitted).fit(*given)
    expected = classifier.logits(tests)
    images, labels = given
    refusal(classifier.fit, images, labels[:-1])
    refusal(classifier.fit, ["absent.jpg"] * 12, labels)
    np.testing.assert_array_equal(classifier.logits(tests), expected)


def test_a_class_with_few_images_is_said(given, caplog):
    with caplog.at_level(logging.WARNING, "coop_jax"):
        Classifier("tiny", method="zero_shot", shots=5).fit(*given)
    assert "fewer training images than 5 shots: all of them are used ('blue' 4" in caplog.text


@pytest.mark.parametrize("call", ["predict", "predict_proba", "logits", "predict_many", "save"])
def test_before_the_fit_it_says_so(call):
    assert "was fitted" in refusal(getattr(Classifier("tiny"), call), ["cat.jpg"])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"method": "cop"}, "cop"),
        ({"settings": {"nctx": 4}}, "nctx"),
        ({"settings": {"n_ctx": "4"}}, "n_ctx as int"),
        ({"settings": {"n_ctx": 1000}}, "lower n_ctx"),
        ({"settings": [1, 2]}, "settings by name"),
        ({"optimizer": [1, 2]}, "optimizer as settings by name"),
        ({"clip": None}, "clip as a text"),
        ({"clip": "a" * 300}, "expected a CLIP"),
        ({"shots": 0}, "shots: expected a whole number of at least 1, got 0; "),
        ({"shots": 1.5}, "shots: expected a whole number of at least 1, got 1.5; "),
        ({"epochs": -1}, "epochs: expected a whole number of at least 0, got -1; "),
        ({"seed": "one"}, "seed: expected a whole number from 0 to 4294967295, got 'one'; "),
        ({"seed": -1}, "seed: expected a whole number from 0 to 4294967295, got -1; "),
        ({"seed": 2**64}, "got 18446744073709551616; "),
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0; "),
        ({"learning_rate": 0}, "learning_rate: expected a number from 1e-30 to"),
        ({"optimizer": {"momentun": 0}}, "momentun"),
        (
            {"augmentation": {"flip": 2}},
            "augmentation['flip']: expected a probability, from 0 to 1, got 2; ",
        ),
        ({"dtype": "float64"}, "dtype: expected one of float32, bfloat16, float16, got 'flo"),
        ({"clip": "huge"}, "huge"),
    ],
)
def test_parameters_that_will_not_do_are_refused(given, parameters, expected):
    classifier = Classifier(**{"clip": "tiny", **parameters})
    with pytest.raises(ValueError, match="expected") as caught:
        classifier.fit(*given)
    assert type(caught.value).__name__ == "InputError"
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_images_and_labels_that_do_not_fit_are_refused(fitted, folder, given, tests):
    new, images = Classifier("tiny"), given[0]
    assert "labels, or the path or name" in refusal(new.fit, images)
    assert "without labels" in refusal(new.fit, tests[0], ["red"])
    assert "a dataset's name" in refusal(new.fit, "absent")
    assert "too long" in refusal(new.fit, "a" * 300)
    assert "null" in refusal(new.fit, "a\0b")
    assert "different lengths" in refusal(new.fit, images[:2], [["red"], ["red", "blue"]])
    assert "null" in refusal(fitted.predict, ["a\0b"])
    for weights in ([1], np.zeros(9), -np.ones(9), np.full(9, np.nan), ["one"] * 9):
        message = refusal(fitted.score, tests, labels_of(tests), sample_weight=weights)
        assert "sample_weight as 9 numbers" in message
    assert "got a list" in refusal(new.fit, folder, class_names=["red"])
    assert "put it into a list" in refusal(fitted.predict, tests[0])
    assert "put it into a list" in refusal(fitted.predict, images[0])
    assert "put a single image into a list" in refusal(fitted.predict, np.asarray(images[0]))
    assert "got yellow" in refusal(fitted.score, images[:1], ["yellow"])
    assert "got 3" in refusal(fitted.score, images[:1], [3])
    assert "got 2 labels" in refusal(fitted.score, images[:1], ["red", "red"])
    assert "a label for every image" in refusal(fitted.score, images)


def test_several_processes_are_refused(fitted, folder, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert "got 2" in refusal(clone(fitted).fit, folder)
    assert "got 2" in refusal(Predictor, fitted.method_, fitted.clip_, encode_batch_size=8)


def test_what_cannot_be_loaded_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "prompt")
    assert "too long" in refusal(Classifier.load, "a" * 300)
    assert "place as a text" in refusal(Classifier.load, 3)
    assert "got method" in refusal(Classifier.load, tmp_path / "prompt", method="cocoop")
    assert "got epoch" in refusal(Classifier.load, tmp_path / "prompt", epoch=3)


def test_a_clips_folder_is_not_published(given, tmp_path, monkeypatch):
    """A record has its name alone; elsewhere one has to say where it is."""
    folder = tmp_path / "here" / "my_clip"
    shutil.copytree(clip_package.source.EMBEDDED_FOLDER, folder)
    classifier = Classifier(folder, **FEW, epochs=1).fit(*given)
    classifier.save(tmp_path / "prompt")
    record = (tmp_path / "prompt" / "method.json").read_text()
    assert '"backbone": "my_clip"' in record and str(tmp_path) not in record
    message = refusal(Classifier.load, tmp_path / "prompt")
    assert "with, my_clip" in message and "--clip or clip=" in message
    expected = classifier.logits(given[0])
    again = Classifier.load(tmp_path / "prompt", clip=folder)
    np.testing.assert_array_equal(again.logits(given[0]), expected)
    monkeypatch.chdir(folder.parent)
    np.testing.assert_array_equal(Classifier.load(tmp_path / "prompt").logits(given[0]), expected)


def test_a_dataset_of_other_classes_is_refused_and_renamed_ones_are_not(fitted, folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("blue sky\ngreen grass\nred rose\n")
    assert "grass" in refusal(fitted.score, folder, class_names=names)
    renamed = clone(fitted).fit(folder, class_names=names)
    assert renamed.classes_.tolist() == ["sky", "grass", "rose"]
    assert renamed.score(folder, class_names=names) <= 1
    assert "blue" in refusal(renamed.score, folder)


def test_importing_the_package_is_light():
    assert_clean(
        run_python(
            """
            import sys

            import coop_jax

            heavy = {"jax", "flax", "numpy", "sklearn", "PIL", "grain", "tensorflow_datasets"}
            assert not heavy & set(sys.modules), heavy & set(sys.modules)
            assert not hasattr(coop_jax, "Clasifier")
            from coop_jax import Classifier

            assert Classifier is coop_jax.Classifier
            assert Classifier("tiny").shots == 16
            assert not {"torch", "tensorflow"} & set(sys.modules)
            """
        )
    )
