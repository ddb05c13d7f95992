"""From what is typed to the exit code, whatever the command."""

import errno
import io
import signal
import sys

import pytest
from test_imports import assert_clean, run_python

from coop_jax import command_line
from coop_jax.__main__ import main
from coop_jax.commands import COMMANDS
from coop_jax.errors import InputError, MachineError

HOME = "~nobody_has_this_name/x"


@pytest.fixture
def refused(capsys):
    """Run a command that must end with one line and exit code 2; that line."""

    def run_refused(*words):
        assert main(list(words)) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err[len("error: ") : -1]

    return run_refused


def raising(error):
    """A command that ends so."""

    def run():
        raise error

    return run


def test_help_is_there_without_heavy_imports():
    own = "jax flax numpy PIL sklearn matplotlib transformers grain rich absl safetensors"
    code = f"""
        import sys
        from coop_jax.__main__ import main
        from coop_jax.commands import COMMANDS

        def refuse_heavy(*names):
            heavy = set(names) & set(sys.modules)
            assert not heavy, (sys.argv, heavy)

        assert main([]) == main(["--help"]) == 0
        refuse_heavy(*"{own}".split())
        for name, (module, _) in COMMANDS.items():
            if module.startswith("coop_jax.commands") or name == "run":
                assert main([name, "--help"]) == 0
                refuse_heavy(*"{own}".split())
        for name in ("sweep", "report", "check", "prepare"):
            assert main([name, "--help"]) == 0
            refuse_heavy("jax", "flax", "sklearn", "matplotlib", "transformers")
        """
    assert_clean(run_python(code))


