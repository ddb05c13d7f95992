"""The training step compiles for a TPU slice, without a TPU.

CI does not install libtpu, so there this is skipped; to run it:
pip install "jax[tpu]"; pytest tests/test_tpu.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TPU = Path(__file__).parents[1] / "benchmarks" / "tpu.py"
CLASSES, EMBEDDING = 200, 32


@pytest.mark.heavy
def test_a_training_step_for_eight_v5e_chips_fits_and_exchanges_only_class_features():
    pytest.importorskip("libtpu", reason='needs libtpu: pip install "jax[tpu]"')
    wanted = f"--chips=8 --backbone=tiny --method=unified --phase=train --classes={CLASSES}"
    child = subprocess.run(
        [sys.executable, str(TPU), "--slice=v5e", *wanted.split()], capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    (case,) = json.loads(child.stdout.splitlines()[-1])["cases"]
    assert case["memory"] < 16e9
    assert 0.9 < 8 * case["flops"] / case["needed_flops"] < 2
    assert case["collectives"]
    for _, size, times in case["collectives"]:
        assert size * times <= 2 * 4 * CLASSES * EMBEDDING
