"""Seconds, memory and what the machine can do at best."""

import ctypes
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from coop_jax.clip.transformer import precision

STATUS = Path("/proc/self/status")
PAUSE = 0.3
"""Seconds between two measurements, for the other library's threads to fall asleep."""


def seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a call takes, by a clock, that returns when everything is done."""
    start = clock()
    call()
    return clock() - start


def alternately(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    pause: float = PAUSE,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each call, measured in turns; warm-up is the caller's.

    On a machine that others use, `time.process_time` counts the processor's seconds for this alone.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            time.sleep(pause)
            found[name].append(seconds(call, clock))
    return {name: statistics.median(values) for name, values in found.items()}


class PeakMemory:
    """By how many bytes this process's resident memory grows at most, from `start` to `read`."""

    def start(self) -> None:
        """Give back what is free, and count from here."""
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    def read(self) -> int:
        """Bytes."""
        return max(_status("VmHWM") - self._before, 0)


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def virtual_bytes() -> int:
    """Address space that this process has taken."""
    return _status("VmSize")


def available_bytes() -> int:
    """Memory that the machine can still give."""
    text = Path("/proc/meminfo").read_text()
    line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def jax_peaks(dtype: Any, *, gpu: bool) -> tuple[float, float]:
    """FLOP/s of a large square matrix product and bytes/s of a large copy in JAX, measured."""
    size, length = (8192, 2**28) if gpu else (2048, 2**25)
    a = jnp.ones((size, size), dtype)
    long = jnp.ones(length, jnp.float32)
    multiply = jax.jit(lambda x: jnp.dot(x, x, precision=precision(dtype)))
    copy = jax.jit(lambda x: x + 1)
    return _peaks(
        lambda: jax.block_until_ready([multiply(a) for _ in range(5)]),
        lambda: jax.block_until_ready([copy(long) for _ in range(5)]),
        size,
        length,
    )


def torch_peaks(dtype: Any, *, gpu: bool) -> tuple[float, float]:
    """The same in PyTorch."""
    import torch

    size, length = (8192, 2**28) if gpu else (2048, 2**25)
    device = "cuda" if gpu else "cpu"
    a = torch.ones((size, size), dtype=dtype, device=device)
    long = torch.ones(length, device=device)

    def finish(call: Callable[[], Any]) -> None:
        for _ in range(5):
            call()
        if gpu:
            torch.cuda.synchronize()

    return _peaks(lambda: finish(lambda: a @ a), lambda: finish(lambda: long + 1), size, length)


def _peaks(
    multiply: Callable[[], Any], copy: Callable[[], Any], size: int, length: int
) -> tuple[float, float]:
    """From calls that do each thing five times; the best of three."""
    multiply()
    copy()
    flops = 5 * 2 * size**3 / min(seconds(multiply) for _ in range(3))
    moved = 5 * 2 * 4 * length / min(seconds(copy) for _ in range(3))
    return flops, moved


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(spell, row))
    Console(width=140).print(table)


def spell(value: Any) -> str:
    """A value for a table: three digits, or a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.3g}" if isinstance(value, float) and value < 1e4 else f"{value}"


def finish(record: Mapping[str, Any]) -> None:
    """Print the last line: the record as JSON."""
    print(json.dumps(record), flush=True)
