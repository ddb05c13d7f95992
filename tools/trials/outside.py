"""What other programs of the project try: bad inputs, the fuzzer, and long use of one process."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from trials.process import ROOT

TESTS, FUZZER, SOAK = ROOT / "tests", ROOT / "tools" / "fuzz.py", ROOT / "tools" / "soak.py"

INPUTS = Path(__file__).with_name("inputs.py")


def _told(words: list[str | Path]) -> tuple[dict[str, Any], str]:
    """Return the last line of JSON that a program prints, and what it complains of; "" for 0."""
    done = subprocess.run(
        [sys.executable, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    complaint = f"exit code {done.returncode}: {done.stdout[-300:]} {done.stderr[-600:]}"
    return json.loads(lines[-1]) if lines else {}, complaint if done.returncode else ""


def plan_inputs(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return a trial for each kind of bad inputs, all of which the table of the tests has."""
    kinds = sorted(path.stem for path in (TESTS / "bad_inputs").glob("*.py"))
    return [{"configuration": kind} for kind in kinds if kind not in ("__init__", "valid")]


def run_inputs(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Try all bad inputs of a kind in one process of their own."""
    told, complaint = _told([INPUTS, trial["configuration"]])
    return told or f"the table ends early: {complaint}"


def plan_fuzz(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return a trial for each target of the fuzzer, of `count` executions together."""
    if not FUZZER.exists() or importlib.util.find_spec("atheris") is None:
        return []
    listed = subprocess.run(
        [sys.executable, FUZZER, "--list"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    targets = listed.stdout.split()
    each = -(-count // len(targets))
    return [{"configuration": target, "executions": each} for target in targets]


def run_fuzz(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Fuzz one target."""
    options = {"runs": trial["executions"], "seconds": 3600, "seed": trial["seed"]}
    words = [f"--{name}={value}" for name, value in options.items()]
    keep = f"--keep={folder / 'crashes'}"
    told, complaint = _told([FUZZER, trial["configuration"], "--json", *words, keep])
    if not told:
        return f"the fuzzer ends early: {complaint}"
    return {"wrong": complaint, "count": told["executions"], "lost": told["crashes"]}


def plan_soak(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return the trial of so many epochs of a run, and of so many runs, in one process."""
    return [{"configuration": "coop", "times": count}] if SOAK.exists() else []


def run_soak(trial: dict[str, Any], folder: Path, states: Path) -> str | dict[str, Any]:
    """Look whether what the process holds stays flat."""
    times = trial["times"]
    told, complaint = _told([SOAK, f"--epochs={times}", f"--runs={times}"])
    return {
        "wrong": complaint,
        "count": 2 * times,
        "lost": 2 * times * bool(complaint),
        "saw": told,
    }
