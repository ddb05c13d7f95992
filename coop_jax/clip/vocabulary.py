"""Read tokenizer files: OpenAI's byte-pair encoding, or whatever transformers makes of them."""

import abc
import contextlib
import dataclasses
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from coop_jax.errors import InputError
from coop_jax.reading import canonical, clean, unescaped

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
    "auto_map": (None,),
}
"""Keys of a CLIP's `tokenizer_config.json` that would change ids, with the values that do not.

All others change nothing: transformers' CLIPTokenizer always makes lower case of texts, its padding
is behind the end token, where the tower does not look, and a text that is too long is refused.
"""

CLEANED: dict[str, Callable[[str], str]] = {
    "lower": clean,
    "whitespace": lambda text: " ".join(unescaped(text).split()),
    "canonicalize": lambda text: canonical(unescaped(text)),
}
"""open_clip's first change of a text, by the value of `clean`."""


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


@dataclasses.dataclass(frozen=True)
class OtherVocabulary(Vocabulary):
    """A tokenizer of transformers.

    Attributes:
        cleaned: what is done to a text first: a key of `CLEANED`, or nothing.
        stripped: an id that stands for 0; -1 for none.
    """

    cleaned: str = ""
    stripped: int = -1

    def encode(self, text: str, around: bool = False) -> list[int]:
        """The ids of a text's own tokens, or those around them as well."""
        text = CLEANED[self.cleaned](text) if self.cleaned else text
        if self.tokenizer.is_fast:
            ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=around).ids
        else:
            ids = self.tokenizer(text, add_special_tokens=around, verbose=False)["input_ids"]
        return [0 if index == self.stripped else index for index in ids]

    def decode(self, index: int) -> str:
        """The text of a token."""
        return self.tokenizer.decode([index]).strip()

    def around(self) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The ids in front of texts and those behind; of several texts, all that there are."""
        made = set()
        for text in ("a photo", "cat", "2 dogs."):
            own, whole = self.encode(text), self.encode(text, around=True)
            fits = [i for i in range(len(whole)) if own and whole[i : i + len(own)] == own]
            if fits:
                made.add((tuple(whole[: fits[0]]), tuple(whole[fits[0] + len(own) :])))
        return made


def is_in(folder: Path) -> bool:
    """Return True where a folder has one of `WHOLE`, or `PARTS`."""
    return any((folder / name).is_file() for name in WHOLE) or all(
        (folder / name).is_file() for name in PARTS
    )


def read(folder: Path, stated: Mapping[str, Any]) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        folder: with some of `FILES`.
        stated: the `text_cfg` of an `open_clip_config.json`, or {}.

    Raises:
        InputError: the files are damaged or of a kind that is not supported, or a package is not
            installed that reads them.
    """
    config = _object(folder / "tokenizer_config.json")
    name = stated.get("hf_tokenizer_name")
    options = _options(folder, stated)
    if stated and not name:
        return _openai(folder, {})
    if not name and config.get("tokenizer_class") in OPENAI_CLASSES and _is_openai(folder):
        return _openai(folder, config)
    return _transformers(folder, config, stated, options)


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path}: expected JSON, got a damaged file ({error}); fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, got {value!r:.80}; fetch it again")
    return value


def _unsupported(folder: Path, key: str, expected: str, got: Any) -> InputError:
    return InputError(
        f"{folder}: {key}: expected {expected}, got {got!r:.80}; such a tokenizer is not supported"
    )


