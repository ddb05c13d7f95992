"""Hand-crafted prompts: the published ensembles, and the sets that a config asks for."""

from collections.abc import Sequence

from coop_jax.errors import InputError
from coop_jax.templates import IMAGENET_7, IMAGENET_80

NAMED = ("dataset", "imagenet_7", "imagenet_80")
"""Words that an entry may be besides a template."""


def prompt_sets(entries: Sequence[str], own: str, dataset: str) -> dict[str, tuple[str, ...]]:
    """Name the prompts, single ones and ensembles, that a config's entries ask for.

    Single templates come first, in the order of the entries and each under its own text; then, if
    there are several, their ensemble; then the published ensembles. What is asked for twice comes
    once.

    Args:
        entries: templates with `{}` for the class name, "dataset" for the dataset's own,
            "imagenet_7" or "imagenet_80"; none means the dataset's own.
        own: the dataset's own template. It joins the seven where the dataset is not ImageNet itself
            (coop_protocol section 8).
        dataset: the dataset's name in the catalogue.

    Returns:
        The templates of each zero-shot classifier, by the name to show.

    Raises:
        InputError: an entry is neither a template nor one of `NAMED`.
    """
    unknown = [entry for entry in entries if "{}" not in entry and entry not in NAMED]
    if unknown:
        raise InputError(
            f"templates: expected texts with {{}} for the class name or any of {', '.join(NAMED)},"
            f" got {', '.join(map(repr, unknown))}; correct or remove it"
        )
    published = {
        "imagenet_7": ("7 ImageNet templates and the dataset's", (*IMAGENET_7, own)),
        "imagenet_80": ("80 ImageNet templates", IMAGENET_80),
    }
    if dataset == "imagenet" or own in IMAGENET_7:
        published["imagenet_7"] = "7 ImageNet templates", IMAGENET_7
    chosen = dict.fromkeys(entries or ("dataset",))
    single = dict.fromkeys(
        own if entry == "dataset" else entry for entry in chosen if entry not in published
    )
    sets: dict[str, tuple[str, ...]] = {template: (template,) for template in single}
    if len(single) > 1:
        sets[f"ensemble of {len(single)}"] = tuple(single)
    return sets | dict(published[entry] for entry in chosen if entry in published)
