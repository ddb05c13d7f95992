"""Nothing grows in a process that trains for long and often."""

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest

from coop_jax import config_files, protocols

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.heavy
def test_nothing_of_an_earlier_experiment_stays(tmp_path):
    smallest = ("templates=('{}',)", "shots=(1,)", "seeds=(1,2)", "epochs=1", "method.n_ctx=2")
    config = config_files.load("quickstart", smallest)
    held = []
    for number in range(6):
        protocols.run(config, tmp_path / str(number))
        gc.collect()
        held.append((len(jax.live_arrays()), threading.active_count()))
    assert held[5] == held[2], held


@pytest.mark.heavy
def test_the_tool_that_soaks_tells_what_is_held():
    command = [sys.executable, "tools/soak.py", "--epochs=4", "--runs=3"]
    soaked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    report = json.loads(soaked.stdout)
    assert soaked.returncode == 0, report
    assert [report[name]["count"] for name in ("epochs", "runs")] == [4, 3]
    for after in (report["epochs"]["after"], report["runs"]["after"]):
        assert all(held["rss"] > 2**27 and held["device"] > 2**20 for held in after.values())
