"""What the doctor says of images that are there more than once, of names and of unusual files."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import image_folder, refusal, write_image, write_images
from PIL import Image

from coop_jax.__main__ import main
from coop_jax.clip import Tokenizer
from coop_jax.clip.source import EMBEDDED_FOLDER
from coop_jax.data import catalog, decoding, prepare
from coop_jax.reading import LONGEST_TOKEN, least_tokens


@pytest.fixture
def root(tmp_path):
    """Twelve images, no two the same, in train and test of two classes."""
    return image_folder(tmp_path / "pets", ["cat", "dog"], 3)


def examine(capsys, *arguments):
    """The exit code, the warnings and the problems."""
    code = main(["check", *map(str, arguments)])
    lines = [line.strip().partition(": ") for line in capsys.readouterr().out.splitlines()]
    return code, *([text for kind, _, text in lines if kind == k] for k in ("warning", "problem"))


def table(folder, *lines):
    path = folder / "labels.csv"
    path.write_text("\n".join(["path,label,split", *lines]))
    return path


def test_different_images_are_no_warning(root, capsys):
    assert examine(capsys, root) == (0, [], [])


def copy(original, other):
    shutil.copy(original, other)


def link(original, other):
    other.symlink_to(original)


def hard_link(original, other):
    other.hardlink_to(original)


@pytest.mark.parametrize("make", [copy, link, hard_link])
def test_images_in_train_and_in_test_are_a_warning(root, capsys, tmp_path, make):
    for name in ("3.jpg", "4.jpg"):
        make(root / "train" / "cat" / "1.jpg", root / "test" / "cat" / name)
    wanted = (
        "test images that are both in train and in test: 2 of 8 (test/cat/3.jpg ="
        " train/cat/1.jpg); what is measured on them says nothing about other images",
        "test images that are there again: 1 of 8 (test/cat/3.jpg = test/cat/4.jpg); each counts"
        " as often as it is there",
    )
    assert examine(capsys, root) == (0, [*wanted], [])
    prepare.prepare(str(root), tmp_path)
    assert examine(capsys, root, f"--data-dir={tmp_path}") == (0, [*wanted], [])


def test_images_under_two_labels_are_a_warning(root, capsys):
    shutil.copy(root / "train" / "cat" / "1.jpg", root / "train" / "dog" / "9.jpg")
    assert examine(capsys, root) == (
        0,
        [
            "images under two labels or more: 1 (train/cat/1.jpg (cat) = train/dog/9.jpg (dog));"
            " keep the label that is right"
        ],
        [],
    )


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_val_that_is_test_is_a_warning(tmp_path, capsys, quick):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    lines = ["a.jpg,cat,train", "b.jpg,cat,val", "b.jpg,cat,test"]
    code, warnings, problems = examine(capsys, table(tmp_path, *lines), *quick)
    assert (code, problems) == (0, [])
    (warning,) = warnings
    assert warning.startswith("test images that are both in val and in test: 1 of 1 (b.jpg);")


def test_a_path_in_train_and_in_test_is_said_by_the_log_and_the_doctor(tmp_path, capsys, caplog):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    path = table(tmp_path, "a.jpg,cat,train", "b.jpg,cat,test", "./a.jpg,cat,test")
    for quick in ((), ("--quick",)):
        code, (warning,), problems = examine(capsys, path, *quick)
        assert (code, problems) == (0, [])
        assert "both in train and in test: 1 of 2 (./a.jpg = a.jpg);" in warning
    assert len(catalog.load(str(path), tmp_path).test) == 2
    assert caplog.messages == [
        f"{path}: images that are both in train and in test: 1 (a.jpg); what is measured on them"
        " says nothing about other images"
    ]


def test_a_path_under_two_labels_is_refused_and_a_problem(tmp_path, capsys):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    path = table(tmp_path, "a.jpg,cat,train", "b.jpg,dog,train", "./a.jpg,dog,test")
    line = refusal(catalog.load, str(path), tmp_path)
    assert "got two or more for 1: a.jpg as cat and dog; keep the line that is right" in line
    assert examine(capsys, path) == (1, [], [line])


def test_a_label_with_two_names_is_refused_and_a_problem(tmp_path, capsys):
    write_images(tmp_path, ["a.jpg", "b.jpg"])
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": [["a.jpg", 0, "cat"]], "test": [["b.jpg", 0, "dog"]]}))
    line = refusal(catalog.load, str(path), tmp_path)
    assert "expected one name per label, got 'cat' and 'dog' for label 0; correct one" in line
    assert examine(capsys, path) == (1, [], [line])


NAMES = {
    "that read the same": (
        ("Polka_dot", "polka dot"),
        "got 'polka dot' (2 times); rename or merge",
    ),
    "empty": (("_", "cat"), "got an empty one for label 0; name it"),
    "too long": (("cat", "0" * 59), "at most 58 tokens, which a CLIP of 77 has left beside 16 "),
}


@pytest.mark.parametrize("kind", NAMES)
def test_class_names_that_training_refuses_are_problems(tmp_path, capsys, kind):
    names, wanted = NAMES[kind]
    code, warnings, (problem,) = examine(capsys, image_folder(tmp_path / "pets", names, 1))
    assert (code, warnings) == (1, []) and wanted in problem


def test_a_name_of_58_tokens_is_the_longest_beside_16_context_vectors(tmp_path, capsys):
    TOKENIZER([f"{'x ' * 16}{'0' * 58}."])
    assert "got 78 in" in refusal(TOKENIZER, [f"{'x ' * 16}{'0' * 59}."])
    assert examine(capsys, image_folder(tmp_path / "pets", ("cat", "0" * 58), 1)) == (0, [], [])


TOKENIZER = Tokenizer(EMBEDDED_FOLDER)


@settings(max_examples=30)
@given(st.text(max_size=300) | st.text("a0 \u00e9\U0001f602", max_size=300))
def test_no_text_has_fewer_tokens_than_its_least(text):
    assert least_tokens(text) <= len(TOKENIZER.ids(text))


def test_no_token_of_openai_is_longer(openai_tokenizer):
    tokens = json.loads((openai_tokenizer / "vocab.json").read_text())
    assert max(len(token.removesuffix("</w>")) for token in tokens) == LONGEST_TOKEN
    faces = "\U0001f602" * 15
    assert len(Tokenizer(openai_tokenizer).ids(faces)) == 2 == least_tokens(faces)


def test_orientations_are_counted(root, capsys):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 20), "blue").save(root / "test" / "cat" / "0.jpg", exif=exif)
    assert main(["check", str(root)]) == 0
    assert "images with an EXIF orientation: 1, which are turned as it" in capsys.readouterr().out


VALUES = np.random.default_rng(0).integers(0, 2**12, (20, 30)).astype(np.uint16)
VALUES[0, 0] = 2**12 - 1


@pytest.mark.parametrize("ending", [".png", ".tif", ".pgm"])
def test_12_bits_in_16_are_a_warning(tmp_path, capsys, ending):
    paths = [f"dark{ending}", f"bright{ending}"]
    for path, values in zip(paths, (VALUES, VALUES << 4), strict=True):
        Image.fromarray(values).save(tmp_path / path)
    write_image(tmp_path / "rgb.png", np.random.default_rng(0))
    lines = [f"{paths[0]},cat,train", f"{paths[1]},cat,test", "rgb.png,cat,test"]
    code, (warning,), problems = examine(capsys, table(tmp_path, *lines))
    assert (code, problems) == (0, [])
    assert warning == (
        f"16-bit images with no value above 4,095 of 65,535, as 12-bit data has: 1 ({paths[0]}),"
        " which are nearly black; scale their values to 16 bits"
    )


def test_of_16_bit_colours_the_high_byte_tells():
    values = np.full((4, 4, 3), 2**12 - 1, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(rows)}
    encoded = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in {**chunks, b"IEND": b""}.items()
    )
    image = decoding.decode(encoded, "deep.png", upright=False)
    assert image.mode == "RGB" and decoding.highest(image, encoded) == 2**12 - 1
