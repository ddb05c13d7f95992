"""Load for the commands: a saved method with its CLIP and classes, class names, images."""

import argparse
import dataclasses
import functools
import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coop_jax.classes import Classes
from coop_jax.commands import options
from coop_jax.data import decoding, folders
from coop_jax.data.listing import IMAGE_SUFFIXES
from coop_jax.errors import InputError
from coop_jax.predictor import Predictor
from coop_jax.printing import escaped, plural
from coop_jax.saved import Saved
from coop_jax.saved.use import apply


@dataclasses.dataclass(frozen=True)
class Ready:
    """A saved method that is ready to classify images, with the CLIP and the classes."""

    saved: Saved
    clip: Any
    method: Any
    classes: Classes

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Return the predictor, which classifies images."""
        return Predictor(self.method, self.clip)


def ready(chosen: argparse.Namespace) -> Ready:
    """Return the saved method of the options, ready to use.

    Raises:
        InputError: nothing saved there, no such CLIP or another than its own, or classes that do
            not fit.
    """
    learned = Saved.load(chosen.saved)
    classes, texts = learned.classes, None
    if chosen.classes is not None:
        space = learned.backbone if learned.space else ""
        classes, texts = read_classes(chosen.classes, chosen.data_dir, space)
    method, clip, _ = apply(
        learned, chosen.clip, **options.of_clip(chosen), classes=classes, texts=texts
    )
    return Ready(learned, clip, method, classes)


def read_classes(
    text: str, data_dir: str | None, backbone: str = ""
) -> tuple[Classes, np.ndarray | None]:
    """Return the classes that `options.CLASSES` describes, and their text features if given.

    Args:
        text: of the option.
        data_dir: where named datasets lie.
        backbone: that of what is used on the classes, where it was learned from given features.

    Raises:
        InputError: the text is none of these, or the file or dataset cannot be read.
    """
    kind, _, name = text.partition(":")
    if kind == "dataset" and name:
        from coop_jax.data import catalog

        dataset = catalog.load(name, data_dir)
        if dataset.space and backbone:
            dataset.check_space(backbone)
        return dataset.classes, dataset.texts
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):
        try:
            names = decoding.read(path).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f"expected a file of class names, got {path} ({error}); save it as UTF-8"
            ) from error
    else:
        names = text.split(",")
        if len(names) < 2:
            raise InputError(
                f"expected classes as a,b,c, a file of one name per line or dataset:NAME, got"
                f" {text!r}, which is no file; name at least two, with a comma between them"
            )
    return Classes(tuple(name.strip() for name in names if name.strip())), None


def find_images(names: Sequence[str]) -> list[str]:
    """The paths of image files: those named, those in named folders, those that patterns match.

    A folder is searched with all folders below it, in sorted order, as `own.read` searches a
    class's. A file that is named or matched is taken as it is. Every path is listed once.

    Raises:
        InputError: a name is neither file nor folder, a pattern matches nothing, or a folder has no
            images.
    """
    found: dict[str, None] = {}
    for name in names:
        path = os.path.expanduser(name)
        matched = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not matched:
            what = "that matches a file" if glob.has_magic(name) else "of an image or a folder"
            raise InputError(f"expected a name {what}, got {name!r}; correct it")
        images = [image for one in matched for image in _below(one)]
        if not images:
            raise InputError(
                f"expected images ({', '.join(IMAGE_SUFFIXES)}) in {name}, got none; name another"
                " folder"
            )
        found |= dict.fromkeys(images)
    return list(found)


def _below(path: str) -> list[str]:
    """A file itself, or the images in a folder and in those below it; pipes and dead links, too."""
    if not os.path.isdir(path):
        return [path]
    found = []
    for folder in folders.scan(Path(path)).walk():
        below = os.path.relpath(folder.path, path)
        place = path if below == os.curdir else os.path.join(path, below)
        found += [os.path.join(place, name) for name in sorted((*folder.images, *folder.broken))]
    return found


def report_unreadable(failures: Sequence[str], of: int) -> int:
    """Say on standard error what could not be read; the exit code: 1 if there is any."""
    for line in failures:
        print(escaped(line), file=sys.stderr)
    if failures:
        print(f"{len(failures)} of {plural(of, 'image')} could not be read", file=sys.stderr)
    return 1 if failures else 0
