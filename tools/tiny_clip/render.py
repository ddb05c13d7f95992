"""Pictures of glyphs and shapes, drawn from a style: 8-bit greys, 32 by 32."""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Resampling
from scipy import ndimage

from tiny_clip import styles
from tiny_clip.fonts import Face, crop
from tiny_clip.styles import FULL_RESOLUTION, Style
from tiny_clip.subjects import Subject

CANVAS = 2 * FULL_RESOLUTION


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture `[32, 32]` uint8 and the keys of the words that describe it."""

    pixels: np.ndarray
    descriptors: tuple[str, ...]


@functools.cache
def load_font(path: str) -> ImageFont.FreeTypeFont:
    """The face at the size at which glyphs are drawn before they are fitted to a picture."""
    return ImageFont.truetype(path, CANVAS)


def glyph(face: Face, character: str) -> tuple[np.ndarray, float]:
    """The character's ink `[height, width]` in 0..1, and the length that its size refers to."""
    font = load_font(face.path)
    ink = np.asarray(crop(font, character), np.float32) / 255
    return ink, max(*ink.shape, 0.85 * crop(font, "H").height)


def polygon(corners: int, inner: float = 1.0) -> list[tuple[float, float]]:
    """Corners on the unit circle, the first on top; every other one at radius `inner`."""
    points = []
    for index in range(corners):
        radius = inner if index % 2 else 1.0
        angle = 2 * math.pi * index / corners
        points.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return points


