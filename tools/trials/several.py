"""Signals, processes that train together and one of which dies, and two on one workdir."""

import json
import random
import re
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from trials import runs
from trials.process import Process

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}

PATIENCE = 10.0
"""Seconds that a process has to end after a signal."""

COMING = 20
"""Seconds that a process waits for the other to come."""

MOURNING = 30.0
"""Seconds that a process has to end after another has died."""


def plan_signals(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose moments of every configuration, for both signals in turn."""
    rng = random.Random(f"signals {seed}")
    return [
        {
            "configuration": list(runs.CONFIGURATIONS)[number % len(runs.CONFIGURATIONS)],
            "signal": int(list(CODES)[number // 2 % 2]),
            "moment": round(0.1 + 0.8 * rng.random(), 3),
        }
        for number in range(count)
    ]


def run_signal(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Send the signal, go on; say what is not as it must be, "" if all is."""
    configuration, number = trial["configuration"], trial["signal"]
    usual = runs.undisturbed(configuration, states)
    moment = trial["moment"] * usual.seconds
    while True:
        shutil.rmtree(folder / "files", ignore_errors=True)
        runs.begin(configuration, folder, states)
        process = Process(runs.words(configuration), folder, name="stopped")
        if process.is_running(moment):
            process.send(number)
            still = process.is_running(PATIENCE)
            ended = process.end(0.0 if still else PATIENCE)
            if ended.code != 0:
                break
        else:
            process.end()
        moment *= 0.8  # it was at its end
    if ended.code is None:
        return f"no end within {PATIENCE:.0f} s after the signal"
    lines = runs.said(ended, usual.errors)
    if ended.code != CODES[signal.Signals(number)] or len(lines) != 1:
        return f"exit code {ended.code}, {len(lines)} lines: {' | '.join(lines):.300}"
    if unsaid := _unsaid(lines[0], folder / "files" / runs.WORK):
        return unsaid
    wrong = runs.complaint(ended) or runs.go_on(configuration, folder, states)
    return {"wrong": wrong, "saw": runs.seen(ended)}


def _unsaid(line: str, work: Path) -> str:
    """Say what is missing in the line of a stopped process: what it was told, what it has saved."""
    saved = r"(?:, saved after step (\d+) of .*)?"
    told = re.fullmatch(rf"(?:interrupted|stopped by SIGTERM){saved}; the same command .*", line)
    if told is None:
        return f"expected what has stopped it and what was saved, got {line:.200}"
    if told[1] and not list(work.glob(f"checkpoints/*/*/{told[1]}/record.json")):
        return f"there is no checkpoint of what it says: {line:.200}"
    return ""


def plan_deaths(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose moments and which of two processes dies."""
    rng = random.Random(f"deaths {seed}")
    return [
        {"configuration": "coop", "dies": number % 2, "moment": round(rng.random(), 3)}
        for number in range(count)
    ]


def _pair(folder: Path, name: str) -> list[Process]:
    """Start two processes that train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--timeout={COMING}"]
    return [
        Process(
            [*runs.words("coop"), *several, f"--process={number}"], folder, name=f"{name}_{number}"
        )
        for number in range(2)
    ]


def make_pair(configuration: str, states: Path) -> str:
    """Keep what two processes that train together end with undisturbed; say what went wrong."""
    folder = states / "pair"
    if (folder / "undisturbed.json").exists():
        return ""
    seconds = 0.0
    for name in ("compiles", "counts"):
        shutil.rmtree(folder / "files", ignore_errors=True)
        ended = [process.end() for process in _pair(folder, name)]
        if any(end.code != 0 for end in ended):
            return f"exit codes {[end.code for end in ended]}: {' | '.join(ended[0].errors):.300}"
        seconds = ended[0].seconds
    record = [runs.bits(folder / "files"), seconds]
    (folder / "undisturbed.json").write_text(json.dumps(record))
    return ""


def run_death(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Kill one of two, look how the other ends, go on with both."""
    expected, seconds = json.loads((states / "pair" / "undisturbed.json").read_text())
    pair = _pair(folder, "pair")
    victim, other = pair[trial["dies"]], pair[1 - trial["dies"]]
    victim.is_running(trial["moment"] * seconds)
    victim.send(signal.SIGKILL)
    victim.end()
    still = other.is_running(MOURNING)
    left = other.end(0.0 if still else MOURNING)
    if still:
        return f"the other process had not ended after {MOURNING:.0f} s"
    lines = runs.said(left, ())
    if left.code != 0 and (left.code != 1 or len(lines) != 1):
        return f"the other: exit code {left.code}, {len(lines)} lines: {' | '.join(lines):.300}"
    again = [process.end() for process in _pair(folder, "again")]
    if [end.code for end in again] != [0, 0]:
        return f"again: exit codes {[end.code for end in again]}: {again[0].errors}"
    wrong = runs.difference(expected, runs.bits(folder / "files"))
    return {"wrong": wrong, "saw": runs.seen(left)}


def plan_writers(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose the moment at which a second process comes."""
    rng = random.Random(f"writers {seed}")
    return [
        {
            "configuration": list(runs.CONFIGURATIONS)[number % len(runs.CONFIGURATIONS)],
            "moment": round(0.9 * rng.random(), 3),
        }
        for number in range(count)
    ]


def run_writers(trial: dict[str, Any], folder: Path, states: Path) -> str:
    """Start a second process while the first, which holds the workdir, is kept still."""
    configuration = trial["configuration"]
    usual = runs.undisturbed(configuration, states)
    runs.begin(configuration, folder, states)
    first = Process(runs.words(configuration), folder, name="first")
    while not (folder / "files" / runs.WORK / "config.json").exists() and first.is_running(0.01):
        pass
    first.is_running(trial["moment"] * usual.seconds * 0.7)
    first.send(signal.SIGSTOP)
    before = _listing(folder / "files" / runs.WORK)
    second = Process(runs.words(configuration), folder, name="second").end()
    after = _listing(folder / "files" / runs.WORK)
    first.send(signal.SIGCONT)
    ended = first.end()
    lines = runs.said(second, usual.errors)
    if second.code != 2 or len(lines) != 1:
        return f"the second: exit code {second.code}, lines {lines}"
    if before != after:
        return "the second has written"
    return (
        runs.complaint(ended)
        or runs.difference(usual.bits, runs.bits(folder / "files"))
        or runs.left_behind(folder / "files")
    )


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of all files."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
