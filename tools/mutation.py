"""Run the tests against small wrong changes of the core, and say which of them no test notices.

    pip install -e '.[test,dev]'
    python tools/mutation.py --sample 20 --results mutation.json

The same command goes on where it was stopped. A parent imports all that the tests import but this
package; each wrong change is a child of it that imports the package with the change and runs the
tests that execute the changed statement, the quickest first, until one fails. What these do not
notice, all tests of the module run against. Python 3.12 or newer, on Linux.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import mutants
import pytest

ROOT = Path(__file__).resolve().parents[1]

TESTS = {
    "train": "saving_together average train resume finite optim_recorded",
    "states": "saving_together average train resume finite",
    "run": "work_left collapse given_features resume train",
    "chunks": "chunks work_left average train resume",
    "checkpoint": "checkpoint saving_together resume train",
    "protocols": "work_left given_features workdir protocols",
    "experiment": "work_left given_features workdir protocols",
    "results": "results workdir work_left",
    "feature_cache": "features feature_keys",
    "evaluate": "evaluate finite methods_test_time given_features",
    "optim": "optim optim_recorded train",
    "config": "settings configs ranges presets",
    "classes": "classes names seen work_left",
    "images": "features feature_keys given_features evaluate",
    "data.sampling": "sampling settings chunks work_left parts overlay",
    "data.few_shot": "work_left sampling given_features protocols",
    "methods.text": "text methods_texts uneven_sizes methods templates train",
    "methods.coop": "uneven_sizes methods text",
    "methods.cocoop": "uneven_sizes methods text",
    "methods.registry": "checks outside_method methods",
    "clip.text": "text towers siglip uneven_sizes inside",
    "clip.packing": "text uneven_sizes inside",
    "clip.preprocess": "preprocess pixels bad_images feature_keys",
}
"""Modules, and the files of tests that are theirs."""

OPTIONS = ["-o", "addopts=", "-q", "--strict-markers", "-m", "not heavy", "-p", "no:cacheprovider"]
OPTIONS += ["-p", "no:xdist", "--hypothesis-seed=0", "--tb=no", "--no-header"]
OPTIONS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins imported before

monitoring: Any = sys.monitoring  # pyright: ignore[reportAttributeAccessIssue]

MONITOR = 4
"""The number among the tools of `sys.monitoring`."""


def path(module: str) -> Path:
    """Return the file of a module."""
    return ROOT / f"coop_jax/{module.replace('.', '/')}.py"


def files(module: str) -> list[str]:
    """Return the files of tests of a module that there are."""
    paths = [f"tests/test_{name}.py" for name in TESTS[module].split()]
    return [path for path in paths if (ROOT / path).exists()]


class Mutated:
    """Finds a module of the package with another source."""

    def __init__(self, module: str, source: str):
        self._name, self._source = f"coop_jax.{module}", source

    def find_spec(self, name: str, package: object = None, target: object = None) -> Any:
        """Return how to import it; None for any other."""
        if name != self._name:
            return None
        location = path(name.removeprefix("coop_jax."))
        loader = SourceFileLoader(name, str(location))
        loader.get_code = lambda _: compile(self._source, str(location), "exec")  # pyright: ignore
        return importlib.util.spec_from_file_location(name, location, loader=loader)


class Watch:
    """A plugin that keeps the first failure, and of each test its seconds and the lines it ran."""

    def __init__(self):
        self._names = {str(path(module)): module for module in TESTS}
        self._lines: set[tuple[str, int]] = set()
        self._of_fixture: dict[Any, set[tuple[str, int]]] = collections.defaultdict(set)
        self.failed = ""
        self.tests: dict[str, dict[str, Any]] = {}

    def start(self) -> None:
        """Begin to keep lines."""
        monitoring.use_tool_id(MONITOR, "mutation")
        monitoring.set_events(MONITOR, monitoring.events.LINE)
        monitoring.register_callback(MONITOR, monitoring.events.LINE, self._line)

    def _line(self, code: Any, line: int) -> object:
        if code.co_filename in self._names:
            self._lines.add((self._names[code.co_filename], line))
        return monitoring.DISABLE

    def _all_again(self) -> None:
        self._lines = set()
        monitoring.restart_events()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Keep what a test takes and runs."""
        begin = time.monotonic()
        self._all_again()
        result = yield
        lines = self._lines.union(*map(self._of_fixture.__getitem__, self._fixtures(item)))
        by_module = collections.defaultdict(list)
        for module, line in sorted(lines):
            by_module[module].append(line)
        seconds = round(time.monotonic() - begin, 3)
        self.tests[item.nodeid] = {"seconds": seconds, "lines": by_module}
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Keep what a fixture that several tests share runs."""
        before = self._lines
        self._all_again()
        result = yield
        self._of_fixture[fixturedef] |= self._lines
        self._lines = before | self._lines
        return result

    @staticmethod
    def _fixtures(item: Any) -> list[Any]:
        return [last for (*_, last) in item._fixtureinfo.name2fixturedefs.values()]

    def pytest_runtest_logreport(self, report):
        """Keep the first failure."""
        if report.failed and not self.failed:
            self.failed = report.nodeid

    def pytest_collectreport(self, report):
        """Keep the first file that cannot be imported."""
        if report.failed and not self.failed:
            self.failed = f"import of {report.nodeid}"


class Ordered:
    """A plugin that runs tests in an order, and no others."""

    def __init__(self, names: list[str]):
        self._rank = {name: rank for rank, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items):
        """Leave out and sort."""
        items[:] = [item for item in items if item.nodeid in self._rank]
        items.sort(key=lambda item: self._rank[item.nodeid])


def child(
    module: str,
    source: str | None,
    tests: list[str],
    names: list[str] | None,
    end: Any,
    folder: str,
) -> None:
    """Run tests in a process of their own; send the exit code, the first failure, what was run."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    out = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{folder}/hypothesis"
    plugins: list[Any] = [watch := Watch()]
    words = [*OPTIONS, f"--basetemp={folder}/temp", *tests]
    if module is None or source is None:
        watch.start()
    else:
        sys.meta_path.insert(0, Mutated(module, source))
        plugins += [] if names is None else [Ordered(names)]
        words.append("-x")
    code = 3
    try:
        code = int(pytest.main(words, plugins=plugins))
        modules = [name for name in sys.modules if not name.startswith(("coop_jax", "test_"))]
        end.send((code, watch.failed, watch.tests if module is None else {}, modules))
    except BaseException:
        traceback.print_exc()
    os._exit(code)


