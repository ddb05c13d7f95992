"""Disks that fail: full, of a quota, read-only, broken or gone, at a write of a run."""

import errno
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials import runs
from trials.process import Ended, Fault, Process

ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ENOENT", "EFBIG")

FOREVER = 10**9

DONE_WITHOUT = "the digits are read from scikit-learn instead"
"""The end of a line about a file that a run can do without; it may come before the one line."""

REAL = 0.25
"""The share of trials with a real small, read-only or vanished file system or file limit."""


def plan(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose trials: real ones, then events that change files, of every kind first."""
    rng = random.Random(f"disks {seed}")
    trials: list[dict[str, Any]] = []
    while len(trials) < count * REAL:
        how = ("small", "limit", "read-only", "gone")[len(trials) % 4]
        configuration = rng.choice(list(runs.CONFIGURATIONS))
        size = {"small": rng.randrange(32, 181, 4) * 1024, "limit": rng.randrange(0, 4000)}
        trials.append(
            {
                "configuration": configuration,
                "how": how,
                "size": size.get(how, 0),
                "moment": round(rng.random(), 3),
            }
        )
    kinds: dict[str, list[tuple[str, int]]] = {}
    for name in runs.CONFIGURATIONS:
        for number, line in enumerate(runs.undisturbed(name, folder).events, start=1):
            kinds.setdefault(runs.pattern(line), []).append((name, number))
    patterns = list(kinds)
    while len(trials) < count:
        rng.shuffle(patterns)
        for pattern in patterns[: count - len(trials)]:
            name, number = rng.choice(kinds[pattern])
            error = ERRORS[len(trials) % len(ERRORS)]
            lasts = rng.random() < 0.75
            how = "short" if error == "ENOSPC" and rng.random() < 0.5 else error
            trials.append({"configuration": name, "how": how, "event": number, "lasts": lasts})
    return trials


def run(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Let the disk fail as the trial says, then go on; say what is not as it must be, and seen."""
    configuration = trial["configuration"]
    runs.begin(configuration, folder, states)
    real: dict[str, Callable[[dict[str, Any], Path, Path], Ended | None]] = {
        "small": _small,
        "limit": _limited,
        "read-only": _read_only,
        "gone": _gone,
    }
    if trial["how"] in real:
        ended = real[trial["how"]](trial, folder, states)
        if ended is None:
            return {"wrong": "", "count": 0, "lost": 0, "saw": "skipped: no mounts are permitted"}
    else:
        how = trial["how"]
        action = how if how == "short" else str(getattr(errno, how))
        last = FOREVER if trial["lasts"] else trial["event"]
        fault = Fault(action, trial["event"], last)
        ended = Process(runs.words(configuration), folder, fault, name="failed").end()
    if wrong := runs.complaint(ended) or _not_one_line(ended, trial, states):
        return wrong
    return {"wrong": runs.go_on(configuration, folder, states), "saw": runs.seen(ended)}


def _not_one_line(ended: Ended, trial: dict[str, Any], states: Path) -> str:
    """Say what is wrong with exit code or lines; a fault may do no harm, e.g. one of tidying."""
    lines = runs.said(ended, runs.undisturbed(trial["configuration"], states).errors)
    lines = [line for line in lines if not line.endswith(DONE_WITHOUT)]
    if ended.code == 0:
        return ""
    if ended.code != 1:
        return f"exit code {ended.code}: {' | '.join(lines):.300}"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"expected one line, got {len(lines)}: {' | '.join(lines):.400}"
    return ""


def _small(trial: dict[str, Any], folder: Path, states: Path) -> Ended | None:
    """Run where a few kB are left on the file system, and copy what is there to the disk."""
    if not may_mount():
        return None
    mount = (
        "cd .. && mkdir -p small && taken=$(du -sB1 files | cut -f1) &&"
        " mount -t tmpfs -o size=$((taken + $0)) tmpfs small && cp -a files/. small"
        ' && cd small && "$@"; code=$?; cd .. && cp -a small/. files; exit $code'
    )
    return _unshared(mount, str(trial["size"]), trial, folder)


def _read_only(trial: dict[str, Any], folder: Path, states: Path) -> Ended | None:
    """Run half of it, and go on where nothing can be written."""
    if not may_mount():
        return None
    half = Process(runs.words(trial["configuration"]), folder, name="half")
    half.is_running(trial["moment"] * runs.undisturbed(trial["configuration"], states).seconds)
    half.send(signal.SIGKILL)
    half.end()
    mount = (
        'cd .. && mount --bind files files && mount -o remount,ro,bind files && cd files && "$@"'
    )
    return _unshared(mount, "0", trial, folder)


def _unshared(script: str, word: str, trial: dict[str, Any], folder: Path) -> Ended:
    before = ("unshare", "-rm", "sh", "-c", script, word)
    return Process(runs.words(trial["configuration"]), folder, before=before, name="failed").end()


def may_mount() -> bool:
    """Tell whether this user may mount in a name space of their own."""
    words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(words, capture_output=True, check=False).returncode
    )


def _limited(trial: dict[str, Any], folder: Path, states: Path) -> Ended:
    """Run where no file may be larger than a few bytes."""
    words = runs.words(trial["configuration"])
    return Process(words, folder, limit=trial["size"], name="failed").end()


def _gone(trial: dict[str, Any], folder: Path, states: Path) -> Ended:
    """Move the workdir away while it is written, and back afterwards."""
    work, away = folder / "files" / runs.WORK, folder / "away"
    process = Process(runs.words(trial["configuration"]), folder, name="failed")
    seconds = runs.undisturbed(trial["configuration"], states).seconds
    while not (work / "config.json").exists() and process.is_running(0.01):
        pass
    process.is_running(trial["moment"] * seconds * 0.8)
    os.rename(work, away)
    ended = process.end()
    if work.exists():
        made = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
        if made:
            raise runs.FailedError(f"made the vanished workdir anew: {', '.join(made[:4])}")
        work.rmdir()
    os.rename(away, work)
    return ended
