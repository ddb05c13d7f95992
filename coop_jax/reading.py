"""Read texts as a CLIP does, before there are tokens, and the JSON files beside it."""

import html
import json
import os
import re
import stat
import string
from pathlib import Path
from typing import Any

from coop_jax.errors import InputError

CONTEXT_LENGTH = 77
"""Tokens that OpenAI's CLIPs read, the start and the end token among them."""

LARGEST_FILE = 2**28
"""Bytes of the largest file of texts: a vocabulary has some 2**25."""

LONGEST_TOKEN = 32
"""Bytes of the longest token of OpenAI's vocabulary: eight times the same face."""


def unescaped(text: str) -> str:
    """Return a text after OpenAI's `basic_clean`: repaired, and without HTML's escapes."""
    import ftfy  # takes a tenth of a second, which what reads no names can do without

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def clean(text: str) -> str:
    """Return a text after OpenAI's `basic_clean`, `whitespace_clean` and lower-casing."""
    return re.sub(r"\s+", " ", unescaped(text)).strip().lower()


def canonical(text: str) -> str:
    """Return a text as SigLIP's makers write it: lower case, without ASCII's punctuation."""
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())


def least_tokens(text: str) -> int:
    """Return a number of tokens that a text cannot have fewer than, with OpenAI's vocabulary.

    Every word and every digit is a token or more, and no token has more bytes than `LONGEST_TOKEN`.
    """
    words = re.findall(r"\d|[^\d\s]+", clean(text))
    return sum(-(-len(word.encode()) // LONGEST_TOKEN) for word in words)


def read_file(path: Path) -> bytes:
    """Return the content of a file; what might never end is not read.

    Raises:
        InputError: it is a folder, a pipe or a device, cannot be read, or is too large for what is
            read as a whole.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            got = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        elif status.st_size > LARGEST_FILE:
            got = f"{status.st_size:,} bytes"
        else:
            return path.read_bytes()
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
    raise InputError(
        f"{path}: expected a file of at most {LARGEST_FILE >> 20} MiB, got {got}; fetch it again"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; {} where there is no such file.

    Raises:
        InputError: the file is not JSON, no object, or no file at all.
    """
    if not os.path.lexists(path):
        return {}
    content = read_file(path)
    try:
        content = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, but {error}; fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a JSON object, got {content!r:.80}; fetch the file again"
        )
    return content
