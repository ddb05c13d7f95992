"""Names as people write them, in what the commands print, save and draw."""

import contextlib
import io
import json
import re

import pytest
from makers import image_folder
from PIL import Image
from test_commands import Terminal
from test_fonts import NOWHERE
from test_saved_commands import mine, tiny

from coop_jax.__main__ import main

__all__ = ["mine", "tiny"]

NAMES = ("two\nlines\t", "[red]:cat:[bold]", "قطة", "猫\u202e", "\x1b[2J")
LINES = ("\\x1b[2J", "[red]:cat:[bold]", "two\\nlines\\t", "قطة", "猫\\u202e")


def spelled(text, encoding):
    return text.encode(encoding, "backslashreplace").decode(encoding)


@pytest.fixture
def images(tmp_path):
    for name in NAMES:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_per_image(encoding, images, mine):
    written = io.BytesIO()
    with contextlib.redirect_stdout(io.TextIOWrapper(written, encoding=encoding)) as shown:
        assert main(["predict", str(mine), str(images), "--classes=猫,[red]"]) == 0
        shown.flush()
        rows = [line.split("\t") for line in written.getvalue().decode(encoding).splitlines()]
    assert [row[0] for row in rows] == [f"{images}/{spelled(name, encoding)}.png" for name in LINES]
    assert {row[1] for row in rows} <= {spelled("猫", encoding), "[red]"}
    assert {len(row) for row in rows} == {3}


def test_a_terminal_shows_names_as_they_are(images, mine, monkeypatch):
    monkeypatch.chdir(images)
    with contextlib.redirect_stdout(Terminal()) as shown:
        assert main(["predict", str(mine), ".", "--classes=[bold],:dog:"]) == 0
    text = re.sub(r"\x1b\[[0-9?;]*m", "", shown.getvalue())
    for name in LINES:
        assert re.search(rf"{re.escape(f'./{name}.png')} +(\[bold\]|:dog:) +\d+\.\d %", text)


def test_an_image_that_cannot_be_read_is_one_line(tmp_path, mine, run):
    (tmp_path / "a\nb\x1b[2J.png").write_text("no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    code, out, err = run("predict", mine, tmp_path)
    assert code == 1 and len(out) == 1
    assert len(err) == 2 and err[1] == "1 of 2 images could not be read"
    assert "\\x1b[2J.png" in err[0] and "\x1b" not in err[0]


def test_evaluate_draws_classes_of_any_name(tmp_path, mine, run):
    names = ("[red]", "قطة", NOWHERE)
    data = image_folder(tmp_path / "照片", names, 1)
    picture, numbers = tmp_path / "c.png", tmp_path / "c.json"
    saved = ("--png", picture, "--json", numbers)
    code, out, err = run("evaluate", mine, data, f"--classes=dataset:{data}", *saved)
    assert code == 0 and re.fullmatch(r"accuracy\t\d+\.\d{4} %", out[0])
    assert re.fullmatch(r"macro_f1\t\d+\.\d{4} %", out[1])
    assert f"  #1  {NOWHERE}" in err and not any("Glyph" in line for line in err)
    with Image.open(picture) as image:
        assert min(image.size) > 500
    assert {one["class"] for one in json.loads(numbers.read_text())["classes"]} == set(names)
