"""Train and evaluate: python -m coop_jax.main --config=configs/quickstart.py --workdir=DIR."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from coop_jax import compilation_cache, terminal
from coop_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. configs/quickstart.py; --config.KEY=VALUE changes it."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results and checkpoints.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, on a TPU pod slice or a cluster (see README)."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first process, where the cluster does not say it."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes, with --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them, from 0, with --coordinator.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of a user error.")


def run(config: dict[str, Any], workdir: Path) -> None:
    """Run the config's protocol in the workdir and show what came of it."""
    from coop_jax import interpret, parallel, protocols, report
    from coop_jax.task import Task

    experiment, plan, rows = protocols.run(config, workdir)
    shots, seed = max(config["shots"]), config["seeds"][0]
    task = Task(experiment, shots, seed, plan.part)
    context = getattr(task.restore(), "context", None)
    if not parallel.is_first():
        return
    console = report.console()
    for sheet in report.tables(rows):
        console.print(sheet)
    pictures = report.pictures(rows, workdir / "report.png")
    if context is not None:
        title = f"nearest words, {shots} shots, seed {seed}"
        if context.ndim == 3:
            title += f", context of {task.dataset.class_names[0]!r}"
        words = interpret.nearest_words(
            experiment.clip,
            experiment.tokenizer,
            context[...].reshape(-1, *context.shape[-2:])[0],
            count=3,
            whole_words=True,
        )
        console.print(interpret.table(words, title))
    console.print(f"results: {experiment.results_path}")
    console.print(f"learned prompts: {workdir / 'prompts'}")
    for picture in pictures:
        console.print(f"picture: {picture}")


def first_cause(error: BaseException) -> BaseException:
    """The user's error below what ml_collections wraps around it, if there is one."""
    found, below = error, error.__cause__ or error.__context__
    while below is not None:
        found = below if isinstance(below, InputError) else found
        below = below.__cause__ or below.__context__
    return found


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parse the flags; a wrong flag or an unknown setting is a user's error."""
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:
        named = re.search(r"[A-Za-z_]\w*", str(error))
        unknown = named.group() if named else str(error)
        from coop_jax import config

        valid = ", ".join(config.names(config.default()))
        wrong = InputError(f"--config: unknown setting {unknown!r}; expected one of {valid}")
    except SyntaxError as error:
        wrong = InputError(f"--config: expected a Python file with get_config(), got {error}")
    except (flags.Error, TypeError, ValueError) as error:
        wrong = first_cause(error)
    sys.exit(terminal.refuse(wrong))


def chosen_config() -> dict[str, Any]:
    """The config that the flags name.

    Raises:
        InputError: no config file is named, or there is no such file.
    """
    if flags.FLAGS["config"].value is None:
        raise InputError("expected --config=FILE, e.g. configs/quickstart.py; see README.md")
    try:
        return _CONFIG.value.to_dict()
    except OSError as error:
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        raise InputError(
            f"--config: expected a config file, but {path} cannot be read; see configs/"
        ) from error


def main(arguments: Sequence[str]) -> None:
    """Check the flags and run."""
    absl_logging.set_verbosity(absl_logging.WARNING)

    def check_and_run() -> int:
        if len(arguments) > 1:
            raise InputError(f"expected flags only, got {arguments[1]!r}; see --help")
        config = chosen_config()
        if _WORKDIR.value is None:
            raise InputError("expected --workdir=FOLDER for results and checkpoints")
        if _DISTRIBUTED.value or _COORDINATOR.value is not None:
            from coop_jax import parallel

            parallel.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        run(config, Path(_WORKDIR.value).expanduser())
        return 0

    sys.exit(terminal.command(check_and_run, _TRACEBACK.value))


if __name__ == "__main__":
    compilation_cache.keep()
    app.run(main, flags_parser=parse_flags)
