"""Say where the repository is published, in every file that links there.

    python tools/set_repository.py OWNER/NAME

`project.urls` in pyproject.toml is the place that counts; the links to Colab, what the notebooks
install and the citation follow it.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("https://github.com/", "https://colab.research.google.com/github/")


def current() -> str:
    """The repository's owner and name, as pyproject.toml has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"].removeprefix(HOSTS[0])


def moved(text: str, old: str, new: str) -> str:
    """The text with its links to repository `old` as links to `new`."""
    for host in HOSTS:
        text = text.replace(host + old, host + new)
    return text


def main() -> None:
    """Rewrite the links of all files that git knows."""
    if len(sys.argv) != 2 or sys.argv[1].count("/") != 1:
        raise SystemExit("usage: python tools/set_repository.py OWNER/NAME")
    old = current()
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for path in (ROOT / name for name in files.stdout.splitlines()):
        content = path.read_bytes()
        changed = moved(content.decode("latin-1"), old, sys.argv[1]).encode("latin-1")
        if changed != content:
            path.write_bytes(changed)
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
