"""The user's folder of compiled programs, so that the second call of a command compiles nothing."""

import os
import stat
import sys
import warnings
from pathlib import Path

LIMIT = 500 * 2**20
"""Bytes that the folder may take; what was used longest ago goes first."""


def keep() -> None:
    """Let JAX keep what it compiles in `folder()`; to be called before JAX is imported.

    JAX's own switches hold where the user has set them: `JAX_COMPILATION_CACHE_DIR` names another
    folder, `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. Nothing is kept either where the
    folder cannot be written or others could write it, too, and nothing is said: a program is then
    compiled once more.
    """
    place = folder()
    chosen_by_user = "JAX_COMPILATION_CACHE_DIR" in os.environ
    if chosen_by_user or "jax" in sys.modules or not _is_ready(place):
        return
    _remove_unfinished(place)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LIMIT))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    # Of some processors XLA writes at every program from the cache that it was made for another
    # machine, and means hints to its compiler (jax-ml/jax#38445). Real errors are raised as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", "Error .* persistent compilation cache entry")


def leave() -> None:
    """Keep nothing in `folder()` after all, in one of several processes that train together.

    JAX lets the first process alone write. On hosts whose home folders are their own, it would then
    find programs that the others still compile, and GPUs share the search for the fastest kernels
    between all processes: the others would wait for it.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(folder()):
        import jax

        jax.config.update("jax_enable_compilation_cache", False)


def folder() -> Path:
    """`coop_jax/compiled` in `$XDG_CACHE_HOME` or, where that is not set, in `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "coop_jax" / "compiled"


def _is_ready(place: Path) -> bool:
    """Tell whether programs can be kept there, by this user alone: JAX runs what it finds."""
    if not place.is_absolute():
        return False
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.stat()
    except OSError:
        return False
    is_own = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_own and os.access(place, os.R_OK | os.W_OK | os.X_OK)


def _remove_unfinished(place: Path) -> None:
    """Remove programs that a process was writing when it was killed: JAX writes their time last."""
    try:
        names = {entry.name for entry in os.scandir(place)}
        for name in names:
            if name.endswith("-cache") and name.removesuffix("-cache") + "-atime" not in names:
                (place / name).unlink(missing_ok=True)
    except OSError:
        return
