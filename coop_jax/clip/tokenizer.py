"""Texts to the token ids that a text tower reads."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from coop_jax.clip import other_vocabulary, vocabulary
from coop_jax.clip.config import TextConfig
from coop_jax.errors import InputError
from coop_jax.reading import CONTEXT_LENGTH, read_json

PADDED = 128
"""Embeddings without a token that a tower of OpenAI's vocabulary may have: sizes are rounded up."""

SMALLEST = 0.9
"""The same for others, as a share: CLIPA has 32,000 embeddings for BERT's 30,522 tokens."""


class Tokenizer:
    """Texts to token ids, with the tokenizer files of the model's own repository.

    OpenAI's byte-pair encoding, of any vocabulary, has the ids of OpenAI's code. All others have
    those of transformers, which is imported for them alone (and imports torch where that is).

    Attributes:
        context_length: tokens of every text, padding included.
        starts: ids in front of every text: one for CLIP, none for SigLIP.
        end: the id behind every text.
        pad: the id behind that.

    Raises:
        InputError: the files are damaged, of a kind that is not supported, or do not belong to the
            text tower.
    """

    def __init__(
        self,
        folder: str | Path,
        text: TextConfig | None = None,
        stated: Mapping[str, Any] | None = None,
    ):
        """Read a tokenizer and compare it with a text tower.

        Args:
            folder: of the files.
            text: the tower that reads the ids; None leaves them uncompared, with OpenAI's context.
            stated: the `text_cfg` of an `open_clip_config.json`, where there is one.
        """
        self._folder, self._vocabulary = str(folder), _read(Path(folder), stated or {})
        self._embeddings = max(self._vocabulary.ids().values()) + 1
        self._is_openai = isinstance(self._vocabulary, vocabulary.OpenAIVocabulary)
        self.context_length = CONTEXT_LENGTH
        self.starts, self.end = self._vocabulary.starts, self._vocabulary.end
        self.pad = self._vocabulary.pad
        if text is not None:
            self.context_length, self._embeddings = text.context_length, text.vocabulary_size
            self.check(text)

    def ids(self, text: str) -> list[int]:
        """The ids of one text, without start and end tokens, as many as there are.

        Raises:
            InputError: one of them has no embedding, or the files say none for a part of the text.
        """
        try:
            ids = self._vocabulary.encode(text)
        except BaseException as error:  # the tokenizers library raises bare Exceptions, and panics
            if not vocabulary.is_error(error):
                raise
            raise InputError(
                f"{self._folder}: expected a tokenizer that reads every text, got {error!s:.200}"
                f" for {text!r:.80}; fetch its files again"
            ) from error
        if ids and max(ids) >= self._embeddings:
            raise InputError(
                f"expected a text of tokens that the CLIP has embeddings for, got {text!r:.80},"
                f" with token {max(ids)} of {self._embeddings}; change it"
            )
        return ids

    @functools.cached_property
    def placeholder(self) -> str:
        """A word of a single token, however often it stands in a text: "X" where that is such.

        Raises:
            InputError: there is none.
        """
        words = (word.strip() for word in self.words())
        for word in itertools.chain(("X", "x", "a"), filter(str.isalpha, words)):
            counts = [len(self.ids(" ".join([word] * count))) for count in (1, 2, 3, 16)]
            if counts == [1, 2, 3, 16]:
                return word
        raise InputError(
            f"{self._folder}: expected a tokenizer with a word of one token, got none; use another"
        )

    def name_tokens(self, before: str, name: str, after: str = "") -> int:
        """Return the number of tokens that a class name has between other words.

        They are those of the text "before name" + after that follow the tokens of `before`, without
        those that `after` has for itself. OpenAI's words are encoded each for itself, so a name has
        as many as it has alone, as in the official code.

        Args:
            before: words in front of the name, without a space at their end.
            name: the name.
            after: what follows the name directly.

        Raises:
            InputError: the tokens of `before` are others where a name follows.
        """
        if self._is_openai:
            return len(self.ids(name))
        first, named = self.ids(before), self.ids(f"{before} {name}".strip())
        whole = self.ids(f"{before} {name}{after}".strip())
        if whole[: len(first)] != first:
            raise InputError(
                f"expected words that are tokens of their own in front of a class name, got"
                f" {before!r:.80} in front of {name!r:.80}; use others"
            )
        if whole[: len(named)] == named:
            return len(named) - len(first)
        pairs = zip(reversed(self.ids(after)), reversed(whole[len(first) :]), strict=False)
        tail = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return len(whole) - tail - len(first)

    def __call__(
        self, texts: Sequence[str], *, truncate: bool = False
    ) -> Int[np.ndarray, "texts length"]:
        """Token ids between start and end tokens, padded up to the context's length.

        Args:
            texts: the texts.
            truncate: cut a text that is too long, keeping its end token.

        Raises:
            InputError: a text is too long and `truncate` is off.
        """
        tokens = np.full((len(texts), self.context_length), self.pad, np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [*self.starts, *self.ids(text), self.end]
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
        return len(self._vocabulary.ids())

    def words(self) -> list[str]:
        """The vocabulary in the order of its ids, "" where an id has no token.

        Of OpenAI's kind a token that ends no word keeps a final "-".
        """
        ids = self._vocabulary.ids().values()
        words = [""] * min(max(ids) + 1, self._embeddings)
        for index in ids:
            if index < len(words):
                words[index] = self._vocabulary.decode(index)
        return words

    def check(self, text: TextConfig) -> None:
        """Refuse a text tower that another tokenizer belongs to.

        Raises:
            InputError: the tower has embeddings for fewer tokens or for many more, reads its
                feature at another token, or is padded to another length.
        """
        embeddings, size = text.vocabulary_size, self._vocabulary.size
        least = embeddings - PADDED + 1 if self._is_openai else SMALLEST * embeddings
        if not least <= size <= embeddings:
            self._refuse(f"of {embeddings} tokens, which the CLIP has embeddings for", f"of {size}")
        if (largest := max(*self.starts, self.end, self.pad)) >= embeddings:
            self._refuse(f"of ids below {embeddings}", f"with a special token {largest}")
        if text.pooling == "end":
            others = [index for index in self._vocabulary.ids().values() if index < embeddings]
            if text.end_token is None and self.end != max(others):
                self._refuse(
                    "whose end token has the largest id, where the CLIP reads its feature",
                    f"with end token {self.end} of {max(others) + 1}",
                )
            if text.end_token not in (None, self.end):
                self._refuse(f"with end token {text.end_token}", f"with {self.end}")
        longest = self._vocabulary.longest
        if text.sees_padding and longest is not None and longest < text.context_length:
            self._refuse(f"of {text.context_length} positions", f"with model_max_length {longest}")

    def check_same(self, own: "Tokenizer") -> None:
        """Refuse to stand for a tokenizer with other ids, which lies beside the weights.

        Raises:
            InputError: a token, or what is in front of a text or behind it, has another id.
        """
        mine, others = (
            {**tokenizer._vocabulary.ids(), "padding": tokenizer.pad, "end": tokenizer.end}
            for tokenizer in (self, own)
        )
        differing = sorted(key for key in {*mine, *others} if mine.get(key) != others.get(key))
        if differing or self.starts != own.starts:
            first = differing[0] if differing else "start"
            self._refuse(
                f"with the ids of the one beside the weights ({first!r:.40}: {others.get(first)})",
                f"with others ({first!r:.40}: {mine.get(first)})",
            )

    def _refuse(self, expected: str, got: str) -> None:
        raise InputError(
            f"{self._folder}: expected a tokenizer {expected}, got one {got}; name the folder of"
            " the one that belongs to the weights (config.clip.tokenizer)"
        )


def read(
    folder: Path, own: Path, text: TextConfig, stated: Mapping[str, Any] | None = None
) -> Tokenizer:
    """Return the tokenizer of a text tower.

    Args:
        folder: of the tokenizer files.
        own: of the weights; where it has tokenizer files too that belong to the tower, both must
            have the same ids.
        text: the tower.
        stated: the `text_cfg` of an `open_clip_config.json`, where there is one.

    Raises:
        InputError: as `Tokenizer`; or other ids.
    """
    tokenizer = Tokenizer(folder, text, stated)
    if folder.resolve() != own.resolve() and vocabulary.is_in(own):
        try:
            beside = Tokenizer(own, text, stated)
        except InputError:
            return tokenizer
        tokenizer.check_same(beside)
    return tokenizer


def _read(folder: Path, stated: Mapping[str, Any]) -> vocabulary.Vocabulary:
    config = read_json(folder / "tokenizer_config.json")
    options = other_vocabulary.options_of(folder, stated)
    if stated and not stated.get("hf_tokenizer_name"):
        return vocabulary.read_openai(folder, {})
    if not stated and vocabulary.is_plain(folder, config):
        return vocabulary.read_openai(folder, config)
    return other_vocabulary.read(folder, config, stated, options)
