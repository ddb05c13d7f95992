"""Texts on streams of any encoding."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from coop_jax import printing

ANY_TEXT = st.text(st.characters(exclude_categories=()))


def test_numbers_with_their_words():
    words = [printing.plural(count, "image") for count in (0, 1, 2)]
    assert words == ["0 images", "1 image", "2 images"]
    assert [printing.plural(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    assert printing.percent(66.666) == "66.7 %"


@given(ANY_TEXT)
def test_a_name_is_one_line(text):
    line = printing.escaped(text)
    assert len(f"{line}.".splitlines()) == 1 and "\t" not in line
    assert line == text or not text.isprintable()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("two\nlines\tand\x1b[31mred.jpg", r"two\nlines\tand\x1b[31mred.jpg"),
        ("\u202egpj.exe\u2028x", r"\u202egpj.exe\u2028x"),
        ("قطة 👨\u200d👩\u200d👧 猫 [red] C:\\new :cat:", None),
    ],
)
def test_only_what_a_line_cannot_have_is_escaped(name, line):
    assert printing.escaped(name) == (line or name)


def written(text, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    printing.write_anything(stream)
    stream.write(text)
    stream.flush()
    return raw.getvalue()


@given(ANY_TEXT, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_every_text_can_be_written(text, encoding):
    content = written(text, encoding)
    if not any("\ud800" <= character <= "\udfff" for character in text) and encoding == "utf-8":
        assert content.decode() == text
    if encoding == "ascii":
        assert content.isascii()


def test_what_a_stream_cannot_write_is_spelled_out():
    assert written("87.4±1.2 \N{EN DASH} 猫…é", "ascii") == rb"87.4+/-1.2 - \u732b...\xe9"
    assert written("±é猫", "latin-1") == b"\xb1\xe9" + rb"\u732b"
    assert written("caf\udce9", "utf-8") == b"caf\xe9"
    assert written("caf\udce9", "ascii") == rb"caf\xe9"
    assert written("\ud800", "utf-8") == rb"\ud800"


def test_tables_are_as_wide_as_what_is_written():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=stream, width=60)
    table = Table("name", "accuracy")
    for name in ("猫 [red] :cat:", "two\nlines"):
        table.add_row(*(printing.cell(text, console) for text in (name, "87.4±1.2")))
    console.print(table)
    stream.flush()
    lines = raw.getvalue().decode("ascii").splitlines()
    assert r"\u732b [red] :cat:" in lines[3] and "87.4+/-1.2" in lines[3]
    assert r"two\nlines" in lines[4] and len({len(line) for line in lines}) == 1
