import io
import logging
import re

from rich.console import Console
from rich.progress import Progress

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
        console = Console(file=file, force_terminal=True, width=100)
        monkeypatch.setattr(terminal, "Console", lambda stderr, console=console: console)
        if bar == "images":
            with terminal.count_images(3, "reading") as advance:
                advance(2)
        else:
            with track(5) as tracker:
                tracker.advance(4, "training")
        plain = re.sub(r"\x1b\[[0-9?;]*[a-zA-Z]", "", file.getvalue())
        assert expected in " ".join(plain.split())


def test_the_rate_is_how_many_are_done_in_a_second():
    now, column = [0.0], terminal.RateColumn()
    quiet = Console(file=io.StringIO())
    bar = Progress(console=quiet, auto_refresh=False, get_time=lambda: now[0])
    task = bar.add_task("images", total=20_000)
    assert column.render(bar.tasks[0]).plain == ""
    for second in range(5):
        now[0] = second
        bar.update(task, advance=2500)
    assert column.render(bar.tasks[0]).plain == "2,500/s"
