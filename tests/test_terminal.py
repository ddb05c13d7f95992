import io
import logging
import re

import pytest
from rich.console import Console

from coop_jax import terminal
from coop_jax.progress import track


def test_messages_are_lines_and_leave_logging_as_it_was(capsys):
    package = logging.getLogger("coop_jax")
    before = package.level, package.propagate, list(package.handlers)
    with terminal.messages():
        logging.getLogger("coop_jax.somewhere").info("said")
    assert capsys.readouterr().err == "said\n"
    assert (package.level, package.propagate, list(package.handlers)) == before


def test_bars_are_for_terminals(capsys, monkeypatch):
    with terminal.count_images(3, "reading") as advance, track(5) as tracker:
        advance(2)
        tracker.advance(4, "training")
    assert capsys.readouterr().err == ""
    for bar, expected in (("images", "2/3 images"), ("steps", "4/5 steps")):
        file = io.StringIO()
        console = Console(file=file, force_terminal=True, width=120)
        monkeypatch.setattr(terminal, "Console", lambda stderr, console=console: console)
        if bar == "images":
            with terminal.count_images(3, "reading") as advance:
                advance(2)
        else:
            with track(5) as tracker:
                tracker.advance(4, "training")
        plain = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", file.getvalue())
        assert expected in " ".join(plain.split())


@pytest.mark.parametrize("width", [80, 120])
def test_progress_is_one_line_that_says_which_time_is_which(width, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=width)
    monkeypatch.setattr(terminal, "Console", lambda stderr: console)
    with terminal.progress_bar("steps") as bar:
        bar.add_task("coop, 16 shots, seed [1], loss 2.314", total=600, completed=300)
        quiet = Console(file=io.StringIO(), width=width)
        with quiet.capture() as capture:
            quiet.print(bar.make_tasks_table(bar.tasks))
    (line,) = capture.get().splitlines()
    times = r"300/600 steps +0:00:00 elapsed"
    assert re.fullmatch(rf"coop, 16 shots, seed \[1\], loss 2.314 .*{times}", line.rstrip())
    assert ("\N{BOX DRAWINGS HEAVY HORIZONTAL}" in line) == (width == 120)


def test_times_are_named():
    assert terminal.times(61.4, 3600) == "0:01:01 elapsed, 1:00:00 left"
    assert terminal.times(0, None) == "0:00:00 elapsed"


def test_what_is_logged_is_one_line_each(capsys):
    with terminal.messages():
        logging.getLogger("coop_jax.somewhere").warning("passed over %s", "a\nb\x1b[31m.jpg")
    assert capsys.readouterr().err == "passed over a\\nb\\x1b[31m.jpg\n"
