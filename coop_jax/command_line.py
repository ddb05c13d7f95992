"""From what is typed to the exit code: every command is read, run and ended here."""

import argparse
import contextlib
import difflib
import importlib
import os
import re
import sys
import traceback as traceback_module
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from coop_jax import compilation_cache, interruption, printing, writing
from coop_jax.errors import InputError, MachineError

USER_ERROR, FAILED = 2, 1
"""Exit codes: the input was wrong; the machine failed."""

RESUMED = ("run", "sweep", "prepare")
"""The commands that go on where they were interrupted."""

SETTING = "--config.KEY"
"""The option that has all `--config.KEY=VALUE`."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are the user's, in one line that names the option as it is typed."""

    def __init__(self, name: str, module: ModuleType):
        super().__init__(
            f"coop_jax {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.arguments(self)
        self.add_argument("--traceback", action="store_true", help="show the traceback of an error")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Read what was typed; options and other words may come in any order.

        Raises:
            InputError: it does not fit.
        """
        optional = [action for action in self._actions if action.nargs == "?"]
        bare = {option for action in optional for option in action.option_strings}
        # An optional value would take the word that follows.
        options = [f"{word}=" if word in bare else word for word in _as_options(words)]
        return self.parse_intermixed_args(options)

    def print_help(self, file: Any = None) -> None:
        """Print the help; where that cannot be written, argparse itself would not say so."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed.

        Raises:
            InputError: always.
        """
        said = self._reworded(message)
        raise InputError(said if ";" in said else f"{said}; see {self.prog} --help")

    def _reworded(self, message: str) -> str:
        if found := re.match("the following arguments are required: (.*)", message):
            return f"expected {found[1]}, got none"
        if found := re.match("unrecognized arguments: (.*)", message, flags=re.DOTALL):
            word = found[1].replace(f"{SETTING}=", "--config.")
            options = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(word.split("=")[0], options, n=1)
            return f"expected {self.prog}'s own options, got {word:.80}" + "".join(
                f"; did you mean {option}?" for option in close
            )
        if found := re.match(r"argument (\S+): invalid choice: (.+) \(choose from (.+)\)", message):
            choices = found[3].replace("'", "")
            return f"{found[1]}: expected one of {choices}, got {found[2]:.80}"
        named = re.sub(r"^argument ([^\s:]+)", r"\1", message)
        return re.sub(r": expected (one|at least one) argument$", r"\g<0>, got none", named)


def _as_options(words: Sequence[str]) -> list[str]:
    """Words with every `--config.KEY=VALUE` and `--config.KEY VALUE` as the option `SETTING`."""
    options, needs_value = [], False
    for word in words:
        if word.startswith("--config."):
            options.append(f"{SETTING}={word.removeprefix('--config.')}")
            needs_value = "=" not in word
        elif needs_value and not word.startswith("--"):
            options[-1] += f"={word}"
            needs_value = False
        else:
            options.append(word)
            needs_value = False
    return options


def add_settings(parser: argparse.ArgumentParser, text: str) -> None:
    """Let a parser read `--config.KEY=VALUE`, as `_as_options` writes it, into `settings`."""
    parser.add_argument(
        SETTING, dest="settings", action="append", default=[], metavar="VALUE", help=text
    )


def whole(text: str, lowest: int = 0, highest: int = 2**32 - 1) -> int:
    """A whole number from `lowest` to `highest`.

    Raises:
        ArgumentTypeError: the text is none.
    """
    with contextlib.suppress(ValueError):
        if lowest <= (read := int(text)) <= highest:
            return read
    most = f" and at most {highest}" if len(text) >= len(str(highest)) else ""
    raise argparse.ArgumentTypeError(
        f"expected a whole number of at least {lowest}{most}, got {text!r:.80}"
    )


def positive(text: str) -> int:
    """A whole number of at least 1, as `whole` reads it."""
    return whole(text, lowest=1)


def number(text: str) -> float:
    """A number, as `float` reads it.

    Raises:
        ArgumentTypeError: the text is none.
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r:.80}") from None


