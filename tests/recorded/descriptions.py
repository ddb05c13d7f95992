"""CuPL, WaffleCLIP and ZPE (reference methods_text.md and methods_more.md)."""

import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from coop_jax.classes import Classes
from coop_jax.clip import unit
from coop_jax.methods import Data, Images, descriptions, zpe
from coop_jax.methods.waffleclip import AGGREGATES, drawn
from recorded.case import Case, checks, compare_logits, relative, split
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
                if owned:
                    chosen["characters"] = ""
                method = case.create("waffleclip", **chosen)
            if name == "mean":
                assert relative(method.texts(case.clip, None), means) < CLOSE
            recorded = f"rep{seed}/scores_{name}"
            without_temperature(case, recorded)
            compare_logits(case, method, images, recorded)
    without_temperature(case, "eval_logits")
    np.testing.assert_array_equal(case["eval_logits"], case["rep0/scores_mean"])


@checks("zpe")
def check_zpe(case: Case) -> None:
    """Compare tokens, logits, all scores, what is selected, and the logits of every weighting.

    The official weights are a softmax over all prompts, those beside the pool among them, and the
    weighted logits are divided by the number of prompts: a factor that changes no prediction.
    """
    meta, names = case.meta, case.meta["classnames"]
    templates, count = tuple(meta["templates"]), meta["n_pool"]
    spelled = [name.replace("_", " ") for name in names]
    texts = [t.replace("{}", name) for t in templates for name in spelled]
    np.testing.assert_array_equal(case.tokenizer(texts), case["tokens"].reshape(len(texts), -1))

    scale = float(np.exp(case.clip.logit_scale[...]))
    images, pretrain = case.features(), case.features("pretrain_images")
    for features, name in ((images, "image"), (pretrain, "pretrain")):
        scaled = np.sqrt(scale) * np.asarray(unit(jnp.asarray(features)))
        assert relative(scaled, case[f"{name}_features_scaled"]) < CLOSE
    whole = case.create("zpe", templates=templates)
    assert relative(np.sqrt(scale) * whole.bank[...], case["text_features_scaled"]) < CLOSE

    features = unit(jnp.asarray(images))
    mean = features[: round(len(features) * meta["frac_test"])].mean(axis=0)
    means = {"test": mean, "pretrain": unit(jnp.asarray(pretrain)).mean(axis=0)}
    found = {
        "none": zpe.scores(scale * whole.bank[...], features),
        "both": zpe.scores(scale * whole.bank[...], features, [*means.values()]),
        **{n: zpe.scores(scale * whole.bank[...], features, [m]) for n, m in means.items()},
    }
    for name, scores in found.items():
        np.testing.assert_allclose(scores, case[f"scores_{name}"], rtol=CLOSE, err_msg=name)
    np.testing.assert_allclose(
        zpe.weigh(found["both"], "softmax", None), case["softmax_weights"], rtol=1e-4
    )

    pool = case["scores_both"][:count].astype(np.float64)
    softmax = case["softmax_weights"][:count].astype(np.float64)
    kinds = {"softmax": softmax, "scores": np.abs(pool), "selected_equal": np.ones(count)}
    data = Data(split(case["labels"], Images()), unlabeled=split(case["labels"], Images(images)))
    for threshold in ("NA", *meta["thresholds"]):
        chosen = case[f"selected_{threshold}"]
        for kind, weights in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                np.save(path := Path(folder, "pretrain.npy"), pretrain)
                method = case.create(
                    "zpe",
                    templates=templates[:count],
                    weights=kind.removeprefix("selected_"),
                    select=threshold != "NA",
                    threshold=0.0 if threshold == "NA" else float(threshold),
                    pretrain_features=str(path),
                    share=float(meta["frac_test"]),
                )
            method.prepare(case.clip, 0, data)
            np.testing.assert_array_equal(np.flatnonzero(method.weights[...]), np.sort(chosen))
            name = f"eval_logits_{kind}_{threshold}"
            case.arrays[name] = case[name] / weights[chosen].mean()
            compare_logits(case, method, Images(images), name)
    case.arrays["eval_logits"] = case["eval_logits"] / softmax.mean()
    assert relative(case["eval_logits"], case["eval_logits_softmax_NA"]) < CLOSE
    assert relative(case["eval_logits_equal"], case["eval_logits_selected_equal_NA"]) < CLOSE
