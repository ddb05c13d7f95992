"""CPU seconds of every command on a few small pictures, and its heaviest imports; see README.md.

python benchmarks/startup.py
python benchmarks/startup.py predict evaluate --repeats 5
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--config.clip.name=tiny",
    "--config.dataset=pictures",
    "--config.shots=(1,)",
    "--config.seeds=(1,)",
    "--config.epochs=1",
)
COMMANDS = {
    "--help": (),
    "fit": ("pictures", "{new}", "--clip=tiny", "--shots=1", "--epochs=1", "--set", "n_ctx=4"),
    "predict": ("prompt", "pictures/test/red/0.png"),
    "evaluate": ("prompt", "pictures"),
    "interpret": ("prompt",),
    "export": ("prompt", "{new}.safetensors"),
    "import": ("official.pth.tar-1", "{new}", "--clip=tiny", "--classes=blue,red"),
    "push": ("prompt", "nobody/nothing"),
    "pull": ("nobody/nothing", "{new}"),
    "run": ("--config=few_shot", *SMALL, "--workdir={new}"),
    "sweep": ("few_shot", *SMALL, "--workdir={new}"),
    "report": ("run",),
    "check": ("pictures",),
    "prepare": ("pictures", "--data-dir={new}"),
}
"""What is typed behind each command's name; {new} is a name that is not taken yet."""

REFUSED = ("push", "pull")
"""Commands that end where they would ask the hub, which is switched off."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", help=f"default all: {', '.join(COMMANDS)}")
    parser.add_argument("--repeats", type=int, default=3, help="warm calls; the least one counts")
    parser.add_argument("--imports", type=int, default=4, help="packages to name")
    return parser.parse_args(arguments)


class Place:
    """A folder with four pictures, a prompt and a run; commands are called in it."""

    def __init__(self, folder: Path):
        self._folder, self._made = folder, 0
        for split, green in (("train", 60), ("test", 70)):
            for name, colour in (("blue", (30, green, 220)), ("red", (220, green, 30))):
                path = folder / "pictures" / split / name / "0.png"
                path.parent.mkdir(parents=True)
                Image.fromarray(np.full((40, 48, 3), colour, np.uint8)).save(path)
        fit, run = COMMANDS["fit"], COMMANDS["run"]
        self.call(["fit", *(word.format(new="prompt") for word in fit)], "first")
        self.call(["export", "prompt", "official.pth.tar-1"], "first")
        self.call(["run", *(word.format(new="run") for word in run)], "first")

    def words(self, name: str) -> list[str]:
        """A command's words, with names that are not taken yet."""
        self._made += 1
        return [name, *(word.format(new=f"new_{self._made}") for word in COMMANDS[name])]

    def call(self, words: Sequence[str], cache: str, *options: str) -> tuple[float, float, str]:
        """Call a command with a cache of its own; CPU seconds, seconds, standard error.

        Raises:
            RuntimeError: it fails.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment = kept | {
            "XDG_CACHE_HOME": str(self._folder / f"cache_{cache}"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
        }
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *options, "-m", "coop_jax", *words],
            cwd=self._folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        after, wall = os.times(), time.perf_counter() - start
        if done.returncode != (2 if words[0] in REFUSED else 0):
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
        user = after.children_user - before.children_user
        return user + after.children_system - before.children_system, wall, done.stderr


def imports(said: str) -> dict[str, float]:
    """Seconds by package, from what `python -X importtime` says; the slowest first."""
    found: collections.Counter[str] = collections.Counter()
    for own, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", said, re.MULTILINE):
        found[name.partition(".")[0]] += int(own) / 1e6
    return dict(found.most_common())


def look(place: Place, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure one command."""
    cold, *_ = place.call(place.words(name), name)
    warm = [place.call(place.words(name), name)[:2] for _ in range(chosen.repeats)]
    seconds = imports(place.call(place.words(name), name, "-X", "importtime")[2])
    heaviest = {package: seconds[package] for package in list(seconds)[: chosen.imports]}
    return {
        "cold": cold,
        "warm": min(cpu for cpu, _ in warm),
        "warm_wall": min(wall for _, wall in warm),
        "imports": sum(seconds.values()),
        "heaviest": heaviest,
    }


def row(name: str, found: Mapping[str, Any]) -> tuple[Any, ...]:
    """A line of the table."""
    heaviest = ", ".join(f"{package} {took:.2f}" for package, took in found["heaviest"].items())
    return name, found["cold"], found["warm"], found["warm_wall"], found["imports"], heaviest


def main(arguments: list[str]) -> dict[str, Any]:
    """Measure the commands, print the table and the record; the record."""
    chosen = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        found = {name: look(place, name, chosen) for name in chosen.commands or COMMANDS}
    columns = ("command", "cold, CPU s", "warm, CPU s", "warm, s", "of it imports", "heaviest, s")
    title = "commands on a few pictures, the embedded CLIP, on a CPU"
    measure.show(title, columns, [row(name, one) for name, one in found.items()])
    measure.finish(found)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
