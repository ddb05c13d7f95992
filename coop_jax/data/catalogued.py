"""The papers' datasets in TFDS's catalogue, and how they differ from what CoOp uses.

Source of every row: the builders of tensorflow_datasets 4.9.10.
"""

from collections.abc import Callable
from dataclasses import dataclass

PathOf = Callable[[str, str, str], str]
"""(TFDS split, TFDS label name, the file feature's text) -> CoOp's path of the image."""


@dataclass(frozen=True)
class Catalogued:
    """A dataset of TFDS's catalogue.

    Attributes:
        name: its name, with the config's name behind a slash if it has configs.
        version: the version that is read.
        splits: TFDS's splits that serve as train, val and test where CoOp's split is absent;
            "" for none.
        path: CoOp's path of a record's image.
        file_feature: the feature that tells the image's file.
        rename: CoOp's class name of a TFDS label name, as its files spell it (protocol 2.4); None
            for a class that CoOp leaves out.
        allow_missing: how many images of CoOp's split TFDS may lack.
        present_only: only the classes that have images count (protocol 2.4).
    """

    name: str
    version: str
    splits: tuple[str, str, str]
    path: PathOf
    file_feature: str = "file_name"
    rename: Callable[[str], str | None] = str
    allow_missing: int = 0
    present_only: bool = False

    @property
    def folder(self) -> str:
        """The folder that TFDS puts it into, below the data directory."""
        return f"{self.name}/{self.version}"


_CALTECH_NAMES = {
    "background_google": None,
    "faces_easy": None,
    "airplanes": "airplane",
    "faces": "face",
    "leopards": "leopard",
    "motorbikes": "motorbike",
}
_EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
_V2_FOLDER = "imagenetv2-matched-frequency-format-val"


def _same(split: str, label: str, file: str) -> str:
    return file


def _year_first(name: str) -> str:
    model, _, year = name.rpartition(" ")
    return f"{year} {model}"


def _scene(name: str) -> str:
    """/a/apse/indoor -> indoor apse."""
    return " ".join(reversed(name.split("/")[2:]))


def _imagenet_path(split: str, label: str, file: str) -> str:
    return f"images/{'train' if split == 'train' else 'val'}/{label}/{file}"


CALTECH101 = Catalogued(
    "caltech101",
    "3.0.2",
    ("train", "", "test"),
    lambda split, label, file: f"{label}/{file}",
    file_feature="image/file_name",
    rename=lambda name: _CALTECH_NAMES.get(name, name),
)
PETS = Catalogued("oxford_iiit_pet", "4.0.0", ("train", "", "test"), _same, rename=str.lower)
CARS = Catalogued(
    "cars196",
    "2.1.0",
    ("train", "", "test"),
    lambda split, label, file: f"cars_{split}/{file}.jpg",
    file_feature="id",
    rename=_year_first,
)
FLOWERS = Catalogued(
    "oxford_flowers102",
    "2.1.1",
    ("train", "validation", "test"),
    _same,
    rename=lambda name: name.rstrip("?"),
)
FOOD101 = Catalogued(
    "food101",
    "2.1.0",
    ("train", "", "validation"),
    lambda split, label, file: f"{file}.jpg",
    file_feature="id",
)
SUN397 = Catalogued(
    "sun397/standard-part1-120k",
    "4.0.0",
    ("train", "", "test"),
    lambda split, label, file: file.lstrip("/"),
    rename=_scene,
    allow_missing=2,
)
DTD = Catalogued("dtd", "3.0.1", ("train", "validation", "test"), _same)
EUROSAT = Catalogued(
    "eurosat/rgb",
    "2.0.0",
    ("train", "", ""),
    lambda split, label, file: f"{label}/{file}",
    file_feature="filename",
    rename=lambda name: _EUROSAT_NAMES[name],
)
IMAGENET = Catalogued(
    "imagenet2012", "5.1.0", ("train", "validation", "validation"), _imagenet_path
)
IMAGENET_V2 = Catalogued(
    "imagenet_v2/matched-frequency",
    "3.0.0",
    ("", "", "test"),
    lambda split, label, file: f"{_V2_FOLDER}/{file}",
)
IMAGENET_SKETCH = Catalogued(
    "imagenet_sketch",
    "1.0.0",
    ("", "", "test"),
    lambda split, label, file: f"images/{file}",
    present_only=True,
)
IMAGENET_A = Catalogued(
    "imagenet_a",
    "0.1.0",
    ("", "", "test"),
    lambda split, label, file: f"imagenet-a/{label}/{file}",
    present_only=True,
)
IMAGENET_R = Catalogued(
    "imagenet_r",
    "0.2.0",
    ("", "", "test"),
    lambda split, label, file: f"imagenet-r/{file}",
    present_only=True,
)
