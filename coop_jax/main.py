"""Train and evaluate: python -m coop_jax.main --config=configs/quickstart.py --workdir=DIR."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from rich.console import Console

from coop_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. configs/quickstart.py; --config.KEY=VALUE changes it."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results and checkpoints.")
_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of a user error.")

USER_ERROR = 2
"""Exit code when the input was wrong."""


def run(workdir: Path) -> None:
    """Run the config's protocol in the workdir and show what came of it."""
    from coop_jax import curve, interpret, protocols, report
    from coop_jax.experiment import Experiment, Task

    config = _CONFIG.value.to_dict()
    experiment = Experiment(config, workdir)
    rows = protocols.PROTOCOLS[config["protocol"]](experiment)
    console = Console()
    console.print(report.few_shot_table(rows))
    picture = workdir / "few_shot.png"
    curve.few_shot_curve(rows, picture)
    method = Task(experiment, max(config["shots"]), config["seeds"][0]).restore()
    console.print(
        report.nearest_words_table(
            interpret.nearest_words(experiment.clip, experiment.tokenizer, method.context[...])
        )
    )
    console.print(f"results: {experiment.results_path}\ncurve:   {picture}")


def configure_logging() -> None:
    """What this package says goes to standard error; libraries only warn."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("coop_jax")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


def main(arguments: Sequence[str]) -> None:
    """Check the flags and run."""
    configure_logging()
    try:
        if len(arguments) > 1:
            raise InputError(f"expected flags only, got {arguments[1]!r}; see --help")
        if _CONFIG.value is None or _WORKDIR.value is None:
            raise InputError("expected --config=FILE and --workdir=FOLDER; see README.md")
        run(Path(_WORKDIR.value).expanduser())
    except InputError as error:
        if _TRACEBACK.value:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    app.run(main)
