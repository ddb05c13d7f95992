"""The settings that the papers' experiments really used, by name (coop_protocol section 0)."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coop_jax import assets, config, methods
from coop_jax.clip import source
from coop_jax.data.official import FEW_SHOT, IMAGENET_VARIANTS
from coop_jax.errors import InputError

BACKBONES = {"rn50": "RN50", "rn101": "RN101", "vit_b32": "ViT-B/32", "vit_b16": "ViT-B/16"}
CONTEXTS = {
    "m16": {"n_ctx": 16},
    "m8": {"n_ctx": 8},
    "m4": {"n_ctx": 4},
    "phrase": {"n_ctx": 4, "context_init": "a photo of a"},
}
DIGITS_SENTENCES = Path(assets.__file__).with_name("digits_sentences.json")
"""Two of each digit, written for this package."""

EMBEDDED_LAYERS = {
    "depth": 3,
    "depth_text": 3,
    "depth_vision": 3,
    "first": 2,
    "last": 3,
    "layer": 2,
}
"""The most that settings of layers may be in the towers of the embedded CLIP."""

QUICK = {"shots": (1, 4, 16), "max_steps": 48}
"""Settings of the comparison on the digits, which is to take minutes."""

QUICK_BATCH = 10
"""The largest batch there: at 1, 4 and 16 shots 48 steps are whole epochs then, of one program."""

PRECISIONS = ("float32", "float16")

logger = logging.getLogger(__name__)


def choose(argument: str, **choices: Sequence[str]) -> dict[str, str]:
    """Read the words of a config's argument, e.g. "dtd,middle": one of every kind at most.

    Args:
        argument: words with commas between them, in any order.
        choices: the words of each kind; the first is chosen where none is given.

    Raises:
        InputError: an unknown word, or two of one kind.
    """
    chosen = {kind: words[0] for kind, words in choices.items()}
    given: set[str] = set()
    for word in filter(None, (word.strip() for word in argument.split(","))):
        kinds = [kind for kind, words in choices.items() if word in words]
        if not kinds or kinds[0] in given:
            valid = "; ".join(f"{kind}: {', '.join(words)}" for kind, words in choices.items())
            raise InputError(
                f"--config=FILE:{argument}: expected one word of a kind at most ({valid}), got"
                f" {word!r:.80}; choose from them"
            )
        chosen[kinds[0]] = word
        given.add(kinds[0])
    return chosen


def _paper(method: str, dataset: str, backbone: str, precision: str) -> dict[str, Any]:
    """The settings that all of the papers' experiments share, with those of the method's own."""
    settings = config.default(method)
    settings["dataset"] = dataset
    settings["clip"]["name"] = BACKBONES[backbone]
    settings["clip"]["dtype"] = settings["optimizer"]["dtype"] = precision
    return settings


def trains_as_published(recorded: Mapping[str, Any], method: str) -> bool:
    """Return whether a config trains this method as the papers do: data, prompts, CLIP aside.

    The precision may be any of `PRECISIONS`.
    """
    paper = _paper(method, "imagenet", "rn50", PRECISIONS[0])
    names = ("sampling", "epochs", "max_steps", "batch_size", "optimizer", "augmentation")
    ours, theirs = (
        json.loads(json.dumps({name: settings.get(name) for name in names}))
        for settings in (recorded, paper)
    )
    for settings in (ours, theirs):
        optimizer = settings["optimizer"]
        if isinstance(optimizer, dict) and optimizer.get("dtype") in PRECISIONS:
            del optimizer["dtype"]
    return ours == theirs


def digits(method: str) -> dict[str, Any]:
    """A method on scikit-learn's handwritten digits, with the embedded CLIP."""
    return _in_embedded_layers(_digits(method))


def _digits(method: str) -> dict[str, Any]:
    settings = config.default(method)
    # Digits are not what they were when mirrored or cut to an eighth.
    settings["augmentation"] |= {"scale": (0.6, 1.0), "flip": 0.0}
    if methods.missing(method, settings["method"]):
        settings["method"]["sentences"] = str(DIGITS_SENTENCES)
    return settings


