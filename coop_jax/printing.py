"""Texts of any kind on streams of any encoding: a line each, and never an error."""

import codecs
import io
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_HANDLER = "coop_jax.printing"
_IN_ASCII = {"±": "+/-", "\N{EN DASH}": "-", "…": "..."}
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plural(count: int, one: str, several: str = "") -> str:
    """Return the number with its word, which ends in "s" for several unless that is given."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def percent(value: float) -> str:
    """Return a number that is in percent with its sign, to one decimal."""
    return f"{value:.1f} %"


def escaped(text: object) -> str:
    r"""Return the text as one line, with escapes such as \n where it has what a line cannot have.

    That are control characters, among them tabs and what begins another line, and what turns the
    direction of all that follows.
    """
    return _NOT_IN_A_LINE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def one_line(message: object) -> str:
    """Return an error's message, or another text, as one line, with a space for its line ends."""
    return escaped(" ".join(str(message).split()))


def writable(text: object, encoding: str) -> str:
    """Return the text in one line as a stream of this encoding will show it."""
    return escaped(text).encode(encoding, _HANDLER).decode(encoding, "surrogateescape")


def cell(text: object, console: "Console", style: str = "") -> "Text":
    """Return the text in one line for a console, without markup, as wide as it will be shown."""
    from rich.text import Text

    return Text(writable(text, console.encoding), style)


def console() -> "Console":
    """Return a console on standard output to which brackets and colons are no markup.

    Where it is not a terminal, it is wide enough for every table.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, markup=False, emoji=False, highlight=False)


def write_anything(stream: object) -> None:
    """Let a stream write every text: a file's name as its bytes, what it cannot write as escapes.

    Only where it writes as files are named are a name's bytes that are no text kept as they are.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_HANDLER)


def _write(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    names = codecs.lookup(sys.getfilesystemencoding()).name
    is_of_names = codecs.lookup(error.encoding).name == names
    written = (
        _character(character, is_of_names) for character in error.object[error.start : error.end]
    )
    return b"".join(written), error.end


def _character(character: str, is_of_names: bool) -> bytes:
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is no text
        byte = ord(character) - 0xDC00
        return bytes([byte]) if is_of_names else rb"\x%02x" % byte
    return _IN_ASCII.get(character, "").encode() or character.encode("ascii", "backslashreplace")


codecs.register_error(_HANDLER, _write)
