"""Torn files: a file of a run, half-way or finished, is damaged, and the same command goes on."""

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

from trials import runs
from trials.process import Fault, Process

DAMAGES = ("empty", "half", "last byte", "flipped bit", "zeros", "deleted", "a folder")

HALF = 0.4
"""The part of the events of a run that are over where it was killed half-way."""

READ = 0.8
"""The share of trials with a file that the same command reads where nothing is damaged."""

MAY_REFUSE = ("run/results.jsonl", "run/config.json")
"""What cannot be made again: the same command may refuse instead, in one line."""

IMMATERIAL = ("tensorboard/", "report.png", "/lock")
"""Files of which nothing is read."""

METRICS = "run/metrics/"
"""Files that nothing is read of once their run is done."""

ANEW = re.compile(r"cache/|data/digits/[^/]+/index-")
"""Files that are made where they are not there, be it the first time or not."""

LOST_METRICS = "the metrics of"
"""What is said of metrics that are lost: nothing can make them again."""


def make(configuration: str, folder: Path) -> str:
    """Keep a half-finished and a finished run, with what the same command does and says then."""
    if (folder / configuration / "finished" / "sequel.json").exists():
        return ""
    events = len(runs.undisturbed(configuration, folder).events)
    state = folder / configuration / "half"
    shutil.rmtree(state, ignore_errors=True)
    runs.begin(configuration, state, folder)
    point = round(events * HALF)
    Process(runs.words(configuration), state, Fault("kill", point, point)).end()
    if wrong := _keep_sequel(configuration, state, folder):
        return wrong
    state = folder / configuration / "finished"
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(folder / configuration / "files", state / "files")
    return _keep_sequel(configuration, state, folder)


def _keep_sequel(configuration: str, state: Path, folder: Path) -> str:
    """Go on with a copy of a state, and keep the events and lines of that beside it."""
    trial = state / "sequel"
    shutil.copytree(state / "files", trial / "files")
    before = {str(path.relative_to(trial / "files")) for path in trial.rglob("files/**/*")}
    process = Process(runs.words(configuration), trial)
    ended = process.end()
    record = {
        "events": process.events(),
        "errors": ended.errors,
        "reads": sorted(process.reads() & before),
    }
    (state / "sequel.json").write_text(json.dumps(record))
    expected = runs.undisturbed(configuration, folder).bits
    different = runs.difference(expected, runs.bits(trial / "files"))
    shutil.rmtree(trial)
    return runs.complaint(ended) or different