def _in_embedded_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a config whose method reaches no layer that the embedded CLIP has not."""
    own = settings["method"]
    lowered = {key: min(own[key], most) for key, most in EMBEDDED_LAYERS.items() if key in own}
    return settings | {"method": own | lowered}


def compare(argument: str, clip: str = source.EMBEDDED) -> dict[str, dict[str, Any]]:
    """Several methods on one dataset, by name: "digits", "dtd,coop,clap", "photographs,tda".

    Without methods they are all but those that miss a setting, which the log names. Methods train
    as in their papers, but on the digits, where stages are cut short, and but for layers that the
    embedded CLIP has not.

    Args:
        argument: a dataset and methods.
        clip: the CLIP's name.

    Raises:
        InputError: there is no dataset, an unknown method, or one twice.
    """
    dataset, *names = (word.strip() for word in argument.split(","))
    if not dataset or len(set(names)) < len(names):
        raise InputError(
            f"--config=FILE:{argument}: expected a dataset and different methods, got"
            f" {argument!r:.80}; name each once, e.g. digits,coop,clap"
        )
    configs = {}
    for name in names or sorted({*methods.available()} - {methods.ZERO_SHOT}):
        settings = config.default(name)
        if dataset == settings["dataset"]:
            settings = _digits(name)
            settings |= QUICK | {"batch_size": min(settings["batch_size"], QUICK_BATCH)}
        if clip == source.EMBEDDED:
            settings = _in_embedded_layers(settings)
        configs[name] = settings | {"dataset": dataset}
    short = [name for name in configs if methods.missing(name, configs[name]["method"])]
    if short and not names:
        configs = {name: each for name, each in configs.items() if name not in short}
        logger.info("not compared, as settings that they need are empty: %s", ", ".join(short))
    return configs


def coop_few_shot(argument: str) -> dict[str, Any]:
    """CoOp on one dataset at 1 to 16 shots; all of its paper's variants."""
    words = choose(
        argument,
        dataset=FEW_SHOT,
        backbone=list(BACKBONES),
        position=("end", "middle", "front"),
        context=list(CONTEXTS),
        kind=("unified", "class_specific"),
        precision=PRECISIONS,
    )
    settings = _paper("coop", words["dataset"], words["backbone"], words["precision"])
    settings["method"] |= CONTEXTS[words["context"]] | {
        "class_token_position": words["position"],
        "class_specific": words["kind"] == "class_specific",
    }
    if words["context"] == "phrase":
        settings["shots"] = (16,)
    return settings


def linear_probe(argument: str) -> dict[str, Any]:
    """Linear-probe CLIP on one dataset at 1 to 16 shots."""
    words = choose(argument, dataset=FEW_SHOT, backbone=list(BACKBONES), precision=PRECISIONS)
    return _paper("linear_probe", words["dataset"], words["backbone"], words["precision"])


def prompt_ensembling(argument: str) -> dict[str, Any]:
    """Hand-crafted prompts, their ensembles and CoOp on ImageNet at 16 shots."""
    words = choose(argument, backbone=list(BACKBONES), precision=PRECISIONS)
    settings = _paper("coop", "imagenet", words["backbone"], words["precision"])
    return settings | {"templates": ("dataset", "imagenet_7", "imagenet_80"), "shots": (16,)}


def coop_domain_generalization(argument: str) -> dict[str, Any]:
    """CoOp or linear-probe CLIP from ImageNet to its four variants, as in the CoOp paper."""
    words = choose(
        argument,
        method=("coop", "linear_probe"),
        backbone=list(BACKBONES),
        context=("m16", "m4"),
        precision=PRECISIONS,
    )
    settings = _paper(words["method"], "imagenet", words["backbone"], words["precision"])
    if words["method"] == "coop":
        settings["method"] |= CONTEXTS[words["context"]]
    return settings | {
        "protocol": "domain_generalization",
        "targets": IMAGENET_VARIANTS,
        "shots": (16,),
    }


def _cocoop_paper(method: str, dataset: str, precision: str) -> dict[str, Any]:
    """Return that paper's settings of CoCoOp and of CoOp: ViT-B/16, 16 shots, "a photo of a"."""
    settings = _paper(method, dataset, "vit_b16", precision)
    settings["method"] |= CONTEXTS["phrase"]
    return settings | {"shots": (16,)}


def base_to_new(argument: str) -> dict[str, Any]:
    """CoCoOp or CoOp from the first half of a dataset's classes to the second."""
    words = choose(
        argument,
        method=("cocoop", "coop"),
        dataset=FEW_SHOT,
        parts=("halves", "class_incremental"),
        precision=PRECISIONS,
    )
    settings = _cocoop_paper(words["method"], words["dataset"], words["precision"])
    parts = {"halves": ("base", "new"), "class_incremental": config.PARTS}
    return settings | {"protocol": "base_to_new", "parts": parts[words["parts"]]}


def cross_dataset(argument: str) -> dict[str, Any]:
    """CoCoOp or CoOp from ImageNet to ten other datasets."""
    words = choose(argument, method=("cocoop", "coop"), precision=PRECISIONS)
    settings = _cocoop_paper(words["method"], "imagenet", words["precision"])
    return settings | {"protocol": "cross_dataset", "targets": FEW_SHOT[1:]}


def domain_generalization(argument: str) -> dict[str, Any]:
    """CoCoOp or CoOp from ImageNet to its four variants, as in the CoCoOp paper."""
    words = choose(argument, method=("cocoop", "coop"), precision=PRECISIONS)
    settings = _cocoop_paper(words["method"], "imagenet", words["precision"])
    return settings | {"protocol": "domain_generalization", "targets": IMAGENET_VARIANTS}
