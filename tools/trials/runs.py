"""The runs that trials disturb, what they end with, and how that is compared."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from trials.process import LAUNCH, ROOT, Ended, Process

QUICK = (
    "--config.templates=('a photo of a {}.',)",
    "--config.seeds=(1,2)",
    "--config.shots=(2,)",
)
QUIET = "--config.loggers=()"
PHOTOGRAPHS = "photographs"

CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    "coop": ("--config=quickstart", *QUICK, "--config.epochs=60"),
    "together": (
        "--config=quickstart",
        *QUICK,
        "--config.epochs=40",
        "--config.runs_at_once=2",
        QUIET,
    ),
    "cached": (
        "--config=quickstart",
        *QUICK,
        "--config.epochs=60",
        "--config.feature_cache=cache",
        "--config.data_dir=data",
        QUIET,
    ),
    "tip_adapter_f": ("--config=quickstart:tip_adapter_f", *QUICK, "--config.epochs=40", QUIET),
    "tda": ("--config=quickstart:tda", *QUICK, QUIET),
    "own": (
        "--config=quickstart",
        *QUICK,
        "--config.epochs=40",
        f"--config.dataset={PHOTOGRAPHS}",
        "--config.data_dir=data",
        QUIET,
    ),
}
"""Settings of runs with the embedded CLIP, of two shots and two seeds: on the digits, the last on
prepared copies of images in folders."""

ANEW = ("coop", "together")
"""Those that are also run in a new process undisturbed."""

WORK = "run"
"""The workdir, in a trial's `files`."""


class FailedError(Exception):
    """A trial has shown that a promise is not kept; the message says how."""


def words(configuration: str) -> list[str]:
    """Return the command line of a configuration."""
    return ["run", *CONFIGURATIONS[configuration], f"--workdir={WORK}"]


TIMES = ("seconds", "date", "sha256", "commit")
"""What two equal runs do not share, in JSON: when they were, and digests of that besides."""


def begin(configuration: str, trial: Path, folder: Path) -> None:
    """Put what a configuration needs, images of one's own, into a trial's files."""
    given = folder / configuration / "given"
    if given.is_dir():
        shutil.copytree(given, trial / "files", dirs_exist_ok=True)


def _give(configuration: str, folder: Path) -> str:
    """Write images of a configuration, and their prepared copies; say what went wrong."""
    given = folder / configuration / "given"
    if configuration != "own" or given.is_dir():
        return ""
    trial = folder / f"{configuration}-given"
    shutil.rmtree(trial, ignore_errors=True)
    rng = np.random.default_rng(1)
    for name in ("red", "green", "blue"):
        class_folder = trial / "files" / PHOTOGRAPHS / name
        class_folder.mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(class_folder / f"{number}.png")
    ended = Process(["prepare", PHOTOGRAPHS, "--data-dir=data"], trial).end()
    shutil.move(trial / "files", given)
    return complaint(ended) or " ".join(ended.errors) * bool(ended.code)