def plan(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Choose trials: every kind of file with every damage comes before any comes again."""
    rng = random.Random(f"torn {seed}")
    read: Kinds = {}
    others: Kinds = {}
    for state in sorted([*folder.glob("*/half"), *folder.glob("*/finished")]):
        configuration = state.parent.name
        if configuration not in runs.CONFIGURATIONS:
            continue
        reads = set(json.loads((state / "sequel.json").read_text())["reads"])
        for path in sorted((state / "files").rglob("*")):
            name = str(path.relative_to(state / "files"))
            unread = [*IMMATERIAL, *[METRICS] * (name not in reads)]
            if path.is_dir() or any(mark in name for mark in unread) or _is_original(name):
                continue
            for damage in DAMAGES:
                trial = {"configuration": configuration, "state": state.name, "file": name}
                kind = (runs.pattern(name), damage, state.name)
                kinds = read if name in reads else others
                kinds.setdefault(kind, []).append({**trial, "damage": damage})
    trials = _some_of(read, round(count * READ), rng)
    return trials + _some_of(others, count - len(trials), rng)


Kinds = dict[tuple[str, ...], list[dict[str, Any]]]
"""Trials by the pattern of a file's name, the damage, and the state of the run."""


def _some_of(kinds: Kinds, count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Choose trials, each kind once before any comes again."""
    trials = []
    while len(trials) < count and kinds:
        left = list(kinds)
        rng.shuffle(left)
        for kind in left[: count - len(trials)]:
            chosen = rng.choice(kinds[kind])
            kinds[kind].remove(chosen)
            if not kinds[kind]:
                del kinds[kind]
            trials.append({**chosen, "fresh": rng.random() < 0.05, "at": rng.random()})
    return trials


def _is_original(name: str) -> bool:
    """Tell whether a file is the user's own, of which there is no other copy."""
    return name.startswith(f"{runs.PHOTOGRAPHS}/")


def run(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Damage as the trial says, go on; say what is not as it must be, "" if all is."""
    configuration, name = trial["configuration"], trial["file"]
    state = states / configuration / trial["state"]
    shutil.copytree(state / "files", folder / "files")
    damage(folder / "files" / name, trial["damage"], trial["at"])
    process = Process(runs.words(configuration), folder, fresh=trial["fresh"], name="again")
    ended = process.end()
    if wrong := runs.complaint(ended):
        return wrong
    sequel = json.loads((state / "sequel.json").read_text())
    usual = runs.undisturbed(configuration, states)
    lines = runs.said(ended, [*sequel["errors"], *usual.errors])
    if ended.code in (1, 2):
        may_refuse = name in MAY_REFUSE or trial["damage"] == "a folder"
        if not may_refuse or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"refused with exit code {ended.code}: {' | '.join(ended.errors):.300}"
        restored = folder / "files" / name
        if restored.is_dir():
            restored.rmdir()
        shutil.copy2(state / "files" / name, restored)
        return {"wrong": runs.go_on(configuration, folder, states), "saw": runs.seen(ended)}
    expected, got = dict(usual.bits), runs.bits(folder / "files")
    if name.startswith(METRICS) and any(LOST_METRICS in line for line in lines):
        written = (states / configuration / "files" / name).read_bytes().splitlines()
        if not {*(folder / "files" / name).read_bytes().splitlines()} <= {*written}:
            return "other metrics than were written"
        del expected[name.removeprefix("run/")], got[name.removeprefix("run/")]
    if different := runs.difference(expected, got):
        return f"silently wrong: {different}" if not lines else f"{different}, having said {lines}"
    again = recovered(process.events(), sequel["events"])
    is_as_at_first = trial["damage"] == "deleted" and ANEW.match(name)
    if again and not lines and not is_as_at_first:
        return f"recovered in silence: {', '.join(sorted(again)[:3])}"
    saw = f"exit code 0, {lines[0] if lines else 'nothing to say'}"[:300]
    return {"wrong": runs.left_behind(folder / "files"), "saw": saw}


def damage(path: Path, how: str, at: float) -> None:
    """Damage a file; `at` says which byte, from 0 to 1."""
    content = bytearray(path.read_bytes())
    place = min(int(at * len(content)), len(content) - 1)
    if how in ("deleted", "a folder"):
        path.unlink()
        if how == "a folder":
            path.mkdir()
        return
    if how == "flipped bit" and content:
        content[place] ^= 1 << place % 8
    kept = {"empty": 0, "half": len(content) // 2, "last byte": max(len(content) - 1, 0)}
    content = content[: kept.get(how, len(content))]
    path.write_bytes(bytes(len(content)) if how == "zeros" else bytes(content))


def recovered(events: list[str], usual: list[str]) -> set[str]:
    """Return what was made that is not made where nothing is damaged."""

    def made(lines: list[str]) -> set[str]:
        steps = {
            step.group(1)
            for line in lines
            if (step := re.match(r"mkdir (/run/checkpoints/.*/\d+)\S*$", line))
        }
        names = re.compile(r"(?:rename|open) (/(?:cache|data|run/saved|run/config\.json)\S*)")
        others = {match.group(1) for line in lines if (match := names.match(line))}
        return steps | {runs.pattern(name) for name in others if ".unfinished" not in name}

    return made(events) - made(usual)
