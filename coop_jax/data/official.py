"""The 15 datasets of the CoOp and CoCoOp papers, in one table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coop_jax.data import catalogued, layouts
from coop_jax.data.catalogued import Catalogued
from coop_jax.data.listing import Listing


@dataclass(frozen=True)
class SplitFile:
    """CoOp's `split_zhou_*.json` of a dataset.

    Attributes:
        name: the file's name, in the dataset's folder.
        images: the folder below the dataset's that its paths are relative to.
        git_hash: SHA-1 of the official file as a git blob (`git hash-object FILE`).
    """

    name: str
    images: str
    git_hash: str


@dataclass(frozen=True)
class Official:
    """A row of the table of datasets.

    Attributes:
        folder: its folder in CoOp's `$DATA`.
        images: the folder in that one that holds the images.
        layout: lists the files of `folder`.
        template: the hand-crafted prompt (protocol section 8).
        n_classes: expected number of classes.
        sizes: expected numbers of train, val and test images.
        split_file: CoOp's split, where it is in a file of its own.
        tfds: what TFDS's catalogue has of it; None if TFDS has no images that would do.
        repeated: class names that two classes have.
    """

    folder: str
    images: str
    layout: Callable[[Path], Listing]
    template: str
    n_classes: int
    sizes: tuple[int, int, int]
    split_file: SplitFile | None = None
    tfds: Catalogued | None = None
    repeated: tuple[str, ...] = ()

    def has_images(self, data_dir: Path) -> bool:
        """Tell whether CoOp's `$DATA` folder `data_dir` holds the images."""
        return (data_dir / self.folder / self.images).is_dir()


def _with_split_file(
    folder: str,
    images: str,
    split_file: tuple[str, str],
    template: str,
    n_classes: int,
    sizes: tuple[int, int, int],
    tfds: Catalogued | None,
    *,
    paths_below: str | None = None,
) -> Official:
    """A row whose split is (name, git hash); its paths are below `images` unless it is said."""
    name, git_hash = f"split_zhou_{split_file[0]}.json", split_file[1]
    split = SplitFile(name, images if paths_below is None else paths_below, git_hash)
    layout = partial(layouts.split_file, images=split.images, split=name)
    return Official(folder, images, layout, template, n_classes, sizes, split, tfds)


_TWICE = ("missile", "sunglasses")
_PHOTO = "a photo of a {}."

OFFICIAL: dict[str, Official] = {
    "imagenet": Official(
        "imagenet",
        "images",
        layouts.imagenet,
        _PHOTO,
        1000,
        (1_281_167, 50_000, 50_000),
        tfds=catalogued.IMAGENET,
        repeated=_TWICE,
    ),
    "caltech101": _with_split_file(
        "caltech-101",
        "101_ObjectCategories",
        ("Caltech101", "8be694a80de04a39fb159c462bea9696aa47ccf1"),
        _PHOTO,
        100,
        (4_128, 1_649, 2_465),
        catalogued.CALTECH101,
    ),
    "oxford_pets": _with_split_file(
        "oxford_pets",
        "images",
        ("OxfordPets", "fa821d9f9e7d32fdf3640bf74fa7491ed04f37da"),
        "a photo of a {}, a type of pet.",
        37,
        (2_944, 736, 3_669),
        catalogued.PETS,
    ),
    "stanford_cars": _with_split_file(
        "stanford_cars",
        "cars_train",
        ("StanfordCars", "dcdb8264712e9940e74cfb0f06ddb8f9cc239b81"),
        _PHOTO,
        196,
        (6_509, 1_635, 8_041),
        catalogued.CARS,
        paths_below="",
    ),
    "oxford_flowers": _with_split_file(
        "oxford_flowers",
        "jpg",
        ("OxfordFlowers", "8d10037b0690b6c65e307a354b039efb0f42404c"),
        "a photo of a {}, a type of flower.",
        102,
        (4_093, 1_633, 2_463),
        catalogued.FLOWERS,
    ),
    "food101": _with_split_file(
        "food-101",
        "images",
        ("Food101", "39557040ee6501bd32aa8b5dfd75f7941a32f0a7"),
        "a photo of {}, a type of food.",
        101,
        (50_500, 20_200, 30_300),
        catalogued.FOOD101,
    ),
    "fgvc_aircraft": Official(
        "fgvc_aircraft",
        "images",
        layouts.fgvc_aircraft,
        "a photo of a {}, a type of aircraft.",
        100,
        (3_334, 3_333, 3_333),
    ),
    "sun397": _with_split_file(
        "sun397",
        "SUN397",
        ("SUN397", "8d5725db8f70bcf02245665304f863e68f96a24c"),
        _PHOTO,
        397,
        (15_880, 3_970, 19_850),
        catalogued.SUN397,
    ),
    "dtd": _with_split_file(
        "dtd",
        "images",
        ("DescribableTextures", "8dd197a94b598fa44ee3c9e35c486dd017ab00a7"),
        "{} texture.",
        47,
        (2_820, 1_128, 1_692),
        catalogued.DTD,
    ),
    "eurosat": _with_split_file(
        "eurosat",
        "2750",
        ("EuroSAT", "6bdc847a5d5c49dcc78e8cb8707b87198cbfa5a4"),
        "a centered satellite photo of {}.",
        10,
        (13_500, 5_400, 8_100),
        catalogued.EUROSAT,
    ),
    "ucf101": _with_split_file(
        "ucf101",
        "UCF-101-midframes",
        ("UCF101", "ea87e3de7b4f6f00fdd77618e34a23508b4c5590"),
        "a photo of a person doing {}.",
        101,
        (7_639, 1_898, 3_783),
        None,
    ),
    "imagenetv2": Official(
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        partial(layouts.numbered_folders, images="imagenetv2-matched-frequency-format-val"),
        _PHOTO,
        1000,
        (0, 0, 10_000),
        tfds=catalogued.IMAGENET_V2,
        repeated=_TWICE,
    ),
    "imagenet_sketch": Official(
        "imagenet-sketch",
        "images",
        partial(layouts.wnid_folders, images="images"),
        _PHOTO,
        1000,
        (0, 0, 50_889),
        tfds=catalogued.IMAGENET_SKETCH,
        repeated=_TWICE,
    ),
    "imagenet_a": Official(
        "imagenet-adversarial",
        "imagenet-a",
        partial(layouts.wnid_folders, images="imagenet-a"),
        _PHOTO,
        200,
        (0, 0, 7_500),
        tfds=catalogued.IMAGENET_A,
    ),
    "imagenet_r": Official(
        "imagenet-rendition",
        "imagenet-r",
        partial(layouts.wnid_folders, images="imagenet-r"),
        _PHOTO,
        200,
        (0, 0, 30_000),
        tfds=catalogued.IMAGENET_R,
    ),
}

FEW_SHOT = tuple(OFFICIAL)[:11]
"""The 11 datasets of the few-shot and base-to-new tables, in the papers' order."""

IMAGENET_VARIANTS = tuple(OFFICIAL)[11:]
"""The target datasets of domain generalization."""
