import dataclasses
import hashlib
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coop_jax import results
from coop_jax.errors import InputError
from coop_jax.results import Hashes, Result

RESULT = Result(
    protocol="few_shot",
    method="coop",
    dataset="caltech101",
    split="test",
    backbone="RN50",
    shots=16,
    seed=1,
    settings={"n_ctx": 16},
    uses=["validation"],
    learned={"context": [16, 512], "scale": []},
    kept={"threshold": []},
    epochs=200,
    accuracy=91.83 + 1 / 3,
    macro_f1=88.5,
    correct=results.pack(np.arange(2465) % 12 > 0),
    n_classes=100,
    n_examples=2465,
    seconds=12.5,
    commit="0123abc",
    hashes=Hashes(
        data="d0", split="a1", class_names="b2", transform="c3", weights="d4", config="e5"
    ),
    versions={"jax": "0.10.2"},
    config={"shots": [1, 16]},
    trained_on="caltech101",
)
ZERO_SHOT = dataclasses.replace(
    RESULT,
    method="zero_shot",
    shots=0,
    settings={},
    uses=[],
    epochs=None,
    trained_on=None,
    prompt="a photo of a {}.",
)


def test_round_trip_keeps_every_bit(tmp_path: Path):
    path = tmp_path / "deep" / "results.jsonl"
    for result in (RESULT, ZERO_SHOT):
        results.append(path, result)
    assert results.read(path) == [RESULT, ZERO_SHOT]


def test_what_is_counted_of_what_was_learned_and_right():
    assert RESULT.parameters == 16 * 512 + 1
    np.testing.assert_array_equal(RESULT.is_right, np.arange(2465) % 12 > 0)
    short = results.pack(np.ones(2456, bool))
    for text in (short, short + "AAAA", "*" + RESULT.correct[1:], ""):
        with pytest.raises(InputError, match="a bit for each of 2465 examples"):
            dataclasses.replace(RESULT, correct=text)


def test_the_keys_of_a_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    results.append(path, RESULT)
    results.append(path, ZERO_SHOT)
    first, second = map(json.loads, path.read_text().splitlines())
    assert " ".join(first) == (
        "protocol method dataset split backbone shots seed settings uses learned kept "
        "epochs accuracy macro_f1 correct n_classes n_examples seconds commit hashes "
        "versions config trained_on sha256"
    )
    assert list(first["hashes"]) == [
        "data",
        "split",
        "class_names",
        "transform",
        "weights",
        "config",
    ]
    assert set(second) - set(first) == {"prompt"}


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_torn_last_line_is_dropped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int
):
    path = tmp_path / "results.jsonl"
    results.append(path, RESULT)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    with caplog.at_level(logging.WARNING):
        assert results.read(path) == [RESULT]
    assert "unfinished last line" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        results.append(path, ZERO_SHOT)
    assert "unfinished last line" in caplog.text
    assert results.read(path) == [RESULT, ZERO_SHOT]
    assert path.read_bytes().startswith(whole)


def test_torn_only_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"protocol": "few')
    assert results.read(path) == []
    results.append(path, RESULT)
    assert results.read(path) == [RESULT]


def test_whole_line_without_newline_is_kept(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    results.append(path, RESULT)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert results.read(path) == [RESULT]
    results.append(path, ZERO_SHOT)
    assert results.read(path) == [RESULT, ZERO_SHOT]


def signed(record: Any) -> str:
    """A line with the digest of what it says."""
    said = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**record, "sha256": hashlib.sha256(said).hexdigest()})


def without(key: str) -> str:
    record = dataclasses.asdict(RESULT)
    del record[key]
    return signed(record)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "\udcff",
        without("accuracy"),
        without("hashes"),
        signed(dataclasses.asdict(RESULT) | {"learning_rate": 1}),
        signed(dataclasses.asdict(RESULT) | {"accuracy": "91"}),
        signed(dataclasses.asdict(RESULT) | {"accuracy": float("nan")}),
        signed(dataclasses.asdict(RESULT) | {"hashes": "none"}),
    ],
)
def test_corrupt_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "results.jsonl"
    results.append(path, RESULT)
    path.write_bytes(path.read_bytes() + line.encode(errors="surrogateescape") + b"\n")
    results.append(path, RESULT)
    with pytest.raises(InputError, match=r"results\.jsonl:2: expected") as error:
        results.read(path)
    assert "\n" not in str(error.value)


def test_a_line_that_was_changed_is_named(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    for result in (ZERO_SHOT, RESULT):
        results.append(path, result)
    first, line = path.read_text().splitlines()
    record = json.loads(line)
    del record["sha256"]
    for changed in (
        line.replace("92.16", "92.26"),
        line.replace('"seed": 1', '"seed": 2'),
        line.replace('"uses": ["validation"]', '"uses": []'),
        line.replace('"shots": [1, 16]', '"shots": [1, 8]'),
        line.replace('"sha256": "', '"sha256": "0'),
        json.dumps(record),
    ):
        assert changed != line
        path.write_text(f"{first}\n{changed}\n{line}\n")
        with pytest.raises(InputError, match=r"results\.jsonl:2: expected .*sha256"):
            results.read(path)
    path.write_text(f"{first}\n{signed(record)}\n")
    assert results.read(path) == [ZERO_SHOT, RESULT]


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(InputError, match="not a file"):
        results.read(tmp_path / "results.jsonl")
    with pytest.raises(InputError, match="not a file"):
        results.read(tmp_path)
    with pytest.raises(InputError, match="folder"):
        results.append(tmp_path, RESULT)


@pytest.mark.parametrize(
    "change",
    [
        {"accuracy": 100.5},
        {"accuracy": float("nan")},
        {"macro_f1": -1.0},
        {"accuracy": np.float32(50)},
        {"seed": True},
        {"shots": 1.0},
        {"shots": -1},
        {"settings": "16"},
        {"n_examples": 0},
        {"seconds": float("inf")},
        {"commit": 7},
        {"hashes": {"split": "a"}},
        {"prompt": "a photo of a {}."},
    ],
)
def test_bad_values_are_refused(change: dict[str, Any]):
    with pytest.raises(InputError, match=r"expected .*got .*; "):
        dataclasses.replace(RESULT, **change)


def test_find():
    other = dataclasses.replace(RESULT, shots=1)
    assert results.find([RESULT, other, ZERO_SHOT], method="coop", shots=1) == [other]
    assert results.find([RESULT, other, ZERO_SHOT], settings={}) == [ZERO_SHOT]
    assert results.find([RESULT]) == [RESULT]
    with pytest.raises(InputError, match="got shot;"):
        results.find([RESULT], shot=1)


def test_writers_do_not_mix_lines(tmp_path: Path):
    path = tmp_path / "results.jsonl"

    def write(seed: int):
        for shots in range(20):
            results.append(path, dataclasses.replace(RESULT, seed=seed, shots=shots))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = results.read(path)
    assert len(found) == 80
    for seed in range(4):
        assert [result.shots for result in results.find(found, seed=seed)] == list(range(20))
