"""OpenAI's byte-pair encoding, and what any other tokenizer has in common with it."""

import abc
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from coop_jax.errors import InputError
from coop_jax.reading import clean, read_json

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""A word, as OpenAI's `simple_tokenizer.py` has it."""

SENTENCEPIECE = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
WHOLE = ("tokenizer.json", "vocab.txt", *SENTENCEPIECE)
PARTS = ("vocab.json", "merges.txt")
FILES = (
    *WHOLE,
    *PARTS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Every file that ids may depend on."""

OPENAI_CLASSES = (None, "CLIPTokenizer", "CLIPTokenizerFast")
"""Values of `tokenizer_class` whose files are OpenAI's kind."""

OPENAI_CONFIG: dict[str, tuple[Any, ...]] = {
    "bos_token": (START, None),
    "eos_token": (END, None),
    "add_bos_token": (True, None),
    "add_eos_token": (True, None),
    "padding_side": ("right", None),
    "truncation_side": ("right", None),
    "split_special_tokens": (False, None),
    "additional_special_tokens": ([], None),
    "extra_special_tokens": ([], {}, None),
    "auto_map": ({}, None),
}
"""Keys of a CLIP's `tokenizer_config.json` that would change ids, with the values that do not.

All others but `MARKS` change nothing: transformers' CLIPTokenizer always makes lower case of texts,
its padding is behind the end token, where the tower does not look, and a text that is too long is
refused.
"""

MARKS = ("unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
"""Keys of tokens that transformers finds inside of words too, as "!" where that is the padding."""


LARGEST_ID = 8_000_000
"""An id that no tokenizer reaches."""


@dataclasses.dataclass(frozen=True)
class Vocabulary(abc.ABC):
    """A tokenizer without the layout of its texts.

    Attributes:
        tokenizer: of the library.
        size: number of ids without those of added tokens.
        starts: ids in front of every text.
        end: the id behind every text.
        pad: the id behind that.
        longest: tokens that a text is padded to by its own settings; None where they say nothing.
    """

    tokenizer: Any
    size: int
    starts: tuple[int, ...]
    end: int
    pad: int
    longest: int | None = None

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text's own tokens."""

    @abc.abstractmethod
    def decode(self, index: int) -> str:
        """The text of a token, as people read it."""

    def ids(self) -> dict[str, int]:
        """All ids by their tokens, those of added tokens included."""
        return self.tokenizer.get_vocab()


class OpenAIVocabulary(Vocabulary):
    """OpenAI's byte-pair encoding, each word of a text for itself."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text's own tokens."""
        return self.tokenizer.encode(clean(text), add_special_tokens=False).ids

    def decode(self, index: int) -> str:
        """The text of a token; a final "-" where it ends no word."""
        text = self.tokenizer.decode([index], skip_special_tokens=False)
        ends = (self.tokenizer.id_to_token(index) or "").endswith(WORD_END)
        return text.removesuffix(WORD_END).strip() + ("" if ends else "-")


def is_in(folder: Path) -> bool:
    """Return True where a folder has one of `WHOLE`, or `PARTS`."""
    return any((folder / name).is_file() for name in WHOLE) or all(
        (folder / name).is_file() for name in PARTS
    )


def _content(token: Any) -> Any:
    """The text of a token, which may be described by an object."""
    return token["content"] if isinstance(token, dict) and "content" in token else token


def unsupported(folder: Path, key: str, expected: str, got: Any) -> InputError:
    """Return what is said of a setting that we do not have."""
    return InputError(
        f"{folder}: {key}: expected {expected}, got {got!r:.80}; such a tokenizer is not supported"
    )


def is_plain(folder: Path, config: Mapping[str, Any]) -> bool:
    """Return True where a folder holds OpenAI's kind, and its settings do not say another."""
    special = read_json(folder / "special_tokens_map.json")
    marks = [_content(values.get(key)) for values in (config, special) for key in MARKS]
    same_class = config.get("tokenizer_class") in OPENAI_CLASSES
    same_tokens = all(mark in (START, END, None) for mark in marks) and {START, END}.issuperset(
        read_json(folder / "added_tokens.json")
    )
    return same_class and same_tokens and is_openai(folder)


def is_openai(folder: Path) -> bool:
    """Return True where the files are of pairs of bytes with OpenAI's start and end tokens."""
    tokenizer = _from_files(folder)
    model = tokenizer and tokenizer.model
    return (
        isinstance(model, models.BPE)
        and model.end_of_word_suffix == WORD_END
        and None not in map(tokenizer.token_to_id, (START, END))
    )


def _from_files(folder: Path) -> Any:
    """Read `tokenizer.json` or, where there is none, `vocab.json` and `merges.txt`."""
    whole = folder / "tokenizer.json"
    files = [str(folder / name) for name in PARTS]
    for path in (whole, *map(Path, files)):
        if os.path.lexists(path) and not path.is_file():
            raise unsupported(folder, path.name, "a file", "a folder, a pipe or a device")
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_file(str(whole))
        if all(map(os.path.isfile, files)):
            model = models.BPE.from_file(*files, unk_token=END, end_of_word_suffix=WORD_END)
            return tokenizers.Tokenizer(model)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(
            f"{folder}: expected the tokenizer files of a CLIP, but they are damaged"
            f" ({said(error)}); fetch them again"
        ) from error
    return None


def said(error: Exception) -> str:
    """Return the message of an error on one line."""
    return f"{' '.join(str(error).split()):.200}"


def read_openai(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """Read OpenAI's byte-pair encoding, with the ids of transformers' `CLIPTokenizer`.

    That takes longer to import than a command may take.

    Args:
        folder: of the files.
        config: its `tokenizer_config.json`, where that counts.

    Raises:
        InputError: the files are damaged or of another kind, or a setting is not supported.
    """
    for key, values in OPENAI_CONFIG.items():
        value = _content(config.get(key))
        if value not in values:
            raise unsupported(folder, key, repr(values[0]), value)
    tokenizer = _from_files(folder)
    if not is_openai(folder):
        raise not_openai(folder, tokenizer and type(tokenizer.model).__name__)
    _check_merges(folder, tokenizer)
    start, end = map(tokenizer.token_to_id, (START, END))
    tokenizer.add_special_tokens([START, END])
    _split_as_clip(tokenizer)
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    return OpenAIVocabulary(tokenizer, size, (start,), end, pad=0)


def _check_merges(folder: Path, tokenizer: Any) -> None:
    """Refuse words that no merge leads to: of a torn file of merges, texts have other ids."""
    if (largest := max(tokenizer.get_vocab().values())) > LARGEST_ID:
        raise unsupported(folder, "the largest id", f"at most {LARGEST_ID}", largest)
    whole = json.loads(tokenizer.to_str())  # which counts from 0 to the largest id
    made = {"".join(merge) for merge in whole["model"]["merges"]}
    made |= {START, END, *(token["content"] for token in whole["added_tokens"])}
    words = (word for word in whole["model"]["vocab"] if len(word.removesuffix(WORD_END)) > 1)
    if lost := sorted(word for word in words if word not in made):
        raise InputError(
            f"{folder}: expected merges that lead to every word of the vocabulary, got none for"
            f" {len(lost)} of them, e.g. {lost[0]!r:.40}; fetch its files again"
        )


def not_openai(folder: Path, kind: str | None) -> InputError:
    """Return what is said of files that are not OpenAI's kind."""
    return InputError(
        f"{folder}: expected the tokenizer of a CLIP, a BPE with {START} and {END}, got"
        f" {'other files' if kind is None else f'a {kind} without'}; name the folder of the one"
        " that belongs to the weights"
    )


def _split_as_clip(tokenizer: Any) -> None:
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
