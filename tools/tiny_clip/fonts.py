"""Which typefaces the pictures are set in: printed Latin faces, never handwriting."""

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GLYPHS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-=?!#@&%$*/"
FACES_PER_FAMILY = 4

# Faces that imitate handwriting, a brush or a pen; Purisa, Fantasque, Z003 and Chorus do so
# without saying it in their names.
HANDWRITING = (
    "brush|calligraph|casual|chalk|chancery|chorus|comic|cursive|fantasque|felt|hand|ink|lobster|"
    "marker|note|pen|pencil|purisa|schola cursive|script|signature|stroke|swash|writing|z003"
)
UNREADABLE = (
    "awesome|braille|cmex|cmmi|cmsy|d050000l|dingbats|dseg|emoji|icons|initials|keyboard|"
    "math|monoisome|music|outline|powerlinesymbols|sharp|stixgeneral|stixnon|stixsiz|style|symbol|"
    "symbols|tamil|weather"
)
EXCLUDED = re.compile(rf"(?<![a-z])({HANDWRITING}|{UNREADABLE})", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Face:
    """One font file; `italic` when its style name says so."""

    path: str
    family: str
    style: str

    @property
    def italic(self) -> bool:
        """Whether the letters lean to the right by design."""
        return re.search("italic|oblique|slanted", self.style, re.IGNORECASE) is not None

    @property
    def monospaced(self) -> bool:
        """Whether the family's name says that all letters have one width."""
        return re.search("mono|typewriter|code|courier|ocr", self.family, re.IGNORECASE) is not None


def crop(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """The character in white on black, cut at its ink."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    picture = Image.new("L", (max(right - left, 1), max(bottom - top, 1)))
    ImageDraw.Draw(picture).text((-left, -top), character, font=font, fill=255)
    return picture


def complete(path: Path) -> bool:
    """Whether the face draws every glyph, each unlike the others."""
    font = ImageFont.truetype(str(path), 24)
    drawn = [crop(font, character).tobytes() for character in GLYPHS]
    return (
        all(np.frombuffer(picture, np.uint8).max() > 128 for picture in drawn)
        and len(set(drawn)) >= len(GLYPHS) - 4
    )


def find(folder: Path) -> list[Face]:
    """Faces under `folder` in a fixed order, at most four of a family, spread over its styles.

    Raises:
        FileNotFoundError: no usable face is there.
    """
    families = collections.defaultdict(dict)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".ttf", ".otf"):
            continue
        family, style = ImageFont.truetype(str(path), 8).getname()
        name = f"{family or ''} {style or ''} {path.stem}"
        if EXCLUDED.search(name):
            continue
        families[family or path.stem].setdefault(style or "", path)
    faces = []
    for family, styles in sorted(families.items()):
        usable = [style for style in sorted(styles) if complete(styles[style])]
        count = min(len(usable), FACES_PER_FAMILY)
        chosen = np.linspace(0, len(usable) - 1, count).round().astype(int)
        faces += [Face(str(styles[usable[i]]), family, usable[i]) for i in chosen]
    if not faces:
        raise FileNotFoundError(f"expected .ttf or .otf files of Latin faces under {folder}")
    return faces
