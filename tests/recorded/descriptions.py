"""CuPL, WaffleCLIP and ZPE (reference methods_text.md and methods_more.md)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax.classes import Classes
from coop_jax.clip import unit
from recorded.case import Case, checks, compare_logits, relative
from recorded.texts import frozen_images

CLOSE = 1e-5


def without_temperature(case: Case, *names: str) -> None:
    """Multiply recorded logits that have no temperature by the CLIP's."""
    for name in names:
        case.arrays[name] = case[name] * np.exp(np.asarray(case.clip.logit_scale[...]))


@checks("cupl")
def check_cupl(case: Case) -> None:
    """Compare tokens, weights and logits: of the sentences, and of prompts beside them."""
    meta = case.meta
    sentences = {name: tuple(texts) for name, texts in meta["sentences"].items()}
    classes = Classes(tuple(meta["classnames"]), sentences=sentences)
    all_texts = [text for name in meta["text_names"] for text in sentences[name]]
    tokens = case.tokenizer(all_texts, truncate=True)
    np.testing.assert_array_equal(tokens, case["sentence_tokens"])
    owners = np.repeat(np.arange(len(classes)), [len(sentences[n]) for n in meta["text_names"]])
    np.testing.assert_array_equal(owners, case["sentence_class"])

    images = frozen_images(case)
    without_temperature(case, "logits_base", "logits_cupl", "logits_both", "eval_logits")
    templates = tuple(meta["templates"])
    methods: dict[str, Any] = {
        "base": case.create("zero_shot", templates=templates),
        "cupl": case.create("cupl", classes, truncate=True),
        "both": case.create("cupl", classes, truncate=True, templates=templates),
    }
    for name, method in methods.items():
        weights = unit(jnp.asarray(method.texts(case.clip, None)))
        assert relative(weights.T, case[f"weights_{name}"]) < CLOSE, name
        compare_logits(case, method, images, f"logits_{name}")
    compare_logits(case, methods["cupl"], images)
