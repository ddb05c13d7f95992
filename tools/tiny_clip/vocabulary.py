"""The vocabulary: CLIP's kind of byte-level BPE in which every word of a caption is one token."""

import collections
import itertools
import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # OpenAI's pattern


def _parts(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
         normalizers.Lowercase()]
    )  # fmt: skip
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(WORD), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """The BPE merges that make every word one token: the most frequent pair first, then by name.

    The words are ASCII letters, which byte-level BPE spells as they are.
    """
    spellings = [[*word[:-1], word[-1] + WORD_END] for word in words]
    merges = []
    while counts := collections.Counter(
        pair for spelling in spellings for pair in itertools.pairwise(spelling)
    ):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        spellings = [_merge(spelling, best) for spelling in spellings]
    return merges


def _merge(spelling: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in spelling:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def build(words: list[str]) -> tokenizers.Tokenizer:
    """CLIP's order of ids: bytes, bytes at a word's end, merges, start, end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(words)
    tokens = [*letters, *(letter + WORD_END for letter in letters)]
    tokens += [first + second for first, second in merges]
    ids = {token: index for index, token in enumerate(dict.fromkeys([*tokens, START, END]))}
    tokenizer = _parts(
        tokenizers.Tokenizer(
            models.BPE(
                vocab=ids,
                merges=merges,
                unk_token=END,
                continuing_subword_prefix="",
                end_of_word_suffix=WORD_END,
            )
        )
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, ids[END]), (START, ids[START]), add_prefix_space=False, trim_offsets=False
    )
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """The files from which transformers' `CLIPTokenizer` loads."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
