"""Inputs of readers: valid ones as JSON, and what may be made of them."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ODD = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan")),
    *("", "x", "\0", "\ud800", "../x.jpg", "/dev/zero", "a" * 300, [], {}, [[]], ["x"], {"x": 1}),
)
"""Values that a JSON file may have in place of others."""


class Target(NamedTuple):
    """A reader: valid inputs, the function that reads one, and whether it is JSON."""

    seeds: Sequence[bytes]
    run: Callable[[bytes], None]
    is_json: bool = False


def mutated(
    data: bytes,
    most: int,
    seed: int,
    mutate: Callable[[bytes, int], bytes],
    valid: Sequence[bytes],
) -> bytes:
    """Change values, names and structure of JSON, and seldom its bytes.

    Args:
        data: the input.
        most: bytes of the longest result.
        seed: of the random numbers.
        mutate: the fuzzer's own way to change bytes.
        valid: JSON to change in place of an input that is none, most of the time.
    """
    rng = random.Random(seed)
    if rng.random() < 0.1:
        return mutate(data, most)
    root = [loaded(data)]
    if not isinstance(root[0], dict | list):
        root = [json.loads(rng.choice(valid))]
    for _ in range(rng.choice((1, 1, 2, 4))):
        holder, key = rng.choice(_places(root, rng))
        match rng.randrange(6):
            case 0 if holder is not root:
                del holder[key]
            case 1:
                other, at = rng.choice(_places(root, rng))
                holder[key] = copy.deepcopy(other[at])
            case 2 if isinstance(holder[key], str):
                changed = mutate(holder[key].encode(errors="replace"), 200)
                holder[key] = changed.decode(errors="replace")
            case 3 if isinstance(holder[key], int | float):
                holder[key] = rng.choice((holder[key] + 1, -holder[key], holder[key] * 2))
            case 4 if isinstance(holder, dict):
                holder[rng.choice((key + "x", key.upper(), ""))] = holder[key]
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
    changed = json.dumps(root[0]).encode()
    return changed if len(changed) <= most else mutate(data, most)


def _places(root: Any, rng: random.Random) -> list[tuple[Any, Any]]:
    """Return some of the places in nested values: holder and key."""
    places, holders = [], [root]
    for holder in holders:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        keys = rng.sample(keys, 20) if len(keys) > 20 else keys
        places += [(holder, key) for key in keys]
        holders += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return places


def as_json(value: Any) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()


def loaded(content: bytes) -> Any:
    """Return the JSON value that an input is; None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
