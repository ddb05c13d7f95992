"""What the pictures show: digits, letters, symbols and shapes, and what each is called."""

import dataclasses
import string


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to draw: its kind, the names a caption may use, and its character if it has one."""

    kind: str
    name: str
    names: tuple[str, ...]
    character: str = ""


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SYMBOLS = {
    "+": "plus sign",
    "-": "minus sign",
    "=": "equals sign",
    "?": "question mark",
    "!": "exclamation mark",
    "#": "hash sign",
    "@": "at sign",
    "&": "ampersand",
    "%": "percent sign",
    "$": "dollar sign",
    "*": "asterisk",
    "/": "slash",
}
SHAPES = (
    "circle",
    "oval",
    "triangle",
    "square",
    "rectangle",
    "diamond",
    "pentagon",
    "hexagon",
    "star",
    "arrow",
    "cross",
    "crescent",
    "heart",
)
# How often each kind is drawn.
SHARES = {"digit": 0.45, "letter": 0.35, "symbol": 0.08, "shape": 0.12}


def _digit(value: int, name: str) -> Subject:
    spoken = tuple(f"{noun} {name}" for noun in ("digit", "number", "numeral", "figure"))
    return Subject("digit", name, (name, name, name, *spoken), str(value))


def _letter(character: str) -> Subject:
    lower = character.lower()
    cases = ("uppercase", "capital") if character.isupper() else ("lowercase", "small letter")
    names = (f"letter {lower}", *(f"{case} {lower}" for case in cases))
    return Subject("letter", f"{cases[0]} {lower}", names, character)


SUBJECTS: tuple[Subject, ...] = (
    *(_digit(value, name) for value, name in enumerate(DIGITS)),
    *(_letter(character) for character in string.ascii_letters),
    *(Subject("symbol", name, (name,), character) for character, name in SYMBOLS.items()),
    *(Subject("shape", name, (name, f"{name} shape")) for name in SHAPES),
)


def probabilities() -> list[float]:
    """How often each of `SUBJECTS` is drawn."""
    kinds = [subject.kind for subject in SUBJECTS]
    return [SHARES[kind] / kinds.count(kind) for kind in kinds]
