"""The reference folder: recorded numbers, official split files and photographs.

`COOP_JAX_REFERENCE` names it; by default it is `shared` beside the repository. A clone has no such
folder, and a folder need not have everything: what needs an absent file is skipped and says so.
"""

import os
from pathlib import Path

import pytest

FOLDER = Path(
    os.environ.get("COOP_JAX_REFERENCE") or Path(__file__).resolve().parents[2] / "shared"
)


def path(name: str) -> Path:
    """Return a file or folder of the reference folder, or skip the test."""
    wanted = FOLDER / name
    if not wanted.exists():
        pytest.skip(f"no {wanted}: COOP_JAX_REFERENCE names a folder that has it")
    return wanted


def cases(pattern: str) -> pytest.MarkDecorator:
    """Parametrise `case` by the recorded files of a kind; where there are none, by a skip."""
    found = [pytest.param(case, id=case.stem) for case in sorted(FOLDER.glob(f"golden/{pattern}"))]
    missing = pytest.mark.skip(f"no golden/{pattern} in {FOLDER}: see COOP_JAX_REFERENCE")
    return pytest.mark.parametrize("case", found or [pytest.param(None, marks=missing, id="none")])
