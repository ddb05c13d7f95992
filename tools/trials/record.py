"""The record of trials, a JSON line each, and the table made of it."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from trials.process import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = (
    "<!-- The table begins: tools/reliability.py writes it. -->",
    "<!-- The table ends. -->",
)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the trials of a record, those of no file as none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def append(path: Path, trial: dict[str, Any], answer: dict[str, Any]) -> None:
    """Add a trial to a record."""
    row = {
        **trial,
        "count": answer.get("count", 1),
        "lost": answer.get("lost", int(bool(answer["wrong"]))),
        **{name: answer[name] for name in ("wrong", "saw", "seconds") if name in answer},
        "commit": _commit(),
        "date": datetime.datetime.now().astimezone().date().isoformat(),
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return told.stdout.strip()


def measured(rows: list[dict[str, Any]]) -> str:
    """Say when, where and by which seeds a record was made."""
    dates = sorted({row["date"] for row in rows})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    seeds = ", ".join(sorted({str(row.get("seed", 1)) for row in rows}))
    python = ".".join(map(str, sys.version_info[:2]))
    return f"Seed {seeds}, {when}, Python {python}, {os.cpu_count()} cores of a {_processor()}."


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def table(rows: list[dict[str, Any]], kinds: dict[str, str]) -> str:
    """Return the table: tried, held, lost, by kind, which is called so."""
    lines = ["| tried | times | held | lost |", "|---|---:|---:|---:|"]
    for kind, called in kinds.items():
        of_kind = [row for row in rows if row["kind"] == kind]
        if of_kind:
            tried = sum(row["count"] for row in of_kind)
            lost = sum(row["lost"] for row in of_kind)
            lines.append(f"| {called} | {tried:,} | {tried - lost:,} | {lost:,} |")
    return "\n".join(lines)


def write_docs(rows: list[dict[str, Any]], kinds: dict[str, str]) -> None:
    """Write the table into docs/reliability.md."""
    text = PAGE.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows, kinds)}\n\n{measured(rows)}\n\n{END}{after}")
