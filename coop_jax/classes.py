"""The classes of a dataset or a method: names, ids, and which of them were trained on."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from coop_jax.errors import InputError
from coop_jax.reading import clean


def spelled(names: Iterable[str]) -> tuple[str, ...]:
    """Return texts as prompts spell them: underscores are spaces (coop_protocol 2.4)."""
    return tuple(name.replace("_", " ") for name in names)


def read(names: Iterable[str]) -> tuple[str, ...]:
    """Return texts as a CLIP reads them in a prompt: spelled, and cleaned by the tokenizer."""
    return tuple(map(clean, spelled(names)))


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes that labels number.

    Attributes:
        names: one per label, as they are given.
        ids: what tells the classes from each other where names do not; by default the names.
        repeated: names that several labels may have, as two pairs of ImageNet's do.
        seen: whether each class was trained on; by default all were.
        sentences: descriptions of classes, by name.

    Raises:
        InputError: ids or `seen` are given, but not one for each name.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    seen: tuple[bool, ...] = ()
    sentences: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "ids", tuple(self.ids) or self.names)
        object.__setattr__(self, "repeated", tuple(self.repeated))
        object.__setattr__(self, "seen", tuple(self.seen) or (True,) * len(self.names))
        for what, values in (("class id", self.ids), ("value of `seen`", self.seen)):
            if len(values) != len(self.names):
                raise InputError(
                    f"expected a {what} for each of {len(self.names)} class names, got"
                    f" {len(values)}; give both in the same order"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def spelled(self) -> tuple[str, ...]:
        """The names as prompts spell them."""
        return spelled(self.names)

    def check(self) -> None:
        """Refuse classes that cannot define a classifier.

        Raises:
            InputError: there are none, a name is empty, or names that are not in `repeated` read
                the same to the tokenizer.
        """
        if not self.names:
            raise InputError("expected at least one class name, got none; name the classes")
        names, repeated = read(self.names), set(read(self.repeated))
        empty = [str(label) for label, name in enumerate(names) if not name]
        if empty:
            raise InputError(
                f"expected a name for every class, got an empty one for label {', '.join(empty)};"
                " name it"
            )
        repeats = [
            f"{name!r} ({count} times)"
            for name, count in Counter(names).items()
            if count > 1 and name not in repeated
        ]
        if repeats:
            raise InputError(
                f"expected different class names, got {', '.join(repeats)}; rename or merge these"
                " classes"
            )

    def at(self, labels: Sequence[int]) -> "Classes":
        """Return the classes of these labels, in that order."""
        return dataclasses.replace(
            self,
            names=tuple(self.names[label] for label in labels),
            ids=tuple(self.ids[label] for label in labels),
            seen=tuple(self.seen[label] for label in labels),
        )

    def moved_from(self, trained: "Classes") -> "Classes":
        """Return these classes with `seen` saying which are among those trained on."""
        return dataclasses.replace(self, seen=tuple(map(bool, self._found_in(trained))))

    def places_in(self, trained: "Classes") -> list[int | None]:
        """Return where each of these classes stands among those trained on, None where nowhere.

        Classes are the same if their ids are or, where either side has names alone, if a CLIP reads
        the same in their names. Where all names are the same, in the same order, so are the
        classes, whatever several of them are called.

        Raises:
            InputError: several of the classes trained on are called as one of these.
        """
        found = self._found_in(trained)
        several = [self.names[label] for label, places in enumerate(found) if len(places) > 1]
        if several:
            raise InputError(
                f"expected class names that were learned once, got {', '.join(several[:3])}, which"
                " several learned classes have; give class ids"
            )
        return [places[0] if places else None for places in found]

    def _found_in(self, trained: "Classes") -> list[list[int]]:
        """Return all places where each of these classes may stand among those trained on."""
        if self.ids != self.names and trained.ids != trained.names:
            wanted, known = self.ids, trained.ids
        else:
            wanted, known = read(self.names), read(trained.names)
            if wanted == known:
                return [[place] for place in range(len(known))]
        places: dict[str, list[int]] = {}
        for place, key in enumerate(known):
            places.setdefault(key, []).append(place)
        return [places.get(key, []) for key in wanted]
