"""Readers of `coop_jax.data`."""

import contextlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coop_jax.errors import InputError
from fuzzing.inputs import Target, as_json


def _image(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _images(folder: Path) -> list[str]:
    """Write six small images for tables that name them; their names."""
    for index in range(6):
        pixels = np.full((4, 4, 3), 40 * index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return [f"{index}.png" for index in range(6)]


def split(folder: Path) -> Target:
    """Read CoOp's split files."""
    from coop_jax.data import own

    paths, path = _images(folder), folder / "split.json"
    rows = [[name, index % 2, "ab"[index % 2]] for index, name in enumerate(paths)]

    def run(content: bytes) -> None:
        path.write_bytes(content)
        own.read(path)

    return Target([as_json({"train": rows[:4], "test": rows[4:]})], run, is_json=True)


def table(folder: Path) -> Target:
    """Read tables of images."""
    from coop_jax.data import own

    paths, path = _images(folder), folder / "table.csv"
    split_rows = [
        f"{name},{'ab'[i % 2]},{'train' if i < 4 else 'test'}" for i, name in enumerate(paths)
    ]
    rows = [f"{name},a" for name in paths]
    seeds = ["\n".join(["path,label,split", *split_rows]), "\r\n".join(["path,label", *rows])]

    def run(content: bytes) -> None:
        path.write_bytes(content)
        own.read(path)

    return Target([seed.encode() for seed in seeds], run)


def class_names(folder: Path) -> Target:
    """Read files of class names: those of own images, and CoOp's."""
    from coop_jax.data import layouts, own

    paths, names = _images(folder), folder / "names.txt"
    split_file, wnids = folder / "split.json", folder / layouts.CLASS_NAMES_FILE
    rows = [[name, index % 2, "ab"[index % 2]] for index, name in enumerate(paths)]
    split_file.write_bytes(as_json({"train": rows[:4], "test": rows[4:]}))

    def run(content: bytes) -> None:
        wnids.write_bytes(content)
        with contextlib.suppress(InputError):
            layouts.imagenet_class_names(folder)
        names.write_bytes(content)
        own.read(split_file, names)

    return Target(
        [b"0 a small cat\n1 a dog\n", b"0\ta cat\n1\ta\n", b"n01 tench\nn02 gold fish"], run
    )


def features(folder: Path) -> Target:
    """Read arrays of features; the byte in front says which array of the file is replaced."""
    from coop_jax.data import features as reader

    rng, path = np.random.default_rng(0), folder / "features.npz"
    arrays = {
        "class_names": np.array(["cat", "dog"]),
        "text_features": rng.normal(size=(2, 4)),
        "train_features": rng.normal(size=(2, 4)).astype(np.float32),
        "train_labels": np.array([0, 1]),
        "test_features": rng.normal(size=(2, 2, 4)).astype(np.float16),
        "test_labels": np.array([0, 1], np.uint8),
        "cosine_multiplier": np.array(50.0),
        "encoder": np.array("mine"),
    }
    written = {}
    for name, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        written[name] = file.getvalue()
    whole = io.BytesIO()
    np.savez(whole, **arrays)  # pyright: ignore[reportArgumentType]
    keys = list(arrays)

    def run(content: bytes) -> None:
        if 1 <= (number := content[0] if content else 0) <= len(keys):
            replaced = written | {keys[number - 1]: content[1:]}
            with zipfile.ZipFile(path, "w") as archive:
                for name, array in replaced.items():
                    archive.writestr(f"{name}.npy", array)
        else:
            path.write_bytes(content[1:])
        reader.read(path)

    seeds = [bytes([number + 1]) + written[name] for number, name in enumerate(keys)]
    return Target([b"\0" + whole.getvalue(), b"\0" + written["text_features"], *seeds], run)


def image(folder: Path) -> Target:
    """Decode images, and make a CLIP's pixels of them."""
    from coop_jax.clip import preprocess
    from coop_jax.data import decoding

    kinds = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "DDS", "SGI")
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [_image(kind) for kind in kinds]
    seeds += [
        _image("JPEG", exif=exif),
        _image("PNG", "P"),
        _image("PNG", "LA"),
        _image("PNG", "I;16"),
    ]
    seeds += [_image("TIFF", compression="tiff_lzw"), _image("JPEG", "CMYK"), _image("JPEG2000")]

    def run(content: bytes) -> None:
        decoded = decoding.decode(content, "image.png", upright=True)
        decoding.orientation(decoded)
        decoding.highest(decoded, content)
        if decoded.width * decoded.height < 10_000:
            preprocess.resize_and_center_crop(decoded, 8)

    return Target(seeds, run)


def index(folder: Path) -> Target:
    """Read the kept index of a copy's labels."""
    from coop_jax.data import records

    rows = [{"label": i % 3, "file_name": f"{i}.png", "image": b""} for i in range(4)]
    kept = folder / "index.npz"
    wanted = [row["label"] for row in rows]
    records.index(rows, kept)  # pyright: ignore[reportArgumentType]

    def run(content: bytes) -> None:
        kept.write_bytes(content)
        labels, files = records.index(rows, kept)  # pyright: ignore[reportArgumentType]
        if labels.tolist() != wanted or files.tolist() != [row["file_name"] for row in rows]:
            raise AssertionError("a damaged index was used")

    return Target([kept.read_bytes()], run)
