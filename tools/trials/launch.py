"""A command of the package in a new process, with small chunks: launch.py COMMAND ..."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from coop_jax import compilation_cache

    compilation_cache.keep()
    from trials.process import launch

    sys.exit(launch(sys.argv[1:]))
