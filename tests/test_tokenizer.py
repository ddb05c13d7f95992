"""Token ids against transformers' tokenizer; `test_golden.py` has those of the official one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coop_jax.clip import source
from coop_jax.reading import clean


@pytest.fixture(scope="module")
def transformers_tokenizer():
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(source.EMBEDDED_FOLDER))


@given(text=st.text(max_size=40))
def test_ids_are_those_of_transformers(tiny_tokenizer, transformers_tokenizer, text):
    expected = transformers_tokenizer(clean(text), add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.ids(text) == expected