def path(text: str) -> Path:
    """A path of this machine, with ~ as the home folder.

    Raises:
        ArgumentTypeError: the text is an address.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise argparse.ArgumentTypeError(
            f"expected a path that this machine sees, got the address {text!r:.80}; mount what lies"
            " there, and name its folder"
        )
    return Path(text).expanduser()


def main(name: str, module_name: str, words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        name: what it is called.
        module_name: the module with its `arguments(parser)` and `run(chosen)`.
        words: what was typed behind the name; by default what this process was started with.

    Returns:
        The exit code, as `end` has it.
    """
    typed = list(sys.argv[1:] if words is None else words)

    def read_and_run() -> int:
        compilation_cache.keep()
        module: Any = importlib.import_module(module_name)
        chosen = Parser(name, module).read(typed)
        from coop_jax.terminal import messages

        with messages():
            return module.run(chosen)

    return end(read_and_run, resumes=name in RESUMED, traceback="--traceback" in typed)


def end(run: Callable[[], int], *, resumes: bool = False, traceback: bool = False) -> int:
    """Run a command, and say in one line why, where it does not come to its end.

    Args:
        run: the command.
        resumes: whether the same command goes on where it was interrupted.
        traceback: whether an error is to be raised.

    Returns:
        The exit code: what `run` returns, `USER_ERROR` for bad input, `FAILED` where the machine
        failed or standard output takes no more, one of `interruption.CODES` after a signal.

    Raises:
        InputError: bad input, if a traceback is wanted.
        MachineError: the machine failed, likewise.
        OSError: the file system refused, likewise.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        return _say("expected a standard output to print to, got one that is closed", FAILED)
    printing.write_anything(sys.stdout)
    advice = "; the same command goes on where it stopped" * resumes
    try:
        with interruption.interruptible(lambda what: _say(f"{what}{advice}", interruption.code())):
            code = run()
    except SystemExit as asked:  # by --help
        code = asked.code if isinstance(asked.code, int) else 0
    except InputError as error:
        if traceback:
            raise
        code = _say(error, USER_ERROR)
    except MachineError as error:
        if traceback:
            raise
        code = _say(error, FAILED)
    except ValueError as error:
        if traceback or not _is_of_jax_settings(error):
            raise
        what = f"expected environment variables that JAX takes, got one it does not ({error})"
        code = _say(f"{what}; correct it, or unset it", USER_ERROR)
    except KeyboardInterrupt:
        code = interruption.code()
    except BrokenPipeError:
        code = FAILED
    except OSError as error:
        code = FAILED
        if _output_error() is None:
            # Without a number it is a library's own, of something else.
            if error.errno is None or traceback:
                raise
            path = None if error.filename is None else str(error.filename)
            _say(writing.failure("read and write files", error, path), code)
    return _close_output(code)


def _is_of_jax_settings(error: ValueError) -> bool:
    """Tell whether JAX, as it is imported, refuses an environment variable of its own."""
    frames = traceback_module.extract_tb(error.__traceback__)
    return os.path.join("jax", "_src", "config.py") in frames[-1].filename


def _say(what: object, code: int) -> int:
    """One line on standard error; the exit code."""
    beginning = "" if code in interruption.CODES.values() else "error: "
    with contextlib.suppress(OSError):  # nobody would read why
        print(beginning + printing.one_line(what), file=sys.stderr)
    return code


def _output_error() -> OSError | None:
    """Return why standard output does not take what was printed, if it does not."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _close_output(code: int) -> int:
    """See that all that was printed is written; the exit code, `FAILED` if it cannot be."""
    error = _output_error()
    if error is None:
        return code
    # What is left would be tried again, and fail again, at the interpreter's end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):  # whoever reads a pipe may stop
        what = f"expected standard output to take what is printed, got {error.strerror}; make room"
        _say(f"{what}, or print elsewhere", FAILED)
    return FAILED
