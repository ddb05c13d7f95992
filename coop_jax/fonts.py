"""Names of any script in pictures: fonts that have their letters, or else numbers."""

import contextlib
import logging
import re
import unicodedata
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from rich.cells import cell_len

from coop_jax import printing

logger = logging.getLogger(__name__)

_FIRST = "DejaVu Sans"
"""Comes with matplotlib."""

_NO_LETTERS = ("last resort", "lastresort", "blank")
"""In the names of fonts that have a sign for every letter, but not the letter."""

_VARIANTS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
"""Choose another form of the letter before them."""

_families: dict[str, str | None] = {}
"""A family with the character, by character, of all that have been looked for."""


class Lettering:
    """The texts of a picture, in fonts that have their letters.

    A text of which no font of this machine has a letter is a number, such as "#1", from its first
    such letter to its last; the same text is the same number.
    """

    def __init__(self):
        self.numbered: dict[str, str] = {}
        self._used: dict[str, None] = {_FIRST: None}

    def __call__(self, text: str) -> str:
        """The text as a picture can have it, in one line."""
        text = _readable(text)
        found = _find(set(text))
        absent = [place for place, letter in enumerate(text) if found[letter] is None]
        if absent:
            start, end = absent[0], absent[-1] + 1
            whole = text[start:end]
            number = self.numbered.setdefault(whole, f"#{len(self.numbered) + 1}")
            text = text[:start] + number + text[end:]
        self._used |= dict.fromkeys(filter(None, (found.get(letter) for letter in text)))
        return text

    def apply(self, figure: Figure) -> None:
        """Write a figure's texts in fonts that have the letters of all that was asked for."""
        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            text.set_fontfamily(list(self._used))

    def explain(self) -> None:
        """Log what the numbers stand for, if there are any."""
        if not self.numbered:
            return
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
    parts = _graphemes(text)
    front = back = ""
    while parts and cell_len(front + parts[0]) <= width - width // 2 - 1:
        front += parts.pop(0)
    while parts and cell_len(parts[-1] + back) <= width // 2:
        back = parts.pop() + back
    return f"{front.rstrip()}…{back.lstrip()}"


def wrapped(text: str, width: int) -> str:
    """The text in lines of so many columns at most, cut at spaces where words fit a line."""
    lines = [""]
    for word in text.split(" "):
        joint = " " if lines[-1] else ""
        if cell_len(word) <= width < cell_len(lines[-1] + joint + word):
            lines.append(word)
            continue
        for part in _graphemes(joint + word):
            if cell_len(lines[-1] + part) > width:
                lines.append("")
            lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def _graphemes(text: str) -> list[str]:
    """The letters with what belongs to them: accents, variants, what is joined to them."""
    parts: list[str] = []
    for character in text:
        belongs = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")
        if parts and (belongs or parts[-1].endswith("\N{ZERO WIDTH JOINER}")):
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def _readable(text: str) -> str:
    """The text in composed letters and plain spaces, with escapes for bytes that are no text."""
    text = text.encode(errors="backslashreplace").decode()
    spaced = "".join(" " if unicodedata.category(one) == "Zs" else one for one in text)
    return printing.escaped(unicodedata.normalize("NFC", spaced))


def _find(characters: Iterable[str]) -> dict[str, str | None]:
    """A family that has it, or None, for each character; "" where it needs none."""
    unknown = {character for character in characters if character not in _families}
    for character in unknown:
        if unicodedata.category(character) == "Cf" or _VARIANTS.match(character):
            _families[character] = ""
    lacking = {character for character in unknown if character not in _families}
    default = font_manager.findfont(_FIRST)
    for family, path in [(_FIRST, default), *(_others() if lacking else [])]:
        if not lacking:
            break
        had = _had(lacking, path)
        if had and _had(had, font_manager.findfont(family)) == had:
            _families.update(dict.fromkeys(had, family))
            lacking -= had
    _families.update(dict.fromkeys(lacking))
    return {character: _families[character] for character in characters}


def _had(characters: Iterable[str], path: str) -> set[str]:
    font = FT2Font(path)
    return {one for one in characters if font.get_char_index(ord(one))}


def _others() -> list[tuple[str, str]]:
    """Families and files of upright fonts of this machine, plain ones first."""
    manager = font_manager.fontManager
    known = {entry.fname for entry in manager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:  # installed since matplotlib looked last
            with contextlib.suppress(Exception):  # broken, or of a kind that it cannot draw
                manager.addfont(path)
    chosen = [
        (("sans" not in entry.name.lower(), entry.name), entry)
        for entry in manager.ttflist
        if (entry.style, entry.variant, entry.stretch) == ("normal",) * 3
        and entry.weight in (400, "normal")
        and not any(words in entry.name.lower() for words in _NO_LETTERS)
    ]
    return [(entry.name, entry.fname) for _, entry in sorted(chosen, key=lambda one: one[0])]
