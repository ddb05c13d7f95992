"""Several processes, each of which forks the runs of one trial at a time."""

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from trials import process, runs, several, torn

Kinds = dict[str, Callable[[dict[str, Any], Path, Path], str | dict[str, Any]]]
"""By name, what does a trial: from the trial, its folder and that of the undisturbed runs to what
is not as it must be, "" if all is; or to that ("wrong") with how many were tried and lost."""

MAKERS = {"undisturbed": runs.make, "half-way": torn.make, "pair": several.make_pair}
"""What is made for trials before any of them."""


def serve(kinds: Kinds, work: Path) -> None:
    """Do the trials that standard input has, a line of JSON each, and answer with a line each."""
    process.ready()
    answers = sys.stdout
    for line in sys.stdin:
        trial = json.loads(line)
        began = time.monotonic()
        try:
            wrong = _do(kinds, trial, work)
        except runs.FailedError as error:
            wrong = str(error)
        except Exception:  # of the tool: said, and counted as lost
            wrong = traceback.format_exc()
        seconds = round(time.monotonic() - began, 2)
        answer = {**({"wrong": wrong} if isinstance(wrong, str) else wrong), "seconds": seconds}
        print(json.dumps(answer), file=answers, flush=True)


def _do(kinds: Kinds, trial: dict[str, Any], work: Path) -> str | dict[str, Any]:
    states = runs.states(work)
    if trial["kind"] in MAKERS:
        return MAKERS[trial["kind"]](trial["configuration"], states)
    folder = work / "trials" / trial["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps(trial))
    wrong = kinds[trial["kind"]](trial, folder, states)
    if not wrong or (isinstance(wrong, dict) and not wrong["wrong"]):
        shutil.rmtree(folder, ignore_errors=True)
    return wrong


class Workers:
    """So many processes that serve."""

    def __init__(self, jobs: int, work: Path, words: Iterable[str]):
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        self._all = []
        for number in range(jobs):
            with (work / f"worker_{number}.log").open("w") as log:
                worker = subprocess.Popen(
                    [sys.executable, *words],
                    env=process.environment(work),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            self._all.append(worker)
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(jobs)

    def _ask(self, trial: dict[str, Any]) -> dict[str, Any]:
        worker = self._idle.get()
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(trial) + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
        if not line:
            raise RuntimeError("a worker has ended; see worker_*.log")
        self._idle.put(worker)
        return json.loads(line)

    def do(
        self, trials: Iterable[dict[str, Any]], until: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield trials with their answers, as they come; begin none once `until` is true."""
        waiting = {}
        for trial in trials:
            waiting[
                self._pool.submit(lambda trial=trial: None if until() else self._ask(trial))
            ] = trial
        for future in as_completed(waiting):
            answer = future.result()
            if answer is not None:
                yield waiting[future], answer

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)
        for worker in self._all:
            with contextlib.suppress(OSError):
                if worker.stdin is not None:
                    worker.stdin.close()
            worker.wait()
