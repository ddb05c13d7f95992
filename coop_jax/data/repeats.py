"""Images that a dataset has more than once: in two splits, under two labels, or again in one."""

import logging
import os
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from coop_jax.data.examples import Examples
from coop_jax.data.listing import Listing, some
from coop_jax.errors import InputError

logger = logging.getLogger(__name__)

PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))

IN_BOTH = "what is measured on them says nothing about other images"


def check_listing(listing: Listing, place: str) -> None:
    """Refuse a file that is listed under two labels; warn of files that are in two splits.

    Files are told apart by their paths alone; the doctor compares what is in them.

    Raises:
        InputError: a file has two labels; names the first ones and their classes.
    """
    splits: dict[str, set[str]] = {}
    labels: dict[str, set[int]] = defaultdict(set)
    for split, files in listing.splits.items():
        paths = [os.path.normpath(listing.root / path) for path in files.paths]
        splits[split] = set(paths)
        for path, label in zip(paths, files.labels, strict=True):
            labels[path].add(label)
    contradictory = {path: found for path, found in labels.items() if len(found) > 1}
    if contradictory:
        shown = [
            f"{os.path.relpath(path, listing.root)} as"
            f" {' and '.join(listing.class_names[label] for label in sorted(found))}"
            for path, found in contradictory.items()
        ]
        raise InputError(
            f"{place}: expected one label for every image, got two or more for {len(shown)}:"
            f" {some(shown)}; keep the line that is right"
        )
    for first, second in PAIRS:
        both = sorted(splits[first] & splits[second])
        if both:
            shown = some([os.path.relpath(path, listing.root) for path in both])
            logger.warning(
                "%s: images that are both in %s and in %s: %d (%s); %s",
                *(place, first, second, len(both), shown, IN_BOTH),
            )


def describe(
    splits: Mapping[str, Examples],
    keys: Mapping[str, Sequence[Hashable | None]],
    class_names: Sequence[str],
) -> list[str]:
    """Say which images a dataset has more than once, a line for each way of it.

    Args:
        splits: the splits by name.
        keys: for every image of a split, what equal images have in common; None for nothing.
        class_names: name of every label.
    """
    places = {split: _places(found) for split, found in keys.items()}
    names = {split: splits[split].file_names.tolist() for split in keys}
    lines = []
    for first, second in PAIRS:
        both = places.get(first, {}).keys() & places.get(second, {}).keys()
        found = sorted((places[second][key][0], places[first][key][0]) for key in both)
        if found:
            count = sum(len(places[second][key]) for key in both)
            pairs = [_equal(names[second][b], names[first][a]) for b, a in found]
            lines.append(
                f"{second} images that are both in {first} and in {second}: {count} of"
                f" {len(splits[second])} ({some(pairs)}); {IN_BOTH}"
            )
    disputed = {key: files for key, files in _by_label(splits, places).items() if len(files) > 1}
    if disputed:
        shown = [
            _equal(*(f"{name} ({class_names[label]})" for label, name in sorted(files.items())))
            for files in disputed.values()
        ]
        lines.append(
            f"images under two labels or more: {len(shown)} ({some(shown)}); keep the label that"
            " is right"
        )
    for split, found in places.items():
        again = [at for key, at in found.items() if len(at) > 1 and key not in disputed]
        if again:
            shown = [_equal(*(names[split][index] for index in indices)) for indices in again]
            lines.append(
                f"{split} images that are there again: {sum(map(len, again)) - len(again)} of"
                f" {len(splits[split])} ({some(shown)}); each counts as often as it is there"
            )
    return lines


def _equal(*names: str) -> str:
    return " = ".join(dict.fromkeys(names))


def _places(keys: Sequence[Hashable | None]) -> dict[Hashable, list[int]]:
    places: dict[Hashable, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            places[key].append(index)
    return places


def _by_label(
    splits: Mapping[str, Examples], places: Mapping[str, Mapping[Hashable, Sequence[int]]]
) -> dict[Hashable, dict[int, str]]:
    """The first file name under each label of every image."""
    labelled: dict[Hashable, dict[int, str]] = defaultdict(dict)
    for split, found in places.items():
        examples = splits[split]
        for key, indices in found.items():
            for index in indices:
                labelled[key].setdefault(int(examples.labels[index]), examples.file_names[index])
    return labelled