def _options(folder: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer_kwargs` of a `text_cfg`, where they are supported."""
    options = stated.get("tokenizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise _unsupported(folder, "tokenizer_kwargs", "an object", options)
    name = stated.get("hf_tokenizer_name")
    if name is not None and not isinstance(name, str):
        raise _unsupported(folder, "hf_tokenizer_name", "a text", name)
    if name and stated.get("tokenizer_mode"):
        raise _unsupported(folder, "tokenizer_mode", "none", stated["tokenizer_mode"])
    allowed = {"clean": tuple(CLEANED), "strip_sep_token": (True, False), "language": (None,)}
    if not name:
        nothing = {"additional_special_tokens": (None, []), "reduction_mask": (None, "")}
        allowed = {"clean": ("lower",), **nothing}
    for key, value in options.items():
        if key not in allowed:
            raise _unsupported(
                folder, f"tokenizer_kwargs.{key!s:.40}", "a key that is known", value
            )
        if not any(value is choice or value == choice for choice in allowed[key]):
            expected = " or ".join(map(repr, allowed[key]))
            raise _unsupported(folder, f"tokenizer_kwargs.{key}", expected, value)
    return dict(options)


def _is_openai(folder: Path) -> bool:
    """True where the files are of a byte-pair encoding with OpenAI's start and end tokens."""
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
    try:
        if whole.is_file():
            return tokenizers.Tokenizer.from_file(str(whole))
        if all(map(os.path.isfile, files)):
            model = models.BPE.from_file(*files, unk_token=END, end_of_word_suffix=WORD_END)
            return tokenizers.Tokenizer(model)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(
            f"{folder}: expected the tokenizer files of a CLIP, but they are damaged"
            f" ({_said(error)}); fetch them again"
        ) from error
    return None


def _said(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


def _openai(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """OpenAI's byte-pair encoding, with the ids of transformers' `CLIPTokenizer`.

    That takes longer to import than a command may take.
    """
    for key, values in OPENAI_CONFIG.items():
        value = config.get(key)
        value = value.get("content") if isinstance(value, dict) and value else value
        if value not in values:
            raise _unsupported(folder, key, repr(values[0]), value)
    tokenizer = _from_files(folder)
    if not _is_openai(folder):
        raise _not_openai(folder, tokenizer and type(tokenizer.model).__name__)
    start, end = map(tokenizer.token_to_id, (START, END))
    tokenizer.add_special_tokens([START, END])
    _split_as_clip(tokenizer)
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    return OpenAIVocabulary(tokenizer, size, (start,), end, pad=0)


def _not_openai(folder: Path, kind: str | None) -> InputError:
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


def _transformers(
    folder: Path, config: Mapping[str, Any], stated: Mapping[str, Any], options: Mapping[str, Any]
) -> Vocabulary:
    """Let transformers' own class read the files and honour their settings.

    open_clip reads them so too, and cleans the text first.
    """
    tokenizer = _auto_tokenizer(folder, config)
    if type(tokenizer).__name__ == "CLIPTokenizer" and not _is_openai(folder):
        raise _not_openai(folder, "tokenizer")
    for key in ("padding_side", "truncation_side"):
        if getattr(tokenizer, key) != "right":
            raise _unsupported(folder, key, "'right'", getattr(tokenizer, key))
    pad = tokenizer.pad_token_id
    if pad is None:
        raise _unsupported(folder, "pad_token", "a token", None)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    stripped = tokenizer.sep_token_id if options.get("strip_sep_token") else None
    longest = tokenizer.model_max_length
    made = OtherVocabulary(
        tokenizer,
        tokenizer.vocab_size,
        starts=(),
        end=-1,
        pad=pad,
        longest=longest if not stated and longest < 10**6 else None,
        cleaned=options.get("clean", "whitespace") if stated else "",
        stripped=-1 if stripped is None else stripped,
    )
    around = made.around()
    if len(around) != 1 or len(ends := next(iter(around))[1]) != 1:
        got = next(iter(around))[1] if len(around) == 1 else "others behind other texts"
        raise _unsupported(folder, "the tokens behind a text", "one end token", got)
    return dataclasses.replace(made, starts=next(iter(around))[0], end=ends[0])


def _auto_tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    for values in (config, _object(folder / "config.json")):
        remote = values.get("auto_map") or {}
        if not isinstance(remote, Mapping) or "AutoTokenizer" in remote:
            raise _unsupported(folder, "auto_map", "no code outside transformers", remote)
    has_model = any((folder / name).is_file() for name in SENTENCEPIECE)
    needs_it = config.get("tokenizer_class") in ("SiglipTokenizer", None)
    needs_it = has_model and (needs_it or not (folder / "tokenizer.json").is_file())
    if needs_it and importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"{folder}: expected the package sentencepiece for its tokenizer, got none; pip"
            " install 'coop_jax[siglip]'"
        )
    with _quiet():
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # of many kinds
            raise InputError(
                f"{folder}: expected tokenizer files that transformers can read, got"
                f" {type(error).__name__}: {_said(error)}; fetch them again"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let transformers say nothing of PyTorch, of classes and of other fields of a config."""
    switch = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.utils import logging

        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            os.environ.pop(switch)
            if before is not None:
                os.environ[switch] = before
