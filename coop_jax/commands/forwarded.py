"""Commands that are modules of their own, whose arguments go through as they are."""

import importlib
from collections.abc import Sequence

COMMANDS = {
    "run": ("coop_jax.main", "Train and evaluate as a config says"),
    "sweep": ("coop_jax.sweep.__main__", "Run many configs, on this machine or with Ray"),
    "report": ("coop_jax.report.__main__", "Tables and pictures of results"),
    "check": ("coop_jax.data.check", "Find out what is missing or broken in datasets"),
    "prepare": ("coop_jax.data.prepare", "Make datasets quick to read"),
}
"""By name, the module and what it does."""

RUN_HELP = """usage: coop_jax run --config=FILE[:ARGUMENT] --workdir=FOLDER [options]

Train and evaluate as a config says; the same command again resumes where it stopped.

  coop_jax run --config=configs/quickstart.py --workdir=/tmp/quickstart
  coop_jax run --config=configs/coop_few_shot.py:dtd --config.data_dir=DATA --workdir=runs/dtd

options:
  -h, --help            show this help message and exit
  --config=FILE         the experiment, e.g. configs/quickstart.py
  --config.KEY=VALUE    change a setting, e.g. --config.clip.name=ViT-B/16 --config.shots="(1,4)"
  --workdir=FOLDER      for results and checkpoints
  --traceback           show the traceback of a user error
  --distributed         one of several processes, on a TPU pod slice or a cluster
  --coordinator=HOST:PORT --processes=N --process=I
                        the same where the cluster does not say it; processes count from 0
"""


def run(name: str, arguments: Sequence[str]) -> int:
    """Hand the arguments to the command's module; the exit code."""
    if name == "run" and {"-h", "--help"} & set(arguments):
        print(RUN_HELP, end="")
        return 0
    module = importlib.import_module(COMMANDS[name][0])
    if name == "run":
        return module.app.run(
            module.main, ["coop_jax run", *arguments], flags_parser=module.parse_flags
        )
    return module.main(list(arguments))