POLYGONS = {
    "circle": polygon(64),
    "oval": [(0.65 * x, y) for x, y in polygon(64)],
    "triangle": polygon(3),
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "rectangle": [(-1, -0.55), (1, -0.55), (1, 0.55), (-1, 0.55)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "pentagon": polygon(5),
    "hexagon": polygon(6),
    "star": polygon(10, inner=0.42),
    "arrow": [
        (-1, -0.25), (0.2, -0.25), (0.2, -0.75), (1, 0), (0.2, 0.75), (0.2, 0.25), (-1, 0.25),
    ],
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1),
        (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
    "crescent": [
        *[(math.cos(angle), math.sin(angle)) for angle in np.linspace(0.9, 5.4, 32)],
        *[
            (0.45 + 0.8 * math.cos(angle), 0.8 * math.sin(angle))
            for angle in np.linspace(5.1, 1.2, 32)
        ],
    ],
    "heart": [
        (math.sin(angle) ** 3, -0.8 * math.cos(angle) + 0.35 * math.cos(2 * angle))
        for angle in np.linspace(0, 2 * math.pi, 64)
    ],
}  # fmt: skip


def shape(name: str, outlined: bool) -> tuple[np.ndarray, float]:
    """The shape's ink `[64, 64]` in 0..1, filled or as a line, and its size."""
    middle, radius = CANVAS / 2, CANVAS / 2 - 5
    points = [(middle + radius * x, middle + radius * y) for x, y in POLYGONS[name]]
    picture = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(picture)
    if outlined:
        pen.line([*points, *points[:2]], fill=255, width=7, joint="curve")
    else:
        pen.polygon(points, fill=255)
    return np.asarray(picture, np.float32) / 255, CANVAS - 10


def displacement(generator: np.random.Generator, amplitude: float) -> np.ndarray:
    """A smooth random vector field `[2, 64, 64]`, in canvas sides."""
    coarse = generator.normal(0, amplitude, (2, 4, 4)).astype(np.float32)
    return np.stack(
        [
            np.asarray(Image.fromarray(axis).resize((CANVAS, CANVAS), Resampling.BICUBIC))
            for axis in coarse
        ]
    )


def place(
    ink: np.ndarray, extent: float, style: Style, generator: np.random.Generator
) -> np.ndarray:
    """The ink fitted to the canvas `[64, 64]`: size, stretch, slant, rotation, place, wobble."""
    angle = math.radians(style.rotation)
    rotate = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    slant = np.array([[1, style.shear], [0, 1]])
    widen = np.diag([style.stretch**-0.5, style.stretch**0.5])
    inverse = widen @ slant @ rotate * extent / style.size
    axis = (np.arange(CANVAS) + 0.5) / CANVAS - 0.5
    across, down = np.meshgrid(axis - style.offset[0], axis - style.offset[1])
    points = np.stack([across, down])
    if style.wobble:
        points = points + displacement(generator, style.wobble)
    across, down = np.einsum("ij,jhw->ihw", inverse, points)
    height, width = ink.shape
    return ndimage.map_coordinates(
        ink, [down + height / 2 - 0.5, across + width / 2 - 0.5], order=1, output=np.float32
    )


def grow(ink: np.ndarray, growth: int) -> np.ndarray:
    """Strokes widened by `growth` canvas pixels on each side, or narrowed if it is negative."""
    if growth == 0:
        return ink
    picture = Image.fromarray((255 * ink).astype(np.uint8))
    change = ImageFilter.MaxFilter if growth > 0 else ImageFilter.MinFilter
    picture = picture.filter(change(2 * abs(growth) + 1)).filter(ImageFilter.GaussianBlur(0.7))
    return np.asarray(picture, np.float32) / 255


def thickness(ink: np.ndarray) -> float:
    """The mean width of the strokes, in canvas sides: twice the area over the contour."""
    solid = ink > 0.5
    contour = solid & ~ndimage.binary_erosion(solid)
    return 2 * solid.sum() / max(int(contour.sum()), 1) / CANVAS


def background(name: str, generator: np.random.Generator) -> np.ndarray:
    """A pattern `[32, 32]` in 0..1; a plain one is zero."""
    side = FULL_RESOLUTION
    down, across = np.mgrid[:side, :side].astype(np.float32)
    angle, phase = generator.uniform(0, 2 * math.pi, 2)
    along = across * math.cos(angle) + down * math.sin(angle)
    if name == "gradient":
        return (along - along.min()) / np.ptp(along)
    if name == "stripes":
        return (np.sin(along * 2 * math.pi / generator.uniform(3, 8) + phase) > 0).astype(float)
    if name == "checks":
        cell = int(generator.integers(2, 6))
        return ((across // cell + down // cell) % 2).astype(float)
    if name == "texture":
        field = ndimage.gaussian_filter(generator.normal(size=(side, side)), 1.2)
        return (field - field.min()) / np.ptp(field)
    return np.zeros((side, side))


def reduce(pixels: np.ndarray, resolution: int, blocky: bool) -> np.ndarray:
    """The picture at a lower resolution, enlarged again into blocks or smoothly."""
    picture = Image.fromarray(pixels.astype(np.float32))
    picture = picture.resize((resolution, resolution), Resampling.BOX)
    side = (FULL_RESOLUTION, FULL_RESOLUTION)
    return np.asarray(picture.resize(side, Resampling.NEAREST if blocky else Resampling.BICUBIC))


def develop(ink: np.ndarray, style: Style, generator: np.random.Generator) -> np.ndarray:
    """Ink `[64, 64]` to pixels `[32, 32]` uint8: greys, background, blur, resolution, noise."""
    side = FULL_RESOLUTION
    ink = ink.reshape(side, 2, side, 2).mean(axis=(1, 3))
    paper = generator.uniform(0, 1 - style.contrast)
    pattern = background(style.background, generator)
    depth = generator.uniform(0.25, 0.5) * style.contrast
    pixels = paper + depth * pattern * (1 - ink) + style.contrast * ink
    if style.blur:
        pixels = ndimage.gaussian_filter(pixels, style.blur)
    if style.resolution < side:
        pixels = reduce(pixels, style.resolution, style.blocky)
    pixels = pixels + generator.normal(0, 1, pixels.shape) * style.noise
    pixels = pixels if style.light_on_dark else 1 - pixels
    return (255 * np.clip(pixels, 0, 1)).round().astype(np.uint8)


def render(subject: Subject, face: Face, style: Style, generator: np.random.Generator) -> Picture:
    """A picture of the subject and what can truly be said about it."""
    italic, words = False, []
    if subject.kind == "shape":
        ink, extent = shape(subject.name, style.outlined)
        words.append("outlined" if style.outlined else "filled")
    else:
        ink, extent = glyph(face, subject.character)
        italic = face.italic
        words += ["monospaced"] * face.monospaced
    ink = grow(place(ink, extent, style, generator), round(style.growth * style.size))
    words += styles.descriptors(style, italic, thickness(ink) / style.size)
    if subject.kind == "shape":
        words = [word for word in words if word not in ("thin", "thick")]
    return Picture(develop(ink, style, generator), tuple(words))
