"""Read texts as a CLIP does, before there are tokens."""

import html
import re

CONTEXT_LENGTH = 77
"""Tokens that OpenAI's CLIPs read, the start and the end token among them."""

LONGEST_TOKEN = 32
"""Bytes of the longest token of OpenAI's vocabulary: eight times the same face."""


def clean(text: str) -> str:
    """Return a text after OpenAI's `basic_clean`, `whitespace_clean` and lower-casing."""
    import ftfy  # takes a tenth of a second, which what reads no names can do without

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip().lower()


def least_tokens(text: str) -> int:
    """Return a number of tokens that a text cannot have fewer than, with OpenAI's vocabulary.

    Every word and every digit is a token or more, and no token has more bytes than `LONGEST_TOKEN`.
    """
    words = re.findall(r"\d|[^\d\s]+", clean(text))
    return sum(-(-len(word.encode()) // LONGEST_TOKEN) for word in words)