class Server:
    """Forks children; the parent has imported what all of them need."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._context = multiprocessing.get_context("fork")

    def start(self, number: int, *arguments: Any) -> tuple[Any, Any]:
        """Return a child that runs, and the end of its pipe."""
        folder = self.folder / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=child, args=(*arguments, theirs, str(folder)))
        process.start()
        theirs.close()
        return process, mine

    def wait(self, process: Any, end: Any, limit: float) -> tuple[int, str, dict, list[str]]:
        """Return what a child sends, or what has become of it."""
        heard = None
        try:
            with contextlib.suppress(EOFError):
                late = -1, f"no end within {limit:.0f} s", {}, []
                heard = end.recv() if end.poll(limit) else late
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
        return heard or (-2, f"the process ended with {process.exitcode}", {}, [])

    def run(self, number: int, limit: float, *arguments: Any) -> tuple[int, str, dict, list[str]]:
        """Run a child to its end."""
        return self.wait(*self.start(number, *arguments), limit)


def warm(modules: list[str]) -> None:
    """Import what children need, in the parent, as long as that starts no thread."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    inside = {path.stem for path in (ROOT / "tests").iterdir()}
    for name in modules:
        if name.partition(".")[0] not in inside | {"__main__"} and name not in sys.modules:
            with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(name)
    if loaded := [name for name in sys.modules if name.startswith("coop_jax")]:
        sys.exit(f"expected a parent without this package, got {', '.join(loaded)}")


