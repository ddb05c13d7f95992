"""CuPL, WaffleCLIP and ZPE (reference methods_text.md and methods_more.md)."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax.classes import Classes
from coop_jax.clip import unit
from coop_jax.methods import descriptions
from coop_jax.methods.waffleclip import AGGREGATES, drawn
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


@checks("waffleclip")
def check_waffleclip(case: Case) -> None:
    """Compare the drawn texts of every repetition, and all ways to aggregate their scores."""
    meta, args, names = case.meta, case.meta["args"], case.meta["classnames"]
    assert args["apply_descriptor_modification"] and not args["pre_descriptor_text"]
    assert args["descriptor_separator"] == ", " and args["label_after_text"] in ("", ".")
    described = {name: tuple(each) for name, each in meta["descriptors"].items()}
    settings = {
        "template": f"{args['label_before_text']}{{}}{args['label_after_text']}",
        "pairs": args["waffle_count"],
        "characters": "".join(text for texts in described.values() for text in texts),
        "as_released": True,
    }
    owned = args["mode"] == "waffle_and_gpt"
    of_class = [described[name] for name in names] if owned else None
    images = frozen_images(case)
    for seed, prompts in enumerate(meta["prompts"]):
        texts = drawn(names, words=meta["word_list"], described=of_class, seed=seed, **settings)
        assert texts == [prompts[name] for name in names]
        counts = case[f"rep{seed}/descriptor_counts"]
        assert [len(each) for each in texts] == counts.tolist()
        owners = np.repeat(np.arange(len(names)), counts)
        features = jnp.asarray(case[f"rep{seed}/descriptor_features"])
        means = descriptions.mean(features, owners, len(names))
        assert relative(unit(means), case[f"rep{seed}/class_means"]) < CLOSE
        for name in AGGREGATES:
            with tempfile.TemporaryDirectory() as folder:
                words, sentences = Path(folder, "words.txt"), Path(folder, "sentences.json")
                words.write_text("\n".join(meta["word_list"]))
                sentences.write_text(json.dumps(described))
                files = {"words": str(words), "sentences": str(sentences) if owned else ""}
                chosen = {**settings, **files, "seed": seed, "aggregate": name}
                method = case.create("waffleclip", **chosen)
            if name == "mean":
                assert relative(method.texts(case.clip, None), means) < CLOSE
            recorded = f"rep{seed}/scores_{name}"
            without_temperature(case, recorded)
            compare_logits(case, method, images, recorded)
    without_temperature(case, "eval_logits")
    np.testing.assert_array_equal(case["eval_logits"], case["rep0/scores_mean"])
