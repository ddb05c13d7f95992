"""OpenAI's byte-pair encoding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers

from coop_jax.errors import InputError
from coop_jax.reading import CONTEXT_LENGTH, clean

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""A word, as OpenAI's `simple_tokenizer.py` has it."""


class Tokenizer:
    """Texts to token ids, with the tokenizer files of the model's own repository.

    The ids are those of transformers' `CLIPTokenizer`, which takes longer to import than a command
    may take.
    """

    def __init__(self, folder: str | Path, context_length: int = CONTEXT_LENGTH):
        """Read `tokenizer.json` or, where there is none, `vocab.json` and `merges.txt`.

        Raises:
            InputError: the files are damaged, or those of another kind of tokenizer.
        """
        self.context_length = context_length
        try:
            self._tokenizer = _read(Path(folder))
        except Exception as error:  # the tokenizers library raises bare Exceptions
            raise InputError(
                f"{folder}: expected the tokenizer files of a CLIP, but they are damaged"
                f" ({error}); fetch them again"
            ) from error
        start, end = map(self._tokenizer.token_to_id, (START, END))
        if start is None or end is None or not isinstance(self._tokenizer.model, models.BPE):
            kind = type(self._tokenizer.model).__name__
            raise InputError(
                f"{folder}: expected the tokenizer of a CLIP, a BPE with {START} and {END}, got a"
                f" {kind} without; name the folder of the one that belongs to the weights"
            )
        self.start, self.end = start, end
        self._tokenizer.add_special_tokens([START, END])
        _split_as_clip(self._tokenizer)

    @property
    def starts(self) -> tuple[int, ...]:
        """Return the ids in front of every text."""
        return (self.start,)

    def ids(self, text: str) -> list[int]:
        """The ids of one text, without start and end tokens, as many as there are."""
        return self._tokenizer.encode(clean(text), add_special_tokens=False).ids

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
        """Return the number of ids."""
        return self._tokenizer.get_vocab_size()

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids; a token that ends no word keeps a final "-"."""
        vocabulary = self._tokenizer.get_vocab()
        tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
        decode = self._tokenizer.decode
        texts = [decode([vocabulary[token]], skip_special_tokens=False) for token in tokens]
        return [
            text.removesuffix(WORD_END).strip() + ("" if token.endswith(WORD_END) else "-")
            for token, text in zip(tokens, texts, strict=True)
        ]


def _read(folder: Path) -> tokenizers.Tokenizer:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return tokenizers.Tokenizer.from_file(str(whole))
    files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
    return tokenizers.Tokenizer(
        models.BPE.from_file(*files, unk_token=END, end_of_word_suffix=WORD_END)
    )


def _split_as_clip(tokenizer: tokenizers.Tokenizer) -> None:
    """Let a tokenizer cut texts into words as OpenAI's does, whatever its file says."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    spaces = normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
