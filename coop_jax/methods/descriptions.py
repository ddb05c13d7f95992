"""Descriptions of classes: sentences that a language model or a person wrote, read and checked."""

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from coop_jax.classes import read as read_names
from coop_jax.clip import Tokenizer, unit
from coop_jax.clip.features import needed
from coop_jax.errors import InputError
from coop_jax.methods import text
from coop_jax.methods.base import Given
from coop_jax.reading import read_file


class Descriptions(NamedTuple):
    """Texts of every class, in the order of the classes, and where all of them are from.

    Attributes:
        of_class: the texts of each class.
        source: the file and a digest of what it holds.
        everything: all texts of the file, also those of other classes.
    """

    of_class: tuple[tuple[str, ...], ...]
    source: str
    everything: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """All texts, class by class."""
        return [sentence for sentences in self.of_class for sentence in sentences]

    @property
    def owners(self) -> Int[np.ndarray, " texts"]:
        """The class of every text."""
        return np.repeat(np.arange(len(self.of_class)), [len(each) for each in self.of_class])

    def beside(self, given: Given, templates: Sequence[str]) -> "Descriptions":
        """Return the texts behind hand-crafted prompts of each class.

        Raises:
            InputError: there is no template, or one without {} or with several.
        """
        text.check_templates(templates)
        of_class = tuple(
            (*(template.replace("{}", name) for template in templates), *texts)
            for name, texts in zip(given.classes.spelled, self.of_class, strict=True)
        )
        return self._replace(of_class=of_class)


def of_classes(given: Given, path: str) -> Descriptions:
    """Return the descriptions of all classes, of a file or, without one, `classes.sentences`.

    A class is found by its id or by its name, in which case, underscores and spaces do not count.
    Those of other classes may be there, too.

    Args:
        given: what the method is made of.
        path: of a JSON file, as `read` takes it; "" for none.

    Raises:
        InputError: there is no text tower, there are no descriptions, or not of every class.
    """
    needed(given.tokenizer)
    everything = read(path) if path else given.classes.sentences
    if not everything:
        raise InputError(
            "sentences: expected a JSON file of descriptions of the classes, got none; name one, as"
            " docs/methods/cupl.md describes it"
        )
    source = f"{Path(path).name or 'given'}, SHA-256 {digest(everything):.8}"
    names = read_names(everything)
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(
            f"{path or 'sentences'}: expected each class once, got {repeated!r:.80} several times;"
            " merge its descriptions"
        )
    by_name = dict(zip(names, everything.values(), strict=True))
    keys = zip(given.classes.ids, read_names(given.classes.names), strict=True)
    found = [everything.get(identity) or by_name.get(name) for identity, name in keys]
    missing = [name for name, texts in zip(given.classes.names, found, strict=True) if not texts]
    if missing:
        some = ", ".join(missing[:3]) + ", ..." * (len(missing) > 3)
        raise InputError(
            f"{path or 'sentences'}: expected descriptions of every class, got none of"
            f" {len(missing)} of {len(found)} ({some:.200}); add them"
        )
    of_class = tuple(tuple(texts) for texts in found if texts)
    return Descriptions(of_class, source, tuple(itertools.chain(*everything.values())))


def read(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Return the texts of a JSON file by class: an object of class names with lists of texts.

    That is how CuPL's descriptions and others are published.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        pairs = json.loads(read_text(path), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON, but {error}; correct the file") from error
    if not isinstance(pairs, _Pairs) or not pairs:
        raise InputError(
            f"{path}: expected a JSON object of class names with lists of texts, got {pairs!r:.80};"
            " correct the file"
        )
    found: dict[str, tuple[str, ...]] = {}
    for name, texts in pairs:
        if name in found:
            raise InputError(
                f"{path}: expected each class once, got {name!r:.80} several times; merge its"
                " descriptions"
            )
        is_plain = isinstance(texts, list) and not isinstance(texts, _Pairs)
        if not is_plain or not texts or not all(map(_is_text, texts)):
            raise InputError(
                f"{path}: expected a list of texts for {name!r:.80}, at least one and none empty,"
                f" got {texts!r:.80}; correct the file"
            )
        found[name] = tuple(texts)
    return found


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: there is no such file, it cannot be read, or is not UTF-8.
    """
    path = Path(os.path.expanduser(path))
    if not os.path.lexists(path):
        raise InputError(f"{path}: expected a file of texts, got none; name another")
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, but {error}; correct the file") from error


class _Pairs(list[Any]):
    """The keys and values of a JSON object, repeated keys among them."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def digest(everything: Mapping[str, Sequence[str]]) -> str:
    """Return a SHA-256 of all descriptions by class, hexadecimal."""
    content = json.dumps({name: list(texts) for name, texts in everything.items()}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def check_lengths(tokenizer: Tokenizer, texts: Sequence[str], source: str, advice: str) -> None:
    """Refuse texts of more tokens than the CLIP reads; an error calls them `source`.

    Raises:
        InputError: the line says how many there are, and shows the first.
    """
    limit, others = tokenizer.context_length, len(tokenizer.starts) + 1
    lengths = [len(tokenizer.ids(text)) + others for text in texts]
    longer = [place for place, length in enumerate(lengths) if length > limit]
    if longer:
        first = longer[0]
        raise InputError(
            f"{source}: expected texts of at most {limit} tokens, which the CLIP reads, got"
            f" {len(longer)} longer ones, the first of {lengths[first]} ({texts[first]!r:.80});"
            f" {advice}"
        )


def features(
    given: Given,
    texts: Sequence[str],
    source: str,
    *,
    truncate: bool = False,
    advice: str = "shorten them",
) -> Float[Array, "texts embedding"]:
    """Return the frozen CLIP's features of texts, of length one.

    Args:
        given: what the method is made of.
        texts: any.
        source: what an error calls them.
        truncate: cut texts that are too long.
        advice: what to do with those, which an error says.

    Raises:
        InputError: a text is too long, and not to be cut.
    """
    if not truncate:
        check_lengths(needed(given.tokenizer), texts, source, advice)
    return unit(text.plain_features(given, texts, truncate=truncate))


def mean(
    features: Float[Array, "texts embedding"], owners: Int[np.ndarray, " texts"], classes: int
) -> Float[Array, "classes embedding"]:
    """Return the mean of the features of each class, which may have any number of them."""
    total = jnp.zeros((classes, features.shape[-1]), jnp.float32).at[owners].add(features)
    return total / np.bincount(owners, minlength=classes)[:, None]
