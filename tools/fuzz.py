"""Feed the readers of files and words with what a coverage-guided fuzzer makes of valid ones.

    python tools/fuzz.py
    python tools/fuzz.py split csv --seconds=60 --seed=1 --keep=/tmp/crashes

A reader may refuse what it is given (`InputError`, `MachineError`), in a message of bounded length;
anything else is a crash: another exception, a signal, a minute without an end, 4 GB of memory. A
target runs in a process of its own and ends at its first crash, whose input is kept. Needs atheris
(pip install 'coop_jax[dev]'). Exit code 0: no crash; 1: a crash; 2: wrong input.
"""

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

LARGEST_INPUT = 65_536
"""Bytes of the largest input."""

MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: files are written for every execution."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of what is typed."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("targets", nargs="*", metavar="TARGET", help="all by default")
    words.add_argument("--list", action="store_true", help="print the targets")
    words.add_argument("--seconds", type=int, default=30, help="of each target; default 30")
    words.add_argument("--runs", type=int, default=-1, help="executions of each target, at most")
    words.add_argument("--seed", type=int, default=1, help="of the random numbers, from 1")
    words.add_argument("--keep", type=Path, default=Path("crashes"), help="folder for crashes")
    words.add_argument("--json", action="store_true", help="print a line of JSON for each target")
    words.add_argument("--inside", help=argparse.SUPPRESS)
    words.add_argument("--once", type=Path, metavar="FILE", help="run one kept input, and end")
    return words


def main() -> int:
    """Fuzz the chosen targets, one after the other; the exit code."""
    chosen = parser().parse_args()
    if chosen.inside:
        inside(chosen, Path(chosen.inside))
    from fuzzing import targets as readers

    targets = readers.names()
    if chosen.list:
        print("\n".join(targets))
        return 0
    unknown = [name for name in chosen.targets if name not in targets]
    if unknown or (chosen.once and len(chosen.targets) != 1):
        print(f"error: expected targets among {', '.join(targets)}", file=sys.stderr)
        return 2
    if chosen.once:
        with tempfile.TemporaryDirectory() as folder:
            readers.open_target(chosen.targets[0], Path(folder)).run(chosen.once.read_bytes())
        return 0
    return max([fuzz(name, chosen) for name in chosen.targets or targets], default=0)


def fuzz(name: str, chosen: argparse.Namespace) -> int:
    """Fuzz a target in a process of its own, and say what came of it; 1 for a crash, else 0."""
    chosen.keep.mkdir(parents=True, exist_ok=True)
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="coop_jax_fuzz_") as folder:
        words = [f"--{key}={getattr(chosen, key)}" for key in ("seconds", "runs", "seed", "keep")]
        command = [sys.executable, __file__, name, f"--inside={folder}", *words]
        start = time.monotonic()
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False
        )
        seconds = time.monotonic() - start
    output = done.stdout.decode(errors="replace")
    counts = re.findall(r"^#(\d+)\s|number_of_executed_units: (\d+)", output, re.MULTILINE)
    executions = max((int(first or second) for first, second in counts), default=0)
    crashed = done.returncode != 0
    record = {"target": name, "executions": executions, "crashes": int(crashed)}
    record["seconds"] = round(seconds, 1)
    if chosen.json:
        print(json.dumps(record), flush=True)
    else:
        said = f", a crash (exit code {done.returncode})" * crashed
        print(f"{name}: {executions:,} executions in {seconds:.0f} s{said}", flush=True)
    if crashed:
        print(shown(output), file=sys.stderr, flush=True)
    return int(crashed)


def shown(output: str) -> str:
    """Return what the fuzzer says of a crash, without its progress."""
    lines = [line for line in output.splitlines() if not re.match(r"#\d+|INFO|stat::", line)]
    return "\n".join(lines[-60:])


def inside(chosen: argparse.Namespace, folder: Path) -> NoReturn:
    """Fuzz one target in this process, which then ends.

    The package must be imported here for the first time: what is imported earlier tells nothing of
    the ways through it, and an input that shows no new way is not kept.
    """
    atheris: Any = importlib.import_module("atheris")

    (name,) = chosen.targets
    with atheris.instrument_imports(include=["coop_jax"]):
        from fuzzing import inputs
        from fuzzing import targets as readers

        (folder / "files").mkdir()
        target = readers.open_target(name, folder / "files")
        seeds = folder / "seeds"
        seeds.mkdir()
        for index, content in enumerate(target.seeds):
            (seeds / f"{index}").write_bytes(content)
            target.run(content)  # and what is imported by the way
    options = {
        "max_total_time": chosen.seconds,
        "runs": chosen.runs,
        "seed": max(chosen.seed, 1),
        "artifact_prefix": f"{chosen.keep}/{name}-",
        "max_len": LARGEST_INPUT,
        "len_control": 0,
        "timeout": 60,
        "rss_limit_mb": 4096,
        "print_final_stats": 1,
        "detect_leaks": 0,
    }
    words = [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(seeds)]

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        return inputs.mutated(data, most, seed, atheris.Mutate, target.seeds)

    atheris.Setup(words, target.run, custom_mutator=mutate if target.is_json else None)
    atheris.Fuzz()
    raise AssertionError("atheris ends the process")


if __name__ == "__main__":
    sys.exit(main())