def bits(files: Path) -> dict[str, Any]:
    """Return all that two equal runs have in common, by file.

    That is SHA-256 of what was learned and of the metrics, and the descriptions of what was learned
    and the rows of `results.jsonl` without times.
    """
    work = files / WORK
    content: dict[str, Any] = {}
    for path in [*work.glob("saved/*/learned.safetensors"), *work.glob("metrics/*.jsonl")]:
        name = str(path.relative_to(work))
        content[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "?"
    for path in [*work.glob("saved/*/method.json"), work / "results.jsonl"]:
        name = str(path.relative_to(work))
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        texts = ["".join(lines)] if path.name == "method.json" else lines
        content |= {f"{name}:{row}": _timeless(text) for row, text in enumerate(texts, start=1)}
    return content


def _timeless(text: str) -> Any:
    """Return what JSON says but for times; the beginning of what is none."""
    try:
        return json.loads(
            text,
            object_hook=lambda record: {key: record[key] for key in record if key not in TIMES},
        )
    except ValueError:
        return text[:80]


def difference(expected: dict[str, Any], got: dict[str, Any]) -> str:
    """Say which files of two runs differ; "" if none."""
    differ = sorted(name for name in {*expected, *got} if expected.get(name) != got.get(name))
    return f"other {', '.join(differ):.300}" if differ else ""


def pattern(name: str) -> str:
    """Return the name of a file, or an event, without what is random or counted in it."""
    name = re.sub(r"events\.out\.tfevents\S*", "TFEVENTS", name)
    name = re.sub(r"\.[0-9a-f]{32}\b", ".RANDOM", name)
    name = re.sub(r"\b[0-9a-f]{64}\b", "KEY", name)
    name = re.sub(r"cache/[0-9a-f]{2}\b", "cache/KE", name)
    name = re.sub(r"\b[0-9a-f]{32}\b", "HASH", name)
    return re.sub(r"(?<=/)\d+\b", "N", name)


def left_behind(files: Path) -> str:
    """Say what unfinished files there are; "" if none."""
    marks = (".unfinished", "checkpoint-tmp", ".__lock", "/lock")
    names = sorted(str(path.relative_to(files)) for path in files.rglob("*"))
    names = [name for name in names if name.endswith(marks) or "checkpoint-tmp" in name]
    return f"left behind {', '.join(map(pattern, names[:3]))}" if names else ""


def complaint(ended: Ended) -> str:
    """Say what is wrong with how a process ended, whatever its exit code; "" if nothing is."""
    if ended.code is None:
        return f"no end after {ended.seconds:.0f} s"
    if any(line.startswith("Traceback") for line in [*ended.out, *ended.errors]):
        return f"traceback: {ended.errors[-1]:.200}"
    if ended.code < 0:
        return f"killed by signal {-ended.code}"
    return ""


def said(ended: Ended, usual: Iterable[str]) -> list[str]:
    """Return the lines on standard error that an undisturbed run has not, results aside."""
    known = {_general(line) for line in usual}
    return [
        line
        for line in ended.errors
        if line.strip() and _general(line) not in known and not re.search(r": [\d.]+ %", line)
    ]


def seen(ended: Ended) -> str:
    """Return how a disturbed process ended, for the record."""
    return f"exit code {ended.code}, {ended.errors[-1] if ended.errors else 'no line'}"[:300]


def _general(line: str) -> str:
    """Return a line without numbers and without the folder of its trial."""
    return re.sub(r"\d+", "0", re.sub(r"/\S*/(?:files|small)/", "", line))


def states(work: Path) -> Path:
    """Return the folder of the undisturbed runs of the package and the tool as they are now."""
    sha = hashlib.sha256()
    sources = [*ROOT.glob("coop_jax/**/*.py"), Path(__file__), LAUNCH.with_name("process.py")]
    for path in sorted(sources):
        sha.update(path.read_bytes())
    return work / f"undisturbed_{sha.hexdigest()[:12]}"


class Undisturbed(NamedTuple):
    """A run that nothing befell: its bits, lines on standard error, events and seconds."""

    bits: dict[str, Any]
    errors: list[str]
    events: list[str]
    seconds: float


def undisturbed(configuration: str, folder: Path) -> Undisturbed:
    """Read what `make` has kept in a folder."""
    return Undisturbed(*json.loads((folder / configuration / "undisturbed.json").read_text()))


def make(configuration: str, folder: Path) -> str:
    """Run a configuration undisturbed, and keep it; say what differs, "" if nothing.

    The second run is the one that counts: all programs are compiled then. Some are run once more in
    a new process, to see that forked ones end alike.
    """
    kept = folder / configuration
    if (kept / "undisturbed.json").exists():
        return ""
    if wrong := _give(configuration, folder):
        return wrong
    endings = []
    for number, fresh in enumerate((False, False, True)[: 2 + (configuration in ANEW)]):
        trial = kept if number == 1 else folder / f"{configuration}-{number}"
        shutil.rmtree(trial / "files", ignore_errors=True)
        begin(configuration, trial, folder)
        process = Process(words(configuration), trial, fresh=fresh)
        ended = process.end()
        if ended.code != 0:
            return f"exit code {ended.code}: {' '.join(ended.errors):.300}"
        endings.append((bits(trial / "files"), ended, process.events()))
    content, ended, events = endings[1]
    record = Undisturbed(content, ended.errors, events, ended.seconds)
    for other, _, _ in endings:
        if different := difference(content, other):
            return f"expected forked and new processes to end alike, got {different}"
    (kept / "undisturbed.json").write_text(json.dumps(record))
    return ""


def go_on(configuration: str, trial: Path, folder: Path, *, fresh: bool = False) -> str:
    """Run the same command once more, undisturbed; say what is not as it must be, "" if all is."""
    ended = Process(words(configuration), trial, fresh=fresh, name="again").end()
    if wrong := complaint(ended):
        return f"again: {wrong}"
    if ended.code != 0:
        return f"again: exit code {ended.code}: {' '.join(ended.errors):.200}"
    different = difference(undisturbed(configuration, folder).bits, bits(trial / "files"))
    return different or left_behind(trial / "files")
