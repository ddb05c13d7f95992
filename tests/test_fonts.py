"""Names of any script in pictures."""

import logging
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.cells import cell_len

from coop_jax import fonts

NOWHERE = "\U0010fffd"
"""A letter for private use, which no font has."""


CACHES = (fonts.family_of, fonts._letters, fonts._others)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A font that has the letter, installed since matplotlib looked for fonts."""
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "letter"])
    builder.setupCharacterMap({ord(NOWHERE): "letter"})
    builder.setupGlyf({".notdef": _square(), "letter": _square()})
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", "letter"], (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Sans of the test", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    path = str(tmp_path / "font.ttf")
    builder.save(path)
    broken = tmp_path / "broken.ttf"
    broken.write_text("no font")
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), path])
    for cache in CACHES:
        cache.cache_clear()
    yield "Sans of the test"
    for cache in CACHES:
        cache.cache_clear()


def _square():
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def drawn(lettering, texts):
    """Draw the texts; nothing may be warned of."""
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yticks(range(len(texts)), texts)
    lettering.apply(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()
    return axes.get_yticklabels()


def test_what_no_font_has_is_a_number_that_the_log_explains(caplog):
    lettering = fonts.Lettering()
    given = ("cat", f"a {NOWHERE} b", f"{NOWHERE}cat{NOWHERE}, test", NOWHERE, "Ёжик, γάτα, قطة")
    shown = [lettering(text) for text in given]
    assert shown == ["cat", "a #1 b", "#2, test", "#1", "Ёжик, γάτα, قطة"]
    with caplog.at_level(logging.WARNING):
        drawn(lettering, shown)
    first, *names = (record.getMessage() for record in caplog.records)
    assert "letters of 2 names" in first
    assert names == [f"  #1  {NOWHERE}", f"  #2  {NOWHERE}cat{NOWHERE}"]
    caplog.clear()
    drawn(fonts.Lettering(), ["cat"])
    assert not caplog.records


def test_a_font_of_the_machine_is_found_where_one_has_the_letter(installed, caplog):
    lettering = fonts.Lettering()
    assert lettering(f"cat {NOWHERE}") == f"cat {NOWHERE}"
    (label,) = drawn(lettering, [f"cat {NOWHERE}"])
    assert label.get_fontfamily() == ["DejaVu Sans", installed]
    assert not caplog.records


def test_names_are_shown_in_one_composed_line():
    lettering = fonts.Lettering()
    assert lettering("cafe\u0301\u3000x\ny\udce9") == r"café x\ny\udce9"
    assert not lettering.numbered


@given(st.text("ab 猫é\u0301👨\u200d", max_size=60), st.integers(4, 20))
def test_long_names_fit(text, width):
    short, lines = fonts.shortened(text, width), fonts.wrapped(text, width).split("\n")
    assert cell_len(short) <= width and (short == text or "…" in short)
    assert all(cell_len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_long_names_keep_beginning_and_end():
    assert fonts.shortened("black and gold garden spider", 14) == "black…spider"
    assert fonts.wrapped("black and gold garden spider", 14) == "black and gold\ngarden spider"
