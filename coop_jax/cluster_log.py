"""A process that passes on what libraries log, and says why the one that logs has to end.

It is run as a file, by `coop_jax.cluster`, and imports nothing of the package.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

SAY = b"\0say "
"""Before what is to be said where JAX ends the process; nothing if that is empty."""

GONE = b"\0gone "
"""Before the reason for which the process is to be ended as JAX would."""

FATAL = re.compile(rb"JAX distributed service detected fatal errors.*?absl::Status: (.*)")
ENTRY = re.compile(rb"[IWEF]\d{4} \S+ +\d+ (coordination_service\w*|preemption_sync_manager)?")
"""The beginning of an entry of several lines, perhaps of those that come with a failure."""

MOST = 200
"""Bytes of a reason."""

LISTS = b"(stopped sending heartbeats):"


def main() -> None:
    """Read the log from standard input; write a character where the process has to end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lines = iter(sys.stdin.buffer)
    text, ended, passes = b"", False, True
    for line in lines:
        if line.startswith(SAY):
            text = line.removeprefix(SAY).strip()
        elif (reason := _reason(line, lines)) is None:
            if entry := ENTRY.match(line):
                passes = not entry[1]
            if passes and not ended:
                _write(2, line)
            passes |= not line.strip()
        elif not ended:
            ended = True
            if text:
                _write(2, b"error: %s (%s)\n" % (text, reason))
            _write(1, b".")


def _reason(line: bytes, lines: Iterator[bytes]) -> bytes | None:
    """Return why the process has to end; None where it has not."""
    if line.startswith(GONE):
        return line.removeprefix(GONE).strip()[:MOST]
    if (fatal := FATAL.search(line)) is None:
        return None
    reason, *_ = fatal[1].strip().split(b". ")
    if reason.endswith(LISTS):
        which = re.search(rb"\d+$", next(lines, b"").strip())
        reason += b" process %s" % which[0] if which else b""
    return reason[:MOST]


def _write(descriptor: int, content: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(descriptor, content)


if __name__ == "__main__":
    main()
