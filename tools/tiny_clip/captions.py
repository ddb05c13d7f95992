"""Captions: from a bare name to a sentence rich in words that are true of the picture."""

from collections.abc import Sequence

import numpy as np

from tiny_clip.subjects import SUBJECTS, Subject

WORDS: dict[str, tuple[str, ...]] = {
    "light_on_dark": ("light on dark", "white on black", "bright on dark", "white", "light"),
    "dark_on_light": ("dark on light", "black on white", "dark on bright", "black", "dark"),
    "faint": ("faint", "pale", "low contrast"),
    "strong": ("high contrast", "strong contrast"),
    "thin": ("thin", "fine", "slim"),
    "thick": ("thick", "heavy", "fat", "bold"),
    "small": ("small", "tiny", "little"),
    "large": ("large", "big", "huge", "close up"),
    "narrow": ("narrow", "squeezed", "condensed"),
    "wide": ("wide", "stretched", "broad"),
    "leaning_right": ("leaning right", "slanted right", "italic"),
    "leaning_left": ("leaning left", "slanted left"),
    "turned_left": ("turned left", "tilted left", "rotated left"),
    "turned_right": ("turned right", "tilted right", "rotated right"),
    "upright": ("upright", "straight"),
    "left": ("at the left", "left"),
    "right": ("at the right", "right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "centered": ("centered", "in the middle"),
    "wobbly": ("wobbly", "warped", "distorted", "crooked", "uneven"),
    "regular": ("regular", "even", "well formed"),
    "blurry": ("blurry", "out of focus", "blurred"),
    "sharp": ("sharp", "crisp", "detailed"),
    "coarse": ("low resolution", "coarse", "of few pixels"),
    "blocky": ("pixelated", "blocky"),
    "smooth": ("smooth", "soft"),
    "noisy": ("noisy", "grainy", "speckled"),
    "clean": ("clean", "plain"),
    "gradient": ("shaded", "on a gradient"),
    "stripes": ("striped", "on stripes"),
    "checks": ("checkered", "on checks"),
    "texture": ("textured", "on a texture"),
    "filled": ("filled", "solid"),
    "outlined": ("outlined", "hollow"),
    "monospaced": ("monospaced",),
}
GENERIC = (
    "{name}.",
    "a {name}.",
    "the {name}.",
    "a photo of a {name}.",
    "a photo of the {name}.",
    "a picture of a {name}.",
    "an image of a {name}.",
    "a picture of the {name}.",
    "this is a {name}.",
    "an example of a {name}.",
    "a sample of the {name}.",
)
STYLED = (
    "a {words} {name}.",
    "the {words} {name}.",
    "{words} {name}.",
    "{words}, {name}.",
    "a photo of a {words} {name}.",
    "a {words} photo of a {name}.",
    "a {words} picture of the {name}.",
    "a {words} image of a {name}.",
    "an image of a {words} {name}.",
    "a photo of a {name}, {words}.",
    "a {name}, {words}.",
    "this {name} is {words}.",
)
MIXED = (
    "a {words} photo of a {more} {name}.",
    "a {words} picture of a {name}, {more}.",
    "{words}, a {more} {name}.",
    "a {words} {name}, {more}.",
)
GENERIC_SHARE = 0.2
MIXED_SHARE = 0.3
MOST_WORDS = 7


def _join(keys: Sequence[str], generator: np.random.Generator) -> str:
    chosen = [WORDS[key][generator.integers(len(WORDS[key]))] for key in keys]
    return (", " if generator.random() < 0.3 else " ").join(chosen)


def write(subject: Subject, descriptors: Sequence[str], generator: np.random.Generator) -> str:
    """A random caption, true of a picture of `subject` that `descriptors` describe."""
    name = subject.names[generator.integers(len(subject.names))]
    chance = generator.random()
    if chance < GENERIC_SHARE:
        return GENERIC[generator.integers(len(GENERIC))].format(name=name)
    mixed = chance < GENERIC_SHARE + MIXED_SHARE and len(descriptors) > 1
    fewest, most = (2 if mixed else 1), min(MOST_WORDS, len(descriptors))
    order = generator.permutation(len(descriptors))[: generator.integers(fewest, most + 1)]
    keys = [descriptors[int(index)] for index in order]
    if not mixed:
        template = STYLED[generator.integers(len(STYLED))]
        return template.format(name=name, words=_join(keys, generator))
    template = MIXED[generator.integers(len(MIXED))]
    split = generator.integers(1, len(keys))
    words, more = _join(keys[:split], generator), _join(keys[split:], generator)
    return template.format(name=name, words=words, more=more)


def vocabulary() -> list[str]:
    """Every word that a caption can hold."""
    phrases = [
        *(phrase for phrases in WORDS.values() for phrase in phrases),
        *(name for subject in SUBJECTS for name in subject.names),
        *(t.format(name="", words="", more="") for t in (*GENERIC, *STYLED, *MIXED)),
    ]
    words = " ".join(phrases).replace(",", " ").replace(".", " ").split()
    return sorted(set(words))
