"""OpenAI's text cleaning in front of transformers' CLIP tokenizer."""

import html
import os
import re
from collections.abc import Sequence
from pathlib import Path

import ftfy
import numpy as np
from jaxtyping import Int

from coop_jax.errors import InputError

CONTEXT_LENGTH = 77


def clean(text: str) -> str:
    """OpenAI's `basic_clean`, `whitespace_clean` and lower-casing."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text.strip()).strip().lower()


class Tokenizer:
    """Texts to token ids, with the tokenizer files of the model's own repository."""

    def __init__(self, folder: str | Path, context_length: int = CONTEXT_LENGTH):
        # Only its tokenizer is used here: its advice to install PyTorch would mislead.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import CLIPTokenizer

        self.context_length = context_length
        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(str(folder))
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise InputError(
                f"{folder}: expected the tokenizer files of a CLIP, but they are damaged"
                f" ({error}); fetch them again"
            ) from error
        self.start = int(self._tokenizer.bos_token_id)
        self.end = int(self._tokenizer.eos_token_id)

    def ids(self, text: str) -> list[int]:
        """The ids of one text, without start and end tokens, as many as there are."""
        return self._tokenizer.encode(clean(text), add_special_tokens=False, verbose=False)

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int[np.ndarray, "texts length"]:
        """Token ids between start and end tokens, padded with zeros, as OpenAI's `tokenize`.

        Args:
            texts: the texts.
            truncate: cut a text that is too long, keeping its end token.

        Raises:
            InputError: a text is too long and `truncate` is off.
        """
        tokens = np.zeros((len(texts), self.context_length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.start, *self.ids(text), self.end]
            if len(ids) > self.context_length:
                if not truncate:
                    raise InputError(
                        f"expected at most {self.context_length} tokens, got {len(ids)} in"
                        f" {text!r}; shorten the class name or the template, or use fewer context"
                        " vectors"
                    )
                ids = [*ids[: self.context_length - 1], self.end]
            row[: len(ids)] = ids
        return tokens

    @property
    def size(self) -> int:
        """How many ids there are."""
        return len(self._tokenizer.get_vocab())

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids; a token that ends no word keeps a final "-"."""
        vocabulary = self._tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        texts = self._tokenizer.batch_decode([[vocabulary[token]] for token in tokens])
        return [
            text.strip() + ("" if token.endswith("</w>") else "-")
            for token, text in zip(tokens, texts, strict=True)
        ]
