"""Tokenizers of other makers, as transformers reads them, and open_clip's settings of them."""

import contextlib
import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coop_jax.clip.vocabulary import (
    SENTENCEPIECE,
    Vocabulary,
    is_error,
    is_openai,
    not_openai,
    said,
    unsupported,
)
from coop_jax.errors import InputError
from coop_jax.reading import canonical, clean, read_json, unescaped

CLEANED: dict[str, Callable[[str], str]] = {
    "lower": clean,
    "whitespace": lambda text: " ".join(unescaped(text).split()),
    "canonicalize": lambda text: canonical(unescaped(text)),
}
"""open_clip's first change of a text, by the value of `clean`."""


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
        return self.tokenizer.decode([index], clean_up_tokenization_spaces=False).strip()

    def around(self) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The ids in front of texts and those behind; of several texts, all that there are."""
        made = set()
        for text in ("a photo", "cat", "2 dogs."):
            own, whole = self.encode(text), self.encode(text, around=True)
            fits = [i for i in range(len(whole)) if own and whole[i : i + len(own)] == own]
            if fits:
                made.add((tuple(whole[: fits[0]]), tuple(whole[fits[0] + len(own) :])))
        return made


def options_of(folder: Path, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `tokenizer_kwargs` of a `text_cfg`.

    Raises:
        InputError: a key or value is not supported.
    """
    options = stated.get("tokenizer_kwargs") or {}
    if not isinstance(options, Mapping):
        raise unsupported(folder, "tokenizer_kwargs", "an object", options)
    name = stated.get("hf_tokenizer_name")
    if name is not None and not isinstance(name, str):
        raise unsupported(folder, "hf_tokenizer_name", "a text", name)
    if name and stated.get("tokenizer_mode"):
        raise unsupported(folder, "tokenizer_mode", "none", stated["tokenizer_mode"])
    allowed = {"clean": tuple(CLEANED), "strip_sep_token": (True, False), "language": (None,)}
    if not name:
        nothing = {"additional_special_tokens": (None, []), "reduction_mask": (None, "")}
        allowed = {"clean": ("lower",), **nothing}
    for key, value in options.items():
        if key not in allowed:
            raise unsupported(folder, f"tokenizer_kwargs.{key!s:.40}", "a key that is known", value)
        if not any(value is choice or value == choice for choice in allowed[key]):
            expected = " or ".join(map(repr, allowed[key]))
            raise unsupported(folder, f"tokenizer_kwargs.{key}", expected, value)
    return dict(options)


def read(
    folder: Path, config: Mapping[str, Any], stated: Mapping[str, Any], options: Mapping[str, Any]
) -> OtherVocabulary:
    """Let transformers' own class read the files and honour their settings.

    open_clip reads them so too, and cleans the text first.

    Args:
        folder: of the files.
        config: its `tokenizer_config.json`.
        stated: the `text_cfg` of an `open_clip_config.json`, or {}.
        options: its `options_of`.

    Raises:
        InputError: the files are damaged or of a kind that is not supported, or a package is not
            installed that reads them.
    """
    for values in (config, read_json(folder / "config.json")):
        remote = values.get("auto_map") or {}
        if not isinstance(remote, Mapping) or "AutoTokenizer" in remote:
            raise unsupported(folder, "auto_map", "no code outside transformers", remote)
    if config.get("extra_ids") not in (None, *range(1000)):
        raise unsupported(folder, "extra_ids", "less than 1000", config["extra_ids"])
    _require_sentencepiece(folder, config)
    with _quiet():
        try:
            return _other(folder, stated, options)
        except InputError:
            raise
        except BaseException as error:  # of many kinds
            if not is_error(error):
                raise
            raise InputError(
                f"{folder}: expected tokenizer files that transformers can read, got"
                f" {type(error).__name__}: {said(error)}; fetch them again"
            ) from error


def _require_sentencepiece(folder: Path, config: Mapping[str, Any]) -> None:
    """Make sure that transformers does not read SigLIP's model by other means, to other ids."""
    has_model = any((folder / name).is_file() for name in SENTENCEPIECE)
    needs_it = config.get("tokenizer_class") in ("SiglipTokenizer", None)
    needs_it = has_model and (needs_it or not (folder / "tokenizer.json").is_file())
    if needs_it and importlib.util.find_spec("sentencepiece") is None:
        raise InputError(
            f"{folder}: expected the package sentencepiece for its tokenizer, got none; pip"
            " install 'coop_jax[siglip]'"
        )


def _other(folder: Path, stated: Mapping[str, Any], options: Mapping[str, Any]) -> OtherVocabulary:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    if type(tokenizer).__name__ == "CLIPTokenizer" and not is_openai(folder):
        raise not_openai(folder, "tokenizer")
    for key in ("padding_side", "truncation_side"):
        if getattr(tokenizer, key) != "right":
            raise unsupported(folder, key, "'right'", getattr(tokenizer, key))
    pad, longest = tokenizer.pad_token_id, tokenizer.model_max_length
    if pad is None:
        raise unsupported(folder, "pad_token", "a token", None)
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise unsupported(folder, "model_max_length", "a whole number", longest)
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    stripped = tokenizer.sep_token_id if options.get("strip_sep_token") else None
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
        raise unsupported(folder, "the tokens behind a text", "one end token", got)
    return dataclasses.replace(made, starts=next(iter(around))[0], end=ends[0])


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
