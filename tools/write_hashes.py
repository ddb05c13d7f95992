"""Write the digests of what CI installs into constraints-hashes.txt.

    python tools/write_hashes.py python3.12 python3.13
    python tools/write_hashes.py --required

Every Python named, with a pip of its own that knows `--report`, chooses the files that it would
install with the versions of constraints.txt, for the extras that CI's main environment has, on this
machine; nothing is installed. Call it after constraints.txt has changed. `--required` prints what
the package, its build and these extras require, a line each.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS, FILE = ROOT / "constraints.txt", ROOT / "constraints-hashes.txt"
EXTRAS = ("test", "lint", "docs", "dev")

HEAD = """\
# What CI installs, with SHA-256 of the files, by tools/write_hashes.py: for Linux x86_64, CPython
# {versions}
"""


def requirements() -> list[str]:
    """Return what the package, its build and the extras require, by pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    extras = [name for extra in EXTRAS for name in project["optional-dependencies"][extra]]
    return [*settings["build-system"]["requires"], *project["dependencies"], *extras]


def chosen(python: str) -> dict[str, str]:
    """Return the pinned files' digests that a Python would install, by `name==version`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += [f"--report={report}", f"--constraint={PINS}", *requirements()]
        subprocess.run(command, check=True)
        installed = json.loads(report.read_text())["install"]
    digests = {}
    for item in installed:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        digests[f"{name}=={item['metadata']['version']}"] = digest
    return digests


def main() -> None:
    """Ask every Python named, and write the file."""
    if sys.argv[1:] == ["--required"]:
        print("\n".join(requirements()))
        return
    if not sys.argv[1:]:
        raise SystemExit("expected Pythons, got none; name some, e.g. python3.13")
    files: dict[str, set[str]] = {}
    versions: dict[str, set[str]] = {}
    for python in sys.argv[1:]:
        told = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        version = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
        for pin, digest in chosen(python).items():
            files.setdefault(pin, set()).add(digest)
            versions.setdefault(pin, set()).add(version)
    everywhere = set().union(*versions.values())
    lines = []
    for pin in sorted(files):
        only = versions[pin] if versions[pin] != everywhere else set()
        marker = " or ".join(f'python_version == "{version}"' for version in sorted(only))
        digests = "".join(f" --hash=sha256:{digest}" for digest in sorted(files[pin]))
        lines.append(f"{pin}{'; ' * bool(marker)}{marker}{digests}\n")
    FILE.write_text(HEAD.format(versions=" ".join(sorted(everywhere))) + "".join(lines))
    print(f"{FILE.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
