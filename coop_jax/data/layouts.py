"""The layouts of the datasets in CoOp's `$DATA` folder (its DATASETS.md; protocol 2.1)."""

from collections.abc import Iterable
from pathlib import Path

from coop_jax.data import decoding, folders
from coop_jax.data.listing import Files, Listing, check_files, read_split_file, some
from coop_jax.errors import InputError

CLASS_NAMES_FILE = "classnames.txt"
NO_TRAINING = {"train": Files(), "val": Files()}


def split_file(root: Path, images: str, split: str) -> Listing:
    """A dataset with a `split_zhou_*.json`, whose paths are relative to the folder `images`.

    Raises:
        InputError: the file is absent or wrong, or it names absent images.
    """
    path = root / split
    if not path.is_file():
        raise InputError(
            f"expected the official split {path}, got none; fetch it by the link in CoOp's"
            " DATASETS.md: a split made anew would not be the paper's"
        )
    return check_files(read_split_file(path, root / images), str(path))


def fgvc_aircraft(root: Path, images: str) -> Listing:
    """FGVC-Aircraft: variants.txt and images_variant_{train,val,test}.txt, <id>.jpg in `images`.

    Raises:
        InputError: a list is absent, names an unknown variant, or names absent images.
    """
    names = _lines(root / "variants.txt")
    labels = {name: label for label, name in enumerate(names)}
    splits = {}
    for split in ("train", "val", "test"):
        path = root / f"images_variant_{split}.txt"
        rows = [line.split(" ", 1) for line in _lines(path)]
        unknown = sorted({row[-1] for row in rows} - set(labels))
        if unknown:
            raise InputError(
                f"{path}: expected variants of variants.txt, got {unknown[0]!r}; restore both files"
            )
        paths = [f"{images}/{image}.jpg" for image, _ in rows]
        splits[split] = Files(paths, [labels[variant] for _, variant in rows])
    return check_files(Listing(root, tuple(names), splits), str(root))


def imagenet(root: Path, images: str) -> Listing:
    """ImageNet: train/<wnid>/*, val/<wnid>/* or val/* flat in `images`; classnames.txt.

    The validation images are both val and test (protocol 2.1). Images are in the order of their
    names within a class; the official code takes them as the file system lists them.

    Raises:
        InputError: class folders are missing or others are there, or a flat validation folder has
            files that are not ImageNet's.
    """
    names = imagenet_class_names(root)
    train, validation = (folders.scan(root / images / part) for part in ("train", "val"))
    labels = {wnid: label for label, wnid in enumerate(names)}
    classes = {"train": _numbered(train, names)}
    if validation.folders:
        classes["test"] = _numbered(validation, names)
    files = folders.files_of(root, classes)
    test = files.get("test") or _flat_validation(root, validation, labels)
    splits = {"train": files["train"], "val": test, "test": test}
    return Listing(root, tuple(names.values()), splits, tuple(names))


def numbered_folders(root: Path, images: str) -> Listing:
    """ImageNetV2: a folder per line of classnames.txt, named by the line's number from 0.

    Raises:
        InputError: a folder is missing or another one is there.
    """
    names = imagenet_class_names(root)
    numbered = _numbered(folders.scan(root / images), map(str, range(len(names))))
    splits = NO_TRAINING | folders.files_of(root, {"test": numbered})
    return Listing(root, tuple(names.values()), splits, tuple(names))


def wnid_folders(root: Path, images: str) -> Listing:
    """ImageNet-Sketch, -A and -R: a folder per wnid; only the classes that are there count.

    ImageNet-A and -R have 200 of the 1,000 classes: labels number the folders there are.

    Raises:
        InputError: a folder is not a wnid of classnames.txt.
    """
    names = imagenet_class_names(root)
    classes = folders.scan(root / images).folders
    strange = [folder.name for folder in classes if folder.name not in names]
    if strange or not classes:
        raise InputError(
            f"expected folders of ImageNet's classes in {root / images}, got"
            f" {f'also {some(strange)}' if strange else 'none'}; move them away or restore"
            f" {CLASS_NAMES_FILE}"
        )
    numbered = [(folder, label) for label, folder in enumerate(classes)]
    chosen = {folder.name: names[folder.name] for folder in classes}
    splits = NO_TRAINING | folders.files_of(root, {"test": numbered})
    return Listing(root, tuple(chosen.values()), splits, tuple(chosen))


def imagenet_class_names(root: Path) -> dict[str, str]:
    """CoOp's class names by wnid, in the order of `classnames.txt`, which is that of the labels.

    Raises:
        InputError: the file is absent or a line is not "<wnid> <class name>".
    """
    path = root / CLASS_NAMES_FILE
    rows = [line.split(" ", 1) for line in _lines(path)]
    faulty = [row[0] for row in rows if len(row) != 2]
    wnids = [row[0] for row in rows]
    if faulty or wnids != sorted(set(wnids)):
        raise InputError(
            f"{path}: expected lines '<wnid> <class name>' in ascending order of wnids, got"
            f" {faulty[0] if faulty else 'another order'}; fetch it by the link in CoOp's"
            " DATASETS.md"
        )
    return {wnid: name.strip() for wnid, name in rows}


def _lines(path: Path) -> list[str]:
    try:
        lines = decoding.read(path).decode().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected the text file {path}, got {error}; CoOp's DATASETS.md says where it is from"
        ) from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise InputError(
            f"expected the text file {path}, got an empty one; CoOp's DATASETS.md says where it is"
            " from"
        )
    return lines


def _numbered(folder: folders.Folder, names: Iterable[str]) -> list[tuple[folders.Folder, int]]:
    """The folders in a folder with their labels, in the order of the names, which are theirs."""
    there, expected = {one.name: one for one in folder.folders}, list(names)
    missing, strange = sorted(set(expected) - set(there)), sorted(set(there) - set(expected))
    if missing or strange:
        raise InputError(
            f"expected the {len(expected)} class folders of {CLASS_NAMES_FILE} in {folder.path},"
            f" got {len(missing)} of them not ({some(missing)}) and {len(strange)} others"
            f" ({some(strange)}); unpack it again"
        )
    return [(there[name], label) for label, name in enumerate(expected)]


def _flat_validation(root: Path, folder: folders.Folder, labels: dict[str, int]) -> Files:
    """Label number n of the ground truth is that of ILSVRC2012_val_{n:08d}, n from 1."""
    from tensorflow_datasets.core import tfds_path

    truth = tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    rows = []
    for name, path in zip(folder.images, folder.paths(root, "images"), strict=True):
        number = name.rpartition(".")[0].removeprefix("ILSVRC2012_val_")
        if not (number.isdecimal() and 1 <= int(number) <= len(truth)):
            raise InputError(
                f"expected files ILSVRC2012_val_00000001.JPEG to {len(truth)} in {folder.path}, got"
                f" {name}; move the others away"
            )
        wnid = truth[int(number) - 1]
        if wnid not in labels:
            raise InputError(
                f"{root / CLASS_NAMES_FILE}: expected the class {wnid} of {name}, got none;"
                " restore the file"
            )
        rows.append((labels[wnid], path))
    if not rows:
        raise InputError(f"expected images in {folder.path}, got none; unpack it again")
    rows.sort()
    return Files([path for _, path in rows], [label for label, _ in rows])
