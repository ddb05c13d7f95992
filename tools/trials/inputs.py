"""Try all bad inputs of a kind that the tests have; print a line of JSON: inputs.py KIND."""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2] / "tests"


def main() -> None:
    """Read the command line, and try."""
    sys.path[0] = str(TESTS)
    bad_inputs: Any = importlib.import_module("bad_inputs")
    (kind,) = sys.argv[1:]
    wrong, count = [], 0
    for case in importlib.import_module(f"bad_inputs.{kind}").cases():
        if not case.can_run:
            continue
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            if problem := bad_inputs.problem(case, bad_inputs.run(case, Path(folder))):
                wrong.append(f"{case}: {problem}")
    print(json.dumps({"wrong": "\n".join(wrong), "count": count, "lost": len(wrong)}))


if __name__ == "__main__":
    main()
