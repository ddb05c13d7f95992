"""Tokenizer files of the kinds that CLIPs come with, trained on a few sentences."""

import io
import json
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SENTENCES = [
    "a photo of a cat.",
    'a photo of the number: "seven".',
    "A picture of a dog, and a bird!",
    "hen-of-the-woods",
    "black and gold garden spider",
    "CD player",
    "it's a très joli chat",
    "numbers 12345 and 67890",
    "the quick brown fox jumps over the lazy dog",
] * 20


def _write(folder: Path, tokenizer: Tokenizer, **config) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _around(front: str, behind: str, *ids: tuple[str, int]) -> processors.TemplateProcessing:
    single = f"{front} $A {behind}".strip()
    return processors.TemplateProcessing(
        single=single, pair=f"{single} $B {behind}", special_tokens=list(ids)
    )


def bert(folder: Path, **config) -> Path:
    """BERT's word pieces, in lower case, between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = _around("[CLS]", "[SEP]", ("[CLS]", 2), ("[SEP]", 3))
    return _write(folder, tokenizer, **{"tokenizer_class": "BertTokenizer", **config})


def t5(folder: Path, **config) -> Path:
    """T5's unigrams, before </s>; padded with it, as SigLIP's in open_clip."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = _around("", "</s>", ("</s>", 1))
    said = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "</s>"}
    return _write(folder, tokenizer, **said, **config)


def gemma(folder: Path, **config) -> Path:
    """Gemma's pairs, each word with the space in front, before <eos>."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=120,
        special_tokens=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = _around("", "<eos>", ("<eos>", 1))
    said = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"}
    return _write(folder, tokenizer, **{**said, **config})


def siglip2(folder: Path) -> Path:
    """Gemma's, which the SigLIP 2 of transformers reads in lower case."""
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    return gemma(folder)


def byte_level(folder: Path, **config) -> Path:
    """Pairs of bytes without OpenAI's words and tokens, between <s> and </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>"}
    return _write(folder, tokenizer, **{**said, **config})


def siglip(folder: Path, **config) -> Path:
    """SigLIP's SentencePiece model, which needs the package of that name."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    said = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, **config}))
    return folder


KINDS = {"bert": bert, "t5": t5, "gemma": gemma, "siglip2": siglip2, "byte_level": byte_level}
