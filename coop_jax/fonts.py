"""Names of any script in pictures: fonts that have their letters, or else numbers."""

import contextlib
import functools
import itertools
import logging
import re
import unicodedata

import rich
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from rich.cells import cell_len, split_text
from rich.text import Text as CellText

from coop_jax import printing

logger = logging.getLogger(__name__)

_FIRST = "DejaVu Sans"
"""Comes with matplotlib."""

_NO_LETTERS = re.compile("last ?resort|blank", re.IGNORECASE)
"""In the names of fonts that have a sign for every letter, but not the letter."""

_VARIANTS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Choose another form of the letter before them."""


class Lettering:
    """The texts of a picture, in fonts that have their letters.

    A text of which no font of this machine has a letter is a number, such as "#1", from its first
    such letter to its last; the same text is the same number.
    """

    def __init__(self):
        self.numbered: dict[str, str] = {}
        self._used: dict[str, None] = {_FIRST: None}

    def __call__(self, text: str) -> str:
        """The text as a picture can have it: in one line, of composed letters and plain spaces."""
        text = text.encode(errors="backslashreplace").decode()  # bytes of a file's name
        spaced = "".join(" " if unicodedata.category(one) == "Zs" else one for one in text)
        text = printing.escaped(unicodedata.normalize("NFC", spaced))
        absent = [place for place, letter in enumerate(text) if family_of(letter) is None]
        if absent:
            start, end = absent[0], absent[-1] + 1
            number = f"#{len(self.numbered) + 1}"
            text = text[:start] + self.numbered.setdefault(text[start:end], number) + text[end:]
        self._used |= dict.fromkeys(filter(None, map(family_of, text)))
        return text

    def apply(self, *figures: Figure) -> None:
        """Write figures' texts as they are, in fonts that have all letters that were asked for.

        The log says what the numbers stand for, if there are any.
        """
        for text in itertools.chain.from_iterable(figure.findobj(Text) for figure in figures):
            assert isinstance(text, Text)
            text.set(fontfamily=list(self._used), parse_math=False)
        if self.numbered:
            logger.warning(
                "no font on this machine has the letters of %s, for which the picture has numbers;"
                " install one that has, such as those of Noto:",
                printing.plural(len(self.numbered), "name"),
            )
        for text, number in self.numbered.items():
            logger.warning("  %s  %s", number, text)


def shortened(text: str, width: int) -> str:
    """The text in so many columns at most, with its middle left out if it is longer.

    A Chinese letter, and most emoji, have two columns.
    """
    if cell_len(text) <= width:
        return text
    front, _ = split_text(text, width - width // 2 - 1)
    _, back = split_text(text, cell_len(text) - width // 2)
    return f"{front.rstrip()}…{back.lstrip()}"


def wrapped(text: str, width: int) -> str:
    """The text in lines of so many columns at most, cut at spaces where words fit a line."""
    lines = CellText(text).wrap(rich.get_console(), width)
    return "\n".join(line.plain.strip() for line in lines)


@functools.cache
def family_of(character: str) -> str | None:
    """The first family of fonts that has a character; "" where it needs none, None for no font."""
    if unicodedata.category(character) == "Cf" or _VARIANTS.match(character):
        return ""
    families = (_FIRST, *(() if ord(character) in _letters(_FIRST) else _others()))
    return next((family for family in families if ord(character) in _letters(family)), None)


@functools.cache
def _letters(family: str) -> frozenset[int]:
    """The characters of the font that matplotlib takes for a family."""
    return frozenset(FT2Font(font_manager.findfont(family)).get_charmap())


@functools.cache
def _others() -> list[str]:
    """Families of upright fonts of this machine, plain ones first."""
    manager = font_manager.fontManager
    for path in {*font_manager.findSystemFonts()} - {entry.fname for entry in manager.ttflist}:
        # Installed since matplotlib looked last; broken, or of a kind that it cannot draw.
        with contextlib.suppress(Exception):
            manager.addfont(path)
    names = {
        entry.name
        for entry in manager.ttflist
        if (entry.style, entry.variant, entry.stretch) == ("normal",) * 3
        and entry.weight in (400, "normal")
        and not _NO_LETTERS.search(entry.name)
    }
    return sorted(names, key=lambda name: ("sans" not in name.lower(), name))
