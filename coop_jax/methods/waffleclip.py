"""WaffleCLIP: random words and characters behind the class name instead of descriptions (2023)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from coop_jax.clip import CLIP, Tokenizer, unit
from coop_jax.clip.features import needed
from coop_jax.clip.transformer import precision
from coop_jax.errors import InputError
from coop_jax.methods import base, descriptions, text
from coop_jax.methods.base import Fixed, Given, Images, Stage

NAME = "WaffleCLIP"
PAPER = "Roth et al., ICCV 2023"

EXACT = precision(jnp.float32)

AGGREGATES = ("mean", "max", "merged")

IS, DOES = ("a", "an", "used"), ("has", "often", "typically", "may", "can")
"""Words before which a text says "which is", and those before which it says "which" alone."""

LIMITS = {"pairs": (1, 1000)}

FILES = ("sentences", "words")


def default_config() -> dict[str, Any]:
    """Return WaffleCLIP's settings.

    Settings:
        template: the hand-crafted prompt with {} for the class name (empty: the dataset's own); ",
            which has ..." comes before its full stop.
        pairs: how often a text of random words and one of random characters are drawn.
        seed: of the draws; that of the run does not count.
        aggregate: the logit is the "mean" or the "max" of the similarities with a class's texts, or
            that with the normalised mean of these ("merged").
        sentences: a JSON file of class names with lists of what they have ("a long beak"), from
            which as many texts are drawn as are random; none if empty.
        words: a file of the words that are drawn from, one per line; empty: those of the tokenizer.
        characters: those that are drawn from; empty: all of the file `sentences`, which may have
            other classes as well, or else of the words.
        as_released: as in the official code, measure class names with their underscores, put the
            names into the texts of the drawn class by replacing that wherever it occurs, and take
            "apple" for the article "a", "hasten" for "has".
    """
    return {
        "template": "A photo of a {}.",
        "pairs": 15,
        "seed": 0,
        "aggregate": "mean",
        "sentences": "",
        "words": "",
        "characters": "",
        "as_released": False,
    }


class Method(base.Method):
    """Logits of texts that are random behind the class name; nothing is trained.

    Attributes:
        bank: features of length one of all texts, `[classes, texts, embedding]`; or their means,
            `[classes, embedding]`, which need not be of length one.
    """

    def __init__(self, given: Given, config: dict[str, Any]):
        tokenizer, self.aggregate = needed(given.tokenizer), config["aggregate"]
        if self.aggregate not in AGGREGATES:
            raise InputError(
                f"aggregate: expected one of {', '.join(AGGREGATES)}, got {self.aggregate!r:.80};"
                " choose one"
            )
        found, self.source, letters = None, "", ()
        if config["sentences"]:
            described = descriptions.of_classes(given, config["sentences"])
            found, self.source = described.of_class, described.source
            letters = described.everything
            self.uses = frozenset({"sentences"})
        words = read_words(config["words"]) if config["words"] else words_of(tokenizer)
        characters = config["characters"] or "".join(letters or words)
        prompts = drawn(
            given.classes.names,
            config["template"] or given.template,
            words,
            characters,
            pairs=config["pairs"],
            seed=config["seed"],
            described=found,
            as_released=config["as_released"],
        )
        texts = [prompt for of_class in prompts for prompt in of_class]
        features = descriptions.features(given, texts, "WaffleCLIP")
        features = features.reshape(len(given.classes), -1, features.shape[-1])
        self.bank = Fixed(features if self.aggregate == "max" else features.mean(axis=1))

    def stages(self, config: Mapping[str, Any]) -> tuple[Stage, ...]:
        """Return one stage without steps, in which nothing happens."""
        return (Stage(epochs=0),)

    def settings(self) -> dict[str, Any]:
        """Return the file of descriptions, if any, with a digest of what it holds."""
        return {"sentences": self.source} if self.source else {}

    def texts(self, clip: CLIP, key: Array | None) -> Float[Array, "classes *texts embedding"]:
        """Return the features of all texts, or their means."""
        return self.bank[...]

    def logits(
        self, clip: CLIP, texts: Float[Array, "classes *texts embedding"], images: Images
    ) -> Float[Array, "batch classes"]:
        """Return the scaled mean or maximum of the cosine similarities, or that with the mean."""
        features = unit(jnp.asarray(images.features))
        if self.aggregate == "merged":
            texts = unit(texts)
        similarities = jnp.einsum("be,c...e->bc...", features, texts, precision=EXACT)
        return clip.scaled(similarities.max(-1) if self.aggregate == "max" else similarities)


def words_of(tokenizer: Tokenizer) -> list[str]:
    """Return the words of a tokenizer: tokens that are three letters of the alphabet or more.

    Raises:
        InputError: it has none.
    """
    alone = (word.strip() for word in tokenizer.words())
    words = [word for word in alone if len(word) > 2 and word.isascii() and word.isalpha()]
    if not words:
        raise InputError(
            "words: expected a file of words, since the tokenizer has none, got none; name one"
        )
    return list(dict.fromkeys(words))


def read_words(path: str) -> list[str]:
    """Return the words of a file, one per line.

    Raises:
        InputError: there is no such file, or no word in it.
    """
    lines = [line.strip() for line in descriptions.read_text(path).splitlines()]
    if not any(lines):
        raise InputError(f"{path}: expected a word on each line, got none; name another file")
    return [line for line in lines if line]


class Shape(NamedTuple):
    """The shape of random texts, which is about that of the class names."""

    words: int
    word_length: int
    groups: int
    group: int

    @classmethod
    def of(cls, names: Sequence[str]) -> "Shape":
        """Return how many words of at most which length, and how many groups of characters."""
        parts = [name.split(" ") for name in names]
        lengths = [[len(word) for word in words] for words in parts]
        groups = round(np.mean([len(words) - 1 for words in parts])) + 1
        longest = math.ceil(np.mean([max(each) for each in lengths]))
        return cls(
            words=max(round(np.mean([len(words) for words in parts])), 1),
            word_length=round(np.mean([np.mean(each) for each in lengths])),
            groups=groups,
            group=longest // groups + 1,
        )


def prompt(template: str, name: str, has: str, *, as_released: bool) -> str:
    """Return a text of a class that says what it has, is or does."""

    def begins_with(words: tuple[str, ...]) -> bool:
        return has.startswith(words) if as_released else has.partition(" ")[0] in words

    verb = "which is " if begins_with(IS) else "which " if begins_with(DOES) else "which has "
    said, ending = template.removesuffix("."), "." * template.endswith(".")
    return f"{said.replace('{}', name)}, {verb}{has}{ending}"


def drawn(
    names: Sequence[str],
    template: str,
    words: Sequence[str],
    characters: str,
    *,
    pairs: int,
    seed: int,
    described: Sequence[Sequence[str]] | None = None,
    as_released: bool = False,
) -> list[list[str]]:
    """Return the texts of every class, as many for each, as NumPy's legacy generator draws them.

    They are drawn for each class, and those of one class, drawn last, are used for all. With
    descriptions two thirds of the pairs are drawn, as many pairs of each class's own descriptions,
    and of all these each class keeps three quarters.

    Args:
        names: of the classes.
        template: with {} for the class name.
        words: what is drawn from.
        characters: what is drawn from, each once; spaces, commas and full stops do not count.
        pairs: of a text of words and one of characters.
        seed: of the draws.
        described: what each class has.
        as_released: as `default_config`.

    Raises:
        InputError: the template has no {} or several, there are no characters, or too few pairs.
    """
    text.check_templates([template])
    random, count = np.random.RandomState(seed), len(names)
    letters = sorted({*characters} - {*" ,."})
    if not letters:
        raise InputError(f"characters: expected some, got {characters!r:.80}; name some")
    pairs = pairs if described is None else int(pairs * 2 / 3)
    if not pairs:
        raise InputError("pairs: expected at least 2 beside descriptions, got 1; raise it")
    spelled = [name.replace("_", " ") for name in names]
    shape = Shape.of(names if as_released else spelled)
    cut = [word[: shape.word_length] for word in words]

    def one_of(choices: Sequence[str]) -> str:
        return str(random.choice(choices, 1, replace=False)[0])

    def noise() -> list[str]:
        said = " ".join(one_of(cut) for _ in range(shape.words))
        groups = ("".join(one_of(letters) for _ in range(shape.group)) for _ in range(shape.groups))
        return [said, ", ".join(groups)]

    of_class = [[each for _ in range(pairs) for each in noise()] for _ in names]
    donor = int(random.choice(count))
    texts = [
        [prompt(template, name, each, as_released=as_released) for each in of_class[donor]]
        for name in spelled
    ]
    if as_released:
        texts = [[each.replace(spelled[donor], name) for each in texts[donor]] for name in spelled]
    if described is None:
        return texts
    for own, name, properties in zip(texts, spelled, described, strict=True):
        for place in random.choice(len(properties), 2 * pairs):
            own.append(prompt(template, name, properties[int(place)], as_released=as_released))
    keep = [random.choice(4 * pairs, 3 * pairs, replace=False) for _ in names]
    return [[own[place] for place in places] for own, places in zip(texts, keep, strict=True)]
