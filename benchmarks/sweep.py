"""Seconds of the whole few-shot figure of one dataset, 5 shot counts x 3 seeds; see README.md.

python benchmarks/sweep.py
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

from coop_jax import config as config_module
from coop_jax import protocols


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits", help="as config.dataset")
    parser.add_argument("--data-dir", default="", help="as config.data_dir")
    parser.add_argument("--clip", default="tiny", help="as config.clip.name")
    parser.add_argument("--method", default="coop")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=0, help="default: the paper's rule")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> dict[str, Any]:
    """Run the figure in a temporary folder, print the table and the record; the record."""
    chosen = parse(arguments)
    config = config_module.default(chosen.method)
    config |= {
        "dataset": chosen.dataset,
        "data_dir": chosen.data_dir,
        "shots": tuple(chosen.shots),
        "seeds": tuple(chosen.seeds),
        "epochs": chosen.epochs,
    }
    config["clip"]["name"] = chosen.clip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        _, _, results = protocols.run(config, Path(folder) / "run")
    total = time.perf_counter() - start
    parts = {"zero-shot": sum(row.seconds or 0.0 for row in results if not row.shots)}
    for shots in chosen.shots:
        runs = [row.seconds or 0.0 for row in results if row.shots == shots]
        parts[f"{shots} shots, {len(runs)} seeds"] = sum(runs)
    parts["all else"] = total - sum(parts.values())
    parts["total"] = total
    title = f"few-shot figure, {chosen.method} on {chosen.dataset}, {chosen.clip}"
    rows = [(name, value, f"{value / total:.0%}") for name, value in parts.items()]
    measure.show(title, ("part", "seconds", "share"), rows)
    record = {"dataset": chosen.dataset, "clip": chosen.clip, "method": chosen.method}
    record |= {"runs": len(chosen.shots) * len(chosen.seeds), "seconds": parts}
    measure.finish(record)
    return record


if __name__ == "__main__":
    main(sys.argv[1:])
