"""How one picture looks: numbers drawn at random, from which picture and caption both follow."""

import dataclasses

import numpy as np

BACKGROUNDS = ("plain", "gradient", "stripes", "checks", "texture")
FULL_RESOLUTION = 32


@dataclasses.dataclass(frozen=True)
class Style:
    """Everything random about a picture but its subject and its typeface.

    Lengths are fractions of the picture's side, angles are in degrees, greys are 0..1.
    """

    light_on_dark: bool
    contrast: float
    growth: int
    size: float
    stretch: float
    shear: float
    rotation: float
    offset: tuple[float, float]
    wobble: float
    blur: float
    resolution: int
    blocky: bool
    noise: float
    background: str
    outlined: bool


def draw(generator: np.random.Generator) -> Style:
    """A random style: every departure from plain print is present in a part of the pictures.

    Pictures of few pixels hold large glyphs, or nobody could read them.
    """

    def sometimes(probability: float, low: float, high: float, otherwise: float = 0.0) -> float:
        value = generator.uniform(low, high)
        return value if generator.random() < probability else otherwise

    coarse = generator.random() < 0.35
    size = generator.uniform(0.7, 1.05) if coarse else generator.uniform(0.35, 1.05)
    room = max(1.05 - size, 0.1) / 2
    offset = generator.uniform(-room, room, 2) if generator.random() < 0.6 else np.zeros(2)
    return Style(
        light_on_dark=bool(generator.random() < 0.5),
        contrast=sometimes(0.35, 0.3, 0.9, otherwise=1.0),
        growth=int(generator.choice([-1, 0, 1, 2, 3, 4], p=[0.1, 0.4, 0.15, 0.15, 0.1, 0.1])),
        size=size,
        stretch=float(np.exp(sometimes(0.5, -0.5, 0.5))),
        shear=sometimes(0.4, -0.45, 0.45),
        rotation=sometimes(0.4, -25, 25),
        offset=(float(offset[0]), float(offset[1])),
        wobble=sometimes(0.5, 0.015, 0.06),
        blur=sometimes(0.25, 0.5, 1.8),
        resolution=int(generator.integers(6, 15)) if coarse else FULL_RESOLUTION,
        blocky=bool(generator.random() < 0.5),
        noise=sometimes(0.3, 0.03, 0.15),
        background=str(generator.choice(BACKGROUNDS, p=[0.7, 0.075, 0.075, 0.075, 0.075])),
        outlined=bool(generator.random() < 0.4),
    )


def descriptors(style: Style, italic: bool, thickness: float) -> list[str]:
    """Keys of `captions.WORDS` that are true of the picture.

    `thickness` is the stroke's width as a fraction of the glyph's size, measured after every
    change of shape. What is neither one thing nor the other gets no word.
    """
    lean = style.shear + 0.2 * italic
    column, row = style.offset
    coarse = style.resolution < FULL_RESOLUTION
    clear = not coarse and style.blur == 0
    truths = {
        "light_on_dark": style.light_on_dark,
        "dark_on_light": not style.light_on_dark,
        "faint": style.contrast < 0.5,
        "strong": style.contrast > 0.9,
        "thin": thickness < 0.1,
        "thick": thickness > 0.18,
        "small": style.size < 0.5,
        "large": style.size > 0.85,
        "narrow": style.stretch < 0.8,
        "wide": style.stretch > 1.25,
        "leaning_right": lean > 0.15,
        "leaning_left": lean < -0.15,
        "turned_left": style.rotation < -8,
        "turned_right": style.rotation > 8,
        "upright": abs(lean) < 0.05 and abs(style.rotation) < 3,
        "left": column < -0.08,
        "right": column > 0.08,
        "top": row < -0.08,
        "bottom": row > 0.08,
        "centered": abs(column) < 0.03 and abs(row) < 0.03,
        "wobbly": style.wobble > 0.03,
        "regular": style.wobble == 0,
        "blurry": style.blur > 0.8,
        "sharp": clear,
        "coarse": coarse,
        "blocky": coarse and style.blocky,
        "smooth": coarse and not style.blocky,
        "noisy": style.noise > 0.06,
        "clean": style.noise == 0 and style.background == "plain",
        "gradient": style.background == "gradient",
        "stripes": style.background == "stripes",
        "checks": style.background == "checks",
        "texture": style.background == "texture",
    }
    return [name for name, true in truths.items() if true]
