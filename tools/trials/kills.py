"""Kills: a run dies at a moment or at an event of the file system, and the same command goes on."""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

from trials import runs
from trials.process import IMPORTS, Fault, Process
from trials.runs import FailedError

MOMENTS, TWICE, FRESH, TORN = 0.3, 0.15, 0.1, 0.25
"""The shares of trials killed at a moment, several times, in a new process, within a write."""


def plan(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose trials: every kind of event of every configuration first, then at random."""
    rng = random.Random(f"kills {seed}")
    configurations = list(runs.CONFIGURATIONS)
    events = {name: runs.undisturbed(name, folder).events for name in configurations}
    kinds: dict[tuple[str, str], list[int]] = {}
    for name, lines in events.items():
        for number, line in enumerate(lines, start=1):
            kinds.setdefault((name, runs.pattern(line)), []).append(number)
    chosen = [(name, rng.choice(numbers)) for (name, _), numbers in kinds.items()]
    rng.shuffle(chosen)
    at_events = round(count * (1 - MOMENTS))
    while len(chosen) < at_events:
        name = rng.choice(configurations)
        chosen.append((name, rng.randint(1, len(events[name]))))
    trials = []
    for name, number in chosen[:at_events]:
        is_write = events[name][number - 1].startswith("write ")
        action = "tear" if is_write and rng.random() < TORN * 2 else "kill"
        points = [[action, number]]
        while rng.random() < TWICE:
            points.append(["kill", rng.randint(1, len(events[name]))])
        trials.append((name, points))
    while len(trials) < count:
        points = [["moment", round(rng.random(), 4)]]
        while rng.random() < TWICE:
            points.append(["moment", round(rng.random(), 4)])
        trials.append((rng.choice(configurations), points))
    return [
        {"configuration": name, "points": points, "fresh": rng.random() < FRESH}
        for name, points in trials
    ]


def run(trial: dict[str, Any], folder: Path, states: Path) -> str:
    """Kill as the trial says, go on; say what is not as it must be, "" if all is."""
    configuration, fresh = trial["configuration"], trial["fresh"]
    (how, point), *others = trial["points"]
    runs.begin(configuration, folder, states)
    while not _kill(how, point, trial, folder, states, "killed_0"):
        # It ended before: events of several threads are not the same in every run.
        shutil.rmtree(folder / "files")
        runs.begin(configuration, folder, states)
        point = point * 0.8 if how == "moment" else max(point - 10, 1)
    for number, (how, point) in enumerate(others, start=1):
        _kill(how, point, trial, folder, states, f"killed_{number}")
    return runs.go_on(configuration, folder, states, fresh=fresh)


def _kill(
    how: str, point: float, trial: dict[str, Any], folder: Path, states: Path, name: str
) -> bool:
    """Start a run and kill it; tell whether it was killed, and not at its end before."""
    fault = Fault() if how == "moment" else Fault(how, int(point), int(point))
    configuration, fresh = trial["configuration"], trial["fresh"]
    process = Process(runs.words(configuration), folder, fault, fresh=fresh, name=name)
    if how == "moment":
        imports = IMPORTS if fresh else 0.0
        process.is_running(imports + point * runs.undisturbed(configuration, states).seconds)
        process.send(signal.SIGKILL)
    ended = process.end()
    if ended.code not in (0, -signal.SIGKILL):
        why = runs.complaint(ended) or f"exit code {ended.code}"
        raise FailedError(f"killed: {why}, {' '.join(ended.errors):.200}")
    return ended.code != 0
