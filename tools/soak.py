"""Train for long and often in one process, and see whether anything grows.

    python tools/soak.py [--epochs 50] [--runs 50]

Prints a line of JSON: what the process holds along one run of many epochs, and along many runs of
an epoch each, with seeds of their own. Exit code 1 if any of it has grown (`GROWTH`) between the
first third and the end of either.
"""

import argparse
import gc
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from coop_jax import config_files, protocols
from coop_jax.experiment import Experiment
from coop_jax.run import Watcher, learn
from coop_jax.train import Progress

SMALL = ("templates=('{}',)", "shots=(1,)", "method.n_ctx=4", "encode_batch_size=500")

GROWTH = {"rss": 48 * 2**20, "arrays": 8, "device": 2**20, "files": 4, "threads": 4, "maps": 200}
"""How much more there may be at the end than after the first third.

The allocator of the C library keeps host memory, and what is compiled maps memory.
"""


class Held(NamedTuple):
    """What a process holds: bytes of the host, JAX's arrays and their bytes, and its handles."""

    rss: int
    arrays: int
    device: int
    files: int
    threads: int
    maps: int


def held() -> Held:
    """Return what this process holds, once garbage is collected."""
    gc.collect()
    arrays = jax.live_arrays()
    own = Path("/proc/self")
    pages = int((own / "statm").read_text().split()[1])
    return Held(
        rss=pages * os.sysconf("SC_PAGE_SIZE"),
        arrays=len(arrays),
        device=sum(array.nbytes for array in arrays),
        files=len(os.listdir(own / "fd")),
        threads=len(os.listdir(own / "task")),
        maps=len((own / "maps").read_text().splitlines()),
    )


class Sampler(Watcher, logging.Handler):
    """Notes what is held after each chunk of a run, or after each result that is told."""

    def __init__(self):
        super().__init__()
        self.samples: list[Held] = []

    def note(self, progress: Progress) -> None:
        """A chunk of steps is done."""
        self.samples.append(held())

    def emit(self, record: logging.LogRecord) -> None:
        """A result is told."""
        self.samples.append(held())


def one_run(epochs: int, folder: Path) -> list[Held]:
    """Train one run, an epoch at a time; return what was held after each."""
    config = config_files.load("quickstart", [*SMALL, f"epochs={epochs}", "seeds=(1,)"])
    experiment, sampler = Experiment(config, folder), Sampler()
    run = experiment.run(1, 1, "all")
    learn([run], [sampler], images_per_chunk=len(run.dataset.train))
    return sampler.samples


def many_runs(runs: int, folder: Path) -> list[Held]:
    """Train and evaluate as many runs as is said; return what was held after each result."""
    seeds = ",".join(map(str, range(1, runs + 1)))
    config = config_files.load("quickstart", [*SMALL, "epochs=1", f"seeds=({seeds},)"])
    sampler, logger = Sampler(), logging.getLogger("coop_jax.progress")
    logger.addHandler(sampler)
    logger.setLevel(logging.INFO)
    try:
        protocols.run(config, folder)
    finally:
        logger.removeHandler(sampler)
    return sampler.samples


def grown(samples: Sequence[Held]) -> Iterator[str]:
    """Name what there is more of at the end than after the first third."""
    early, late = samples[len(samples) // 3], samples[-1]
    for name, most in GROWTH.items():
        if getattr(late, name) - getattr(early, name) > most:
            yield name


def main() -> int:
    """Soak, print what was held; 1 if something has grown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--runs", type=int, default=50)
    chosen = parser.parse_args()
    report: dict[str, Any] = {}
    for name, soak, count in (
        ("epochs", one_run, chosen.epochs),
        ("runs", many_runs, chosen.runs),
    ):
        with tempfile.TemporaryDirectory() as folder:
            samples = soak(count, Path(folder))
        shown = {i: samples[i]._asdict() for i in range(0, len(samples), max(len(samples) // 5, 1))}
        shown[len(samples) - 1] = samples[-1]._asdict()
        report[name] = {"count": count, "grown": list(grown(samples)), "after": shown}
    print(json.dumps(report))
    return int(any(part["grown"] for part in report.values()))


if __name__ == "__main__":
    sys.exit(main())