def test_help_begins_with_the_common_cases_and_lists_all_commands(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out.splitlines()
    examples = [line for line in out if line.startswith("  coop_jax ")]
    names = [line.split()[0] for line in out[out.index("All commands:") + 2 :] if line[:2] == "  "]
    assert out.index(examples[0]) < out.index("All commands:")
    assert names[:13] == list(COMMANDS)
    assert {example.split()[1] for example in examples} <= set(names)


def test_an_unknown_command_is_told_all_that_there_are(refused):
    line = refused("fti", "photographs")
    assert line.endswith("got 'fti'; did you mean fit?")
    assert all(name in line for name in COMMANDS)
    assert refused("xyzzy").endswith("choose one")


FIT, RUN = ("fit", "images", "mine"), ("run", "--config=quickstart")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((*FIT, "--shots=0"), "--shots: expected a whole number of at least 1, got '0'"),
        ((*FIT, "--shots", "few"), "--shots: expected a whole number of at least 1, got 'few'"),
        ((*FIT, "--epochs=-1"), "--epochs: expected a whole number of at least 0, got '-1'"),
        ((*FIT, "--learning-rate=x"), "--learning-rate: expected a number, got 'x'"),
        ((*FIT, "--dtype=f8"), "--dtype: expected one of float32, bfloat16, float16, got 'f8'"),
        ((*FIT, "--shotz=1"), "expected coop_jax fit's own options, got --shotz=1; did you mean"),
        ((*FIT, "--shots"), "--shots: expected one argument, got none; see coop_jax fit --help"),
        (FIT[:2], "expected saved, got none; see coop_jax fit --help"),
        (("fit", "images", "gs://b/mine"), "saved: expected a path that this machine sees, got"),
        (RUN, "expected --workdir, got none; see coop_jax run --help"),
        (
            (*RUN, "--workdir=gs://b/w"),
            "--workdir: expected a path that this machine sees, got",
        ),
        ((*RUN, "--workdir=http://e/w"), "--workdir: expected a path that this machine sees, got"),
        ((*RUN, "--workdir=w", "more"), "expected coop_jax run's own options, got more; see"),
        ((*RUN, "--workdir=w", "--config.epochs=x"), "--config.epochs: expected a whole number, g"),
        ((*RUN, "--workdir=w", "--config.epochs"), "--config.epochs: expected a whole number, got"),
        ((*RUN, "--workdir=w", "--config.lr=1"), "--config.lr: expected one of"),
        (
            ("run", "--config=quikstart", "--workdir=w"),
            "--config: expected one of cocoop_base",
        ),
        (
            ("predict", "mine", "a.png", "--top=0"),
            "--top: expected a whole number of at least 1",
        ),
        (
            ("check", "dtd", "--config.epochs=1"),
            "expected coop_jax check's own options, got --c",
        ),
        (("sweep", "quickstart", "--workdir=w", "--cpus=-1"), "--cpus: expected 0 to 1000000, got"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_option_as_typed(
    words, line, refused, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert refused(*words).startswith(line)
    assert not list(tmp_path.iterdir())


def test_settings_are_read_with_a_sign_or_a_space():
    words = ["--config=a", "--config.b=(1, 2)", "--config.c", "3", "--config.d", "--workdir=w"]
    chosen = command_line.Parser("run", sys.modules["coop_jax.main"]).read(words)
    assert chosen.settings == ["b=(1, 2)", "c=3", "d"]


def test_options_and_words_come_in_any_order():
    module = sys.modules["coop_jax.sweep.__main__"]
    chosen = command_line.Parser("sweep", module).read(["a", "--ray", "b", "--workdir=w", "c"])
    assert (chosen.configs, chosen.ray) == (["a", "b", "c"], "")


def test_ends(capsys):
    before = signal.getsignal(signal.SIGINT)
    assert command_line.end(lambda: 7) == 7
    assert command_line.end(raising(InputError("expected a,\n got b"))) == 2
    assert capsys.readouterr().err == "error: expected a, got b\n"
    assert command_line.end(raising(KeyboardInterrupt())) == 130
    assert command_line.end(raising(KeyboardInterrupt()), resumes=True) == 130
    interrupted = "interrupted\ninterrupted; the same command goes on where it stopped\n"
    assert capsys.readouterr().err == interrupted
    assert command_line.end(raising(BrokenPipeError())) == 1
    assert command_line.end(raising(MachineError("expected a,\n got b"))) == 1
    assert capsys.readouterr().err == "error: expected a, got b\n"
    with pytest.raises(InputError):
        command_line.end(raising(InputError("a")), traceback=True)
    with pytest.raises(OSError, match="a library's own"):
        command_line.end(raising(OSError("a library's own")))
    lost = FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/x")
    assert command_line.end(raising(lost)) == 1
    assert capsys.readouterr().err == (
        "error: expected to read and write files, got No such file or directory (runs/x); bring its"
        " folder back, and the same command goes on\n"
    )
    with pytest.raises(FileNotFoundError):
        command_line.end(raising(lost), traceback=True)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_full_standard_output_is_one_line(length, capsys, monkeypatch):
    """Printed at once or not before the end, by a command or by its help."""
    for run in (lambda: print("x" * length) or 0, lambda: main(["fit", "--help"])):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert command_line.end(run) == 1
            monkeypatch.undo()
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "make room" in err


def test_a_closed_standard_output_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["report", "absent"]) == 1
    assert "standard output" in capsys.readouterr().err


def test_a_closed_standard_error_harms_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["fti"]) == 2 and sys.stdout.getvalue() == ""
    sys.stderr.close()


@pytest.mark.parametrize("how", ["raised", "suppressed", "logged", "unraisable", "renamed"])
def test_ctrl_c_ends_a_process(how):
    """Even where a library passes over the exception, or says what it thinks of it."""
    finished = run_python(
        f"""
        import contextlib
        import logging
        import os
        import signal
        import time

        from coop_jax import command_line, interruption

        class Passed:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        def run():
            if "{how}" == "unraisable":
                Passed()
            with contextlib.suppress(KeyboardInterrupt if "{how}" == "suppressed" else ValueError):
                try:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(60)
                except KeyboardInterrupt:
                    logging.exception("a library's complaint")
                    if "{how}" == "renamed":
                        raise RuntimeError("made of it") from None
                    raise
            time.sleep(60)

        interruption.PATIENCE = 0.3 if "{how}" in ("suppressed", "unraisable") else 60
        raise SystemExit(command_line.end(run, resumes=True))
        """
    )
    said = "interrupted; the same command goes on where it stopped\n"
    assert (finished.returncode, finished.stderr) == (130, said)


@pytest.mark.parametrize(("signals", "patience"), [(1, 0.3), (2, 60)])
def test_a_signal_ends_a_process_that_does_not_come_back_to_python(signals, patience):
    """As a long program of XLA: after some time, or at a second signal."""
    finished = run_python(
        f"""
        import hashlib
        import os
        import signal
        import threading
        import time

        from coop_jax import command_line, interruption

        def send():
            for _ in range({signals}):
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGTERM)

        def run():
            threading.Thread(target=send, daemon=True).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

        interruption.PATIENCE = {patience}
        raise SystemExit(command_line.end(run, resumes=True))
        """
    )
    said = "stopped by SIGTERM; the same command goes on where it stopped\n"
    assert (finished.returncode, finished.stderr) == (143, said)


def test_a_platform_that_is_not_there_is_one_line(tmp_path):
    """Misspelt, or an accelerator that this machine has not; with JAX's own words."""
    finished = run_python(
        f"""
        import os
        import sys

        import numpy as np

        from coop_jax.__main__ import main

        for platform in ("gpuu", "cuda"):
            os.environ["JAX_PLATFORMS"] = platform
            import jax

            jax.config.update("jax_platforms", platform)
            from coop_jax import Classifier
            from coop_jax.errors import InputError, MachineError

            assert main(["run", "--config=quickstart", "--workdir={tmp_path / "w"}"]) == 2
            assert main(["sweep", "quickstart", "--workdir={tmp_path / "w"}"]) == 2
            try:
                Classifier("tiny").fit([np.zeros((8, 8, 3), np.uint8)] * 2, ["a", "b"])
            except InputError as error:
                print(error, file=sys.stderr)
            assert main(["--version", "--verbose"]) == 0
        """
    )
    lines = finished.stderr.splitlines()
    assert finished.returncode == 0 and len(lines) == 6, finished.stderr
    assert all("got 'gpuu' (JAX says: Unable to initialize" in line for line in lines[:3])
    assert all("got 'cuda' (JAX says: " in line for line in lines[3:])
    assert not (tmp_path / "w").exists()
    assert finished.stdout.startswith("coop_jax ") and "none: JAX_PLATFORMS" in finished.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["interpret", HOME],
        ["check", HOME],
        ["run", f"--config={HOME}.py", "--workdir=w"],
        ["fit", HOME, "learned"],
        ["report", HOME],
    ],
)
def test_a_home_that_nobody_has_is_a_name_like_others(words, capsys):
    assert main(words) == 2
    assert HOME in capsys.readouterr().err