def digest(*paths: Path) -> str:
    """Return a hash of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def baseline(server: Server, file: str, kept: dict[str, Any]) -> dict[str, Any]:
    """Return a file of tests, which must pass, each with its seconds and the lines it runs."""
    if kept.get("digest") != (now := digest(ROOT / file)):
        code, failed, tests, modules = server.run(0, 900, None, None, [file], None)
        if code:
            output = (server.folder / "0" / "output").read_text()[-3000:]
            sys.exit(f"{file}: expected tests that pass, got {failed or code}\n{output}")
        sources = {module: digest(path(module)) for module in TESTS}
        kept |= {"digest": now, "sources": sources, "tests": tests, "modules": sorted(modules)}
    warm(kept["modules"])
    return kept["tests"]


def tests_of(server: Server, module: str, baselines: dict[str, Any]) -> dict[str, Any]:
    """Return the tests of a module, each with its seconds and the lines of the module it runs."""
    tests = {}
    for file in files(module):
        kept = baselines.setdefault(file, {})
        if kept.get("sources", {}).get(module) != digest(path(module)):
            kept.clear()
        for name, test in baseline(server, file, kept).items():
            lines = test["lines"].get(module, [])
            tests[name] = {**test, "lines": lines, "passes": test.setdefault("passes", [])}
    return tests


def try_mutant(
    server: Server, number: int, module: str, source: str, mutant: mutants.Mutant, tests: dict
) -> str | None:
    """Return which test notices a mutant, "" where none does; None where it is no Python.

    A test that notices must pass without the mutant, in the same order.
    """
    if (changed := mutants.mutated(source, mutant)) is None:
        return None
    quickest = sorted(tests, key=lambda name: tests[name]["seconds"])
    ran = set(mutant.lines)
    first = [name for name in quickest if ran.intersection(tests[name]["lines"])]
    for names in filter(None, (first, [name for name in quickest if name not in {*first}])):
        used = list(dict.fromkeys(name.partition("::")[0] for name in names))
        limit = 60 + 10 * sum(tests[name]["seconds"] for name in names)
        code, failed, _, _ = server.run(number, limit, module, changed, used, names)
        if code in (3, 4, 5) or (code == -2 and "with 3" in failed):  # pytest's own failures
            sys.exit((server.folder / str(number) / "output").read_text()[-3000:])
        if failed in tests and not tests[failed]["passes"]:
            until = names[: names.index(failed) + 1]
            if server.run(number, limit, module, source, used, until)[0]:
                sys.exit(f"{failed}: expected a test that passes in any order, got another")
            tests[failed]["passes"].append("in another order")
        if code:
            return failed or f"exit code {code}"
    return ""


def main() -> None:
    """Read the options; try the mutants; print the survivors and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=[], help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, help="so many of each module (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--results", type=Path, default=Path("mutation.json"))
    chosen = parser.parse_args()
    kept = json.loads(chosen.results.read_text()) if chosen.results.exists() else {}
    kept = {"tests": {}, "modules": {}} | kept
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(ROOT)
    chosen.end = time.monotonic() + chosen.seconds
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        os.environ |= {
            "JAX_PLATFORMS": "cpu",
            # Children share what has been compiled; tests/conftest.py does so among workers.
            "PYTEST_XDIST_WORKER": "mutation",
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled",
        }
        server = Server(Path(folder))
        for module in chosen.modules or TESTS:
            if time.monotonic() < chosen.end:
                try_module(server, module, kept, chosen)
    print(table(kept["modules"]))


def try_module(server: Server, module: str, kept: dict[str, Any], chosen: Any) -> None:
    """Try some mutants of a module that have not been tried; keep and print what came of it."""
    source, mine = path(module).read_text(), kept["modules"].setdefault(module, {"tried": {}})
    tests = tests_of(server, module, kept["tests"])
    everything = mutants.of_module(source)
    mine["of"] = len(everything)
    some = random.Random(f"{chosen.seed} {module}").sample(everything, len(everything))
    for number, mutant in enumerate(some[: chosen.sample], start=1):
        outcome = mine["tried"].get(mutant.key)
        if outcome and (outcome["by"] or not chosen.again):
            continue
        if time.monotonic() > chosen.end:
            break
        by = try_mutant(server, number, module, source, mutant, tests)
        if by is None:
            continue
        before, after = mutants.changes(source, mutants.mutated(source, mutant) or "")
        mine["tried"][mutant.key] = {"by": by, "before": before, "after": after}
        print(f"{module}:{mutant.lines.start} {mutant.operator}: {by or 'SURVIVED'}", flush=True)
        if not by:
            print(f"  - {before}\n  + {after}", flush=True)
        chosen.results.write_text(json.dumps(kept) + "\n")
    chosen.results.write_text(json.dumps(kept) + "\n")


def table(modules: dict[str, Any]) -> str:
    """Return the scores, as a table in Markdown."""
    rows = ["| module | tried of | killed | equivalent | score |", "|---|---|---|---|---|"]
    sums = [0, 0, 0]
    for module, kept in modules.items():
        tried, same = kept["tried"].values(), mutants.equivalents(module)
        dead = sum(bool(each["by"]) for each in tried)
        equal = sum(f"{m['before']} -> {m['after']}" in same and not m["by"] for m in tried)
        counts = [len(tried), dead, equal]
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        rows.append(row(module, kept["of"], counts))
    everything = sum(kept["of"] for kept in modules.values())
    return "\n".join([*rows, row("all", everything, sums)])


def row(name: str, of: int, counts: list[int]) -> str:
    """Return a row of the table."""
    tried, dead, equal = counts
    share = f"{100 * dead / (tried - equal):.0f} %" if tried > equal else ""
    return f"| {name} | {tried} of {of} | {dead} | {equal} | {share} |"


if __name__ == "__main__":
    main()
