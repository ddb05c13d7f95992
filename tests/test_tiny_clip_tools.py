"""The tools that draw, describe and tokenise what the tiny CLIP is trained on."""

import collections
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from tiny_clip import captions, fonts, pool, styles, training, vocabulary
from tiny_clip.subjects import DIGITS, SUBJECTS

PICTURES = 60


@pytest.fixture(scope="module")
def faces():
    return fonts.find(Path(matplotlib.get_data_path()) / "fonts" / "ttf")


@pytest.fixture(scope="module")
def pictures(faces):
    return [pool.draw(faces, 0, index) for index in range(PICTURES)]


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.build(captions.vocabulary())


def test_faces_are_printed_ones_and_few_of_each_family(faces):
    families = collections.Counter(face.family for face in faces)
    assert "DejaVu Sans" in families
    assert max(families.values()) <= fonts.FACES_PER_FAMILY


@pytest.mark.parametrize(
    "name",
    ["Purisa Bold", "URW Z003", "Romande ADF Script Std", "Comic Neue", "Brush Script",
     "Dancing Script", "Fantasque Sans Mono", "TeX Gyre Chorus", "Patrick Hand"],
)  # fmt: skip
def test_handwriting_is_excluded_by_name(name):
    assert fonts.EXCLUDED.search(name)


@pytest.mark.parametrize("name", ["Open Sans Bold", "DejaVu Sans Book", "Lato Black"])
def test_print_is_not_excluded(name):
    assert not fonts.EXCLUDED.search(name)


def test_a_folder_without_faces_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected \.ttf or \.otf"):
        fonts.find(tmp_path)


def test_pictures_depend_on_seed_and_index_alone(faces, pictures):
    for index in (0, 7, 31):
        subject, picture = pool.draw(faces, 0, index)
        assert subject == pictures[index][0]
        np.testing.assert_array_equal(picture.pixels, pictures[index][1].pixels)
    assert not np.array_equal(pool.draw(faces, 1, 0)[1].pixels, pictures[0][1].pixels)


def test_polarity_words_are_true(pictures):
    for subject, picture in pictures:
        light = "light_on_dark" in picture.descriptors
        assert light != ("dark_on_light" in picture.descriptors)
        plain = {"clean", "strong", "small"} <= set(picture.descriptors)
        if plain and subject.kind != "shape":
            assert (np.median(picture.pixels) < 128) == light


def test_stroke_words_are_true(faces):
    thin, thick = [], []
    for index in range(400):
        subject, picture = pool.draw(faces, 3, index)
        if subject.name in DIGITS and {"clean", "strong", "large"} <= set(picture.descriptors):
            ink = np.abs(picture.pixels.astype(float) - np.median(picture.pixels[0])).mean()
            thin += [ink] * ("thin" in picture.descriptors)
            thick += [ink] * ("thick" in picture.descriptors)
    assert thin and thick
    assert np.mean(thick) > 1.5 * np.mean(thin)


def test_every_descriptor_has_words(pictures):
    used = {word for _, picture in pictures for word in picture.descriptors}
    assert used <= set(captions.WORDS)


def test_captions_name_their_subject_and_fit(pictures, tokenizer):
    generator = np.random.default_rng(0)
    lengths = []
    for subject, picture in pictures * 20:
        caption = captions.write(subject, picture.descriptors, generator)
        assert caption == caption.lower()
        assert any(name in caption for name in subject.names)
        lengths.append(len(tokenizer.encode(caption).ids))
    assert max(lengths) <= training.LONG
    assert np.quantile(lengths, 0.75) > 12


def test_every_word_is_one_token(tokenizer):
    start, end = tokenizer.token_to_id(vocabulary.START), tokenizer.token_to_id(vocabulary.END)
    assert (start, end) == (tokenizer.get_vocab_size() - 2, tokenizer.get_vocab_size() - 1)
    words = captions.vocabulary()
    assert set(DIGITS) <= set(words)
    for word in words:
        ids = tokenizer.encode(word).ids
        assert ids[0] == start and ids[-1] == end and len(ids) == 3, word


def test_the_vocabulary_is_always_the_same(tokenizer):
    assert vocabulary.build(captions.vocabulary()).to_str() == tokenizer.to_str()


def test_the_tokenizer_loads_as_clip(tokenizer, tmp_path):
    from transformers import CLIPTokenizer

    vocabulary.save(tokenizer, tmp_path)
    loaded = CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in ("a thick seven.", "unseen words, Ж & 42!"):
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids


def test_resolution_words_follow_the_style():
    generator = np.random.default_rng(0)
    for _ in range(200):
        style = styles.draw(generator)
        words = styles.descriptors(style, italic=False, thickness=0.15)
        assert ("coarse" in words) == (style.resolution < styles.FULL_RESOLUTION)
        assert not {"thin", "thick"} & set(words)


def test_subjects_are_drawn_by_their_shares():
    from tiny_clip.subjects import SHARES, probabilities

    shares = collections.Counter()
    for subject, probability in zip(SUBJECTS, probabilities(), strict=True):
        shares[subject.kind] += probability
    assert dict(shares) == pytest.approx(SHARES)
