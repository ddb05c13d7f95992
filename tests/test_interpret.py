"""Nearest words of contexts that are known words."""

import numpy as np
from rich.console import Console

from coop_jax import interpret


def test_a_words_own_embedding_is_nearest_to_it(tiny_clip, tiny_tokenizer):
    words = ["seven", "circle", "photo"]
    ids = [tiny_tokenizer.ids(word)[0] for word in words]
    table = np.asarray(tiny_clip.text.token_embedding[...])
    context = table[ids] + 1e-4
    found = interpret.nearest_words(tiny_clip, tiny_tokenizer, context, count=3)
    assert [row[0].word for row in found] == words
    for row, vector in zip(found, context, strict=True):
        distances = np.sort(np.linalg.norm(table - vector, axis=1))[:3]
        np.testing.assert_allclose([near.distance for near in row], distances, rtol=1e-4)


def test_class_specific_contexts_are_listed_in_order(tiny_clip, tiny_tokenizer):
    ids = np.asarray([tiny_tokenizer.ids("seven"), tiny_tokenizer.ids("star")])
    context = np.asarray(tiny_clip.text.token_embedding[...])[ids]
    found = interpret.nearest_words(tiny_clip, tiny_tokenizer, context)
    assert [row[0].word for row in found] == ["seven", "star"]
    console = Console(width=80, record=True)
    console.print(interpret.table(found, "nearest words"))
    text = console.export_text()
    assert "nearest words" in text and "star (0.0000)" in text
