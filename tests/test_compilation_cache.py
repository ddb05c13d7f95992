"""Compiled programs are kept in the user's cache folder, and never in anybody's way."""

import os
import stat
import sys
import warnings

import jax
import pytest
from test_imports import assert_clean, run_python

from coop_jax import compilation_cache

SWITCHES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "TF_CPP_MIN_LOG_LEVEL",
)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """What a command sets in a process that has not imported JAX, with these variables set."""

    def keep(**variables):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            patch.delitem(sys.modules, "jax")
            patch.setenv("XDG_CACHE_HOME", str(tmp_path))
            for name in SWITCHES:  # set first, so that what is set here is undone
                patch.setenv(name, "")
                patch.delenv(name)
            for name, value in variables.items():
                patch.setenv(name, value)
            compilation_cache.keep()
            return {name: os.environ[name] for name in SWITCHES if name in os.environ}

    return keep


def test_programs_are_kept_in_the_users_folder(kept, tmp_path):
    folder = tmp_path / "coop_jax" / "compiled"
    assert kept() == dict(zip(SWITCHES, (str(folder), str(500 * 2**20), "0", "3"), strict=True))
    assert folder.is_dir()


def test_the_users_own_switches_hold(kept, tmp_path):
    own = {"JAX_COMPILATION_CACHE_DIR": "/tmp/mine"}
    assert kept(**own) == own and not list(tmp_path.iterdir())
    assert kept(JAX_COMPILATION_CACHE_MAX_SIZE="7")["JAX_COMPILATION_CACHE_MAX_SIZE"] == "7"


def test_nothing_is_set_in_a_process_that_has_jax(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compilation_cache.keep()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ and not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_own", [False, True])
def test_several_processes_keep_nothing_but_where_the_user_says(is_own, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "shared" if is_own else compilation_cache.folder()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place))
    try:
        compilation_cache.leave()
        assert jax.config.jax_enable_compilation_cache is is_own
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize("why", ["a file", "no home"])
def test_a_folder_that_cannot_be_written_is_no_error(why, kept, tmp_path):
    (tmp_path / "coop_jax").write_text("a file")
    assert kept(**{} if why == "a file" else {"XDG_CACHE_HOME": "", "HOME": "nowhere"}) == {}


def test_a_folder_that_others_may_write_is_not_used(kept, tmp_path):
    folder = tmp_path / "coop_jax" / "compiled"
    assert kept() and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o770)
    assert kept() == {}


def test_what_a_killed_process_left_is_removed(kept, tmp_path):
    folder = tmp_path / "coop_jax" / "compiled"
    folder.mkdir(parents=True, mode=0o755)
    for name in ("whole-cache", "whole-atime", "torn-cache"):
        (folder / name).write_bytes(b"")
    kept()
    assert {path.name for path in folder.iterdir()} == {"whole-cache", "whole-atime"}


@pytest.mark.heavy
def test_the_second_call_compiles_nothing(tmp_path):
    code = f"""
        import os
        del os.environ["JAX_COMPILATION_CACHE_DIR"]
        del os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]
        os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r}
        from coop_jax import compilation_cache
        compilation_cache.keep()
        import jax
        jax.jit(lambda x: x + 1)(1.0)
        """
    assert_clean(run_python(code))
    folder = tmp_path / "coop_jax" / "compiled"
    kept = sorted(folder.glob("*-cache"))
    used = {path: path.read_bytes() for path in folder.glob("*-atime")}
    assert kept and len(used) == len(kept)
    assert_clean(run_python(code))
    assert sorted(folder.glob("*-cache")) == kept
    # JAX writes the time of a program that it takes from the folder, but not of one that is there
    # when it has been compiled again.
    assert all(path.read_bytes() != time for path, time in used.items())
