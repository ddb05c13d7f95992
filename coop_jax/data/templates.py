"""Hand-crafted prompts: the published ensembles, and the sets that a config asks for."""

from collections.abc import Sequence

from coop_jax.errors import InputError

IMAGENET_7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""OpenAI's selection of seven, which CoOp's ensemble baseline uses (coop_protocol section 8)."""

IMAGENET_80 = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
"""The templates of OpenAI's notebook `Prompt_Engineering_for_ImageNet`, in its order."""

NAMED = ("dataset", "imagenet_7", "imagenet_80")
"""What an entry may be besides a template."""


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
    published = {"imagenet_7": _seven(own, dataset), "imagenet_80": _eighty()}
    chosen = dict.fromkeys(entries or ("dataset",))
    single = dict.fromkeys(
        own if entry == "dataset" else entry for entry in chosen if entry not in published
    )
    sets: dict[str, tuple[str, ...]] = {template: (template,) for template in single}
    if len(single) > 1:
        sets[f"ensemble of {len(single)}"] = tuple(single)
    return sets | dict(published[entry] for entry in chosen if entry in published)


def _seven(own: str, dataset: str) -> tuple[str, tuple[str, ...]]:
    if dataset == "imagenet" or own in IMAGENET_7:
        return "7 ImageNet templates", IMAGENET_7
    return "7 ImageNet templates and the dataset's", (*IMAGENET_7, own)


def _eighty() -> tuple[str, tuple[str, ...]]:
    return "80 ImageNet templates", IMAGENET_80
