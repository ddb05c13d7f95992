"""The 15 datasets of the CoOp and CoCoOp papers: the table `coop_jax/assets/datasets.json`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coop_jax import assets
from coop_jax.data import layouts
from coop_jax.data.listing import Listing


@dataclass(frozen=True)
class Catalogued:
    """A dataset in TFDS's catalogue, and how it differs from what CoOp uses.

    Source of every row: the builders of tensorflow_datasets 4.9.10.

    Attributes:
        name: its name, with the config's name behind a slash if it has configs.
        version: the version that is read.
        splits: TFDS's splits that serve as train, val and test where CoOp's split is absent;
            "" for none.
        file: CoOp's path of a record's image, with {split}, {label} and {file}.
        file_feature: the feature that tells the image's file.
        names: CoOp's class names, as its files spell them (protocol 2.4), by TFDS's; None for a
            class that CoOp leaves out.
        pattern: of the names that are not in `names`.
        spelled: what stands for the pattern, as `re.sub` takes it.
        allow_missing: how many images of CoOp's split TFDS may lack.
        present_only: only the classes that have images count (protocol 2.4).
    """

    name: str
    version: str
    splits: list[str]
    file: str
    file_feature: str = "file_name"
    names: Mapping[str, str | None] = field(default_factory=dict)
    pattern: str = "(.*)"
    spelled: str = r"\1"
    allow_missing: int = 0
    present_only: bool = False

    @property
    def folder(self) -> str:
        """The folder that TFDS puts it into, below the data directory."""
        return f"{self.name}/{self.version}"

    def path(self, split: str, label: str, file: str) -> str:
        """CoOp's path of an image, from TFDS's split, label name and file."""
        split = {"validation": "val"}.get(split, split)
        return self.file.format(split=split, label=label, file=file.lstrip("/"))

    def rename(self, label: str) -> str | None:
        """CoOp's class name of a TFDS label name; None for a class that CoOp leaves out."""
        if label in self.names:
            return self.names[label]
        return re.sub(f"^{self.pattern}$", self.spelled, label).strip()


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
        spelled: its name as the papers write it.
        folder: its folder in CoOp's `$DATA`.
        images: the folder in that one that holds the images.
        template: the hand-crafted prompt (protocol section 8).
        n_classes: expected number of classes.
        sizes: expected numbers of train, val and test images.
        split_file: CoOp's split, where it is in a file of its own.
        lists: else the function of `layouts` that lists the files of `folder`.
        tfds: what TFDS's catalogue has of it; None if TFDS has no images that would do.
        repeated: class names that two classes have.
        short: its name in the tables of transfer.
    """

    spelled: str
    folder: str
    images: str
    template: str
    n_classes: int
    sizes: tuple[int, ...]
    split_file: SplitFile | None = None
    lists: str = ""
    tfds: Catalogued | None = None
    repeated: tuple[str, ...] = ()
    short: str = ""

    def has_images(self, data_dir: Path) -> bool:
        """Tell whether CoOp's `$DATA` folder `data_dir` holds the images."""
        return (data_dir / self.folder / self.images).is_dir()

    def layout(self, root: Path) -> Listing:
        """List the files of the dataset's folder."""
        if self.split_file:
            return layouts.split_file(root, self.split_file.images, self.split_file.name)
        return getattr(layouts, self.lists)(root, self.images)


def row(record: Mapping[str, Any]) -> Official:
    """A row of the table, from JSON."""
    kinds = {"split_file": SplitFile, "tfds": Catalogued}
    nested = {key: kind(**record[key]) for key, kind in kinds.items() if key in record}
    tuples = {key: tuple(record.get(key, ())) for key in ("sizes", "repeated")}
    return Official(**{**record, **nested, **tuples})


OFFICIAL = {name: row(record) for name, record in assets.read_json("datasets.json").items()}
"""The datasets by name, in the papers' order."""

FEW_SHOT = tuple(OFFICIAL)[:11]
"""The 11 datasets of the few-shot and base-to-new tables, in the papers' order."""

IMAGENET_VARIANTS = tuple(OFFICIAL)[11:]
"""The target datasets of domain generalization."""
