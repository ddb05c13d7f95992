"""The contract as functions that anybody runs on a method, by name or by the path of a file.

python -m coop_jax.methods.checks path/to/mine.py
python -m coop_jax.methods.checks maple --set depth=2

A check takes a `Subject` and raises `ContractError` where the method does not keep what the frame
counts on. Everything is tried through the frame itself: the embedded CLIP, a few small pictures and
a few steps of every stage. The command takes two virtual devices of the processor.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from coop_jax import clip as clip_package
from coop_jax import command_line, train
from coop_jax import config as config_module
from coop_jax.classes import Classes
from coop_jax.clip.config import DTYPES
from coop_jax.commands import options
from coop_jax.errors import InputError
from coop_jax.methods import registry
from coop_jax.methods.base import Batch, Fixed, Kept, Learned, Split
from coop_jax.methods.subject import (
    CLOSE,
    LEARNED,
    LOGITS,
    NAMES,
    ContractError,
    Stop,
    Subject,
    expect,
    expect_close,
    values,
)
from coop_jax.printing import one_line
from coop_jax.run import learn


def check_file(subject: Subject) -> None:
    """The file says what the method is called, where it is from and which settings it has."""
    made_of = registry.module(subject.name)
    for name in ("NAME", "PAPER"):
        text = getattr(made_of, name, None)
        expect(isinstance(text, str) and text, f"expected {name} as a text, got {text!r:.80}")
    settings = made_of.default_config()
    plain = (bool, int, float, str, tuple)
    wrong = [name for name, value in settings.items() if not isinstance(value, plain)]
    expect(not wrong, f"expected settings of plain types, got others for {', '.join(wrong)}")
    known = set(config_module.default())
    unknown = sorted(set(registry.recipe(subject.name)) - known)
    expect(not unknown, f"recipe: expected settings of a run, got {', '.join(unknown)}")


def check_variables(subject: Subject) -> None:
    """Variables are none of the CLIP's, have their rows, and depend on the seed alone."""
    method, again, other = (subject.method(seed=seed) for seed in (1, 1, 2))
    of_clip = {id(leaf) for leaf in jax.tree.leaves(nnx.state(subject.frozen().clip))}
    for path, variable in nnx.to_flat_state(nnx.state(method)):
        name = registry.dotted(path)
        shared = [leaf for leaf in jax.tree.leaves(variable) if id(leaf) in of_clip]
        expect(not shared, f"{name}: expected no array of the CLIP, got one; use the argument")
        rows = variable.shape[0] if variable.get_metadata().get("per_class") else len(NAMES)
        expect(rows == len(NAMES), f"{name}: expected a row per class, got {rows} rows")
    for kind in (Learned, Kept, Fixed):
        states = [nnx.state(made, kind) for made in (method, again, other)]
        expect_close(states[1], states[0], 0, f"expected the same {kind.__name__} of one seed")
        if kind is Fixed:
            expect_close(states[2], states[0], 0, "expected Fixed variables of no seed")


def check_logits(subject: Subject) -> None:
    """Logits are finite float32 of every image and class, compiled or not."""
    method = subject.method()
    compiled = subject.logits(method)
    shape = len(subject.dataset.test), len(NAMES)
    expect(compiled.shape == shape, f"logits: expected the shape {shape}, got {compiled.shape}")
    expect(compiled.dtype == np.float32, f"logits: expected float32, got {compiled.dtype}")
    expect(np.isfinite(compiled).all(), "logits: expected finite ones, got others")
    with jax.disable_jit():
        eager = subject.logits(method)
    expect_close(compiled, eager, LOGITS, "expected the same logits compiled and not")


def check_losses(subject: Subject) -> None:
    """The terms of every stage's loss are scalars, in which a row of weight zero does not count."""
    made = subject.run()
    for number, stage in enumerate(made.stages):
        member = made.member(number, None)
        if stage.epochs != 0:
            data = made.method.prepare(subject.frozen().clip, number, made.data)
            _check_terms(made.method, subject.frozen().clip, data.train)
        for _ in train.fit([member], made.frozen.clip, stage, made.frozen.mesh):
            pass


def _check_terms(method: Any, clip: Any, split: Split) -> None:
    images = jax.tree.map(lambda array: jnp.asarray(array[0]), split.images(1))
    key, count = jax.random.key(0), len(split)
    adapted = method.adapt(nnx.clone(clip), key)
    texts = method.texts(adapted, key)

    def terms(rows: np.ndarray) -> Mapping[str, Any]:
        weights = jnp.asarray(rows < count, jnp.float32)
        rows = np.minimum(rows, count - 1)
        batch = Batch(
            jax.tree.map(lambda a: a[rows], images), jnp.asarray(split.labels[rows]), weights, key
        )
        return method.losses(adapted, texts, batch)

    plain, padded = terms(np.arange(count)), terms(np.arange(count + 3))
    expect(isinstance(plain, Mapping) and plain, "losses: expected terms by name, got none")
    for name, term in plain.items():
        good = np.shape(term) == () and np.isfinite(term)
        expect(good, f"losses: expected {name} as a finite scalar, got {term!s:.80}")
        message = f"losses: expected {name} without the rows whose weight is zero"
        expect_close(padded[name], term, CLOSE, message)


def check_training(subject: Subject) -> None:
    """Training moves what learns, by finite steps, and leaves the CLIP as it was, bit for bit."""
    made, losses = subject.trained
    name, config = subject.config["clip"]["name"], subject.config["clip"]
    fresh = clip_package.load(name, dtype=DTYPES[config["dtype"]])[0]
    message = "expected the frozen CLIP as it was before training"
    expect_close(nnx.state(subject.frozen().clip), nnx.state(fresh), 0, message)
    expect(np.isfinite(losses).all(), "expected finite losses, got others")
    new, started = values(made.method), values(subject.method())
    for name, value in new.items():
        expect(np.isfinite(value).all(), f"{name}: expected finite values, got others")
    if not any(stage.epochs != 0 for stage in made.stages):
        return
    still = [
        name
        for name, variable in registry.saved(made.method).items()
        if isinstance(variable, Learned) and np.array_equal(new[name], started[name])
    ]
    expect(not still, f"expected every Learned variable to move, got none for {', '.join(still)}")


def check_checkpoints(subject: Subject) -> None:
    """A run that was stopped goes on to the same values, and is read again as it ended."""
    made, _ = subject.trained
    if not made.stages:
        return
    stop = Stop(after=min(2, made.steps))
    with tempfile.TemporaryDirectory(dir=subject.folder) as folder:
        try:
            learn([subject.run(folder=folder)], [stop], images_per_chunk=1)
        except KeyboardInterrupt:
            pass
        else:
            raise ContractError(f"expected {made.steps} steps, got {stop.noted} chunks of them")
        resumed = subject.run(folder=folder)
        [begun] = learn([resumed], images_per_chunk=1)
        expect(begun or stop.after == 1, "expected a stopped run to go on, got one from its start")
        restored = subject.run(folder=folder).restore()
    expect_close(
        values(resumed.method), values(made.method), 0, "expected a stopped run to end the same"
    )
    expect_close(
        subject.logits(restored),
        subject.logits(made.method),
        0,
        "expected the same logits of what is read from a checkpoint",
    )


def check_devices(subject: Subject) -> None:
    """Several devices learn and predict the same as one."""
    expect(
        len(jax.devices()) >= subject.devices,
        f"expected {subject.devices} devices, got {len(jax.devices())}; set jax_num_cpu_devices",
    )
    made, losses = subject.trained
    several, others = subject.learned(subject.run(devices=subject.devices))
    message = f"expected the same of {subject.devices} devices as of one"
    expect_close(others, losses, CLOSE, f"losses: {message}")
    expect_close(
        values(several.method), values(made.method), LEARNED, f"what is learned: {message}"
    )
    logits = subject.logits(several.method, subject.devices)
    expect_close(logits, subject.logits(made.method), LOGITS, f"logits: {message}")


def check_runs(subject: Subject) -> None:
    """Runs that are trained in one program learn what each learns alone."""
    made, _ = subject.trained
    if not made.stages:
        return
    together = [subject.run(seed) for seed in (1, 2)]
    learn(together)
    alone = made, subject.learned(subject.run(2))[0]
    message = "expected a run beside another to learn what it learns alone"
    for beside, expected in zip(together, alone, strict=True):
        expect_close(values(beside.method), values(expected.method), LEARNED, message)


def check_classes(subject: Subject) -> None:
    """The classes may come in another order, and new ones are served or refused."""
    method = subject.trained[0].method
    trained, order = Classes(NAMES), [2, 0, 3, 1]
    logits = subject.logits(method)
    turned = subject.method([NAMES[label] for label in order])
    wanted = Classes(tuple(NAMES[label] for label in order)).moved_from(trained)
    moved = subject.logits(registry.move(method, turned, trained, wanted))
    message = "expected the same logits of the classes in another order"
    expect_close(moved, logits[:, order], LOGITS, message)
    others = (NAMES[1], "tench", "anemone")
    try:
        fresh, wanted = subject.method(others), Classes(others).moved_from(trained)
        moved = subject.logits(registry.move(method, fresh, trained, wanted))
    except InputError:
        return
    expect(np.isfinite(moved).all(), "expected finite logits of new classes, or a refusal")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    check_file,
    check_variables,
    check_logits,
    check_losses,
    check_training,
    check_checkpoints,
    check_devices,
    check_runs,
    check_classes,
)
"""All checks, the quickest first."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("method", metavar="METHOD", help="its name, or the path of its file")
    options.add_settings(parser)


def run(chosen: argparse.Namespace) -> int:
    """Run all checks, print a line for each, and return the exit code."""
    settings, failed = options.settings(chosen.method, chosen.set), 0
    registry.check_settings(chosen.method, settings)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(chosen.method, settings, Path(folder))
        subject.method()
        for check in CHECKS:
            try:
                check(subject)
                said = "ok"
            except Exception as error:  # a method's own code may raise anything
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                said, failed = f"failed: {kind}{one_line(error)}", failed + 1
            print(f"{check.__name__.removeprefix('check_'):12} {said}", flush=True)
    return command_line.USER_ERROR if failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    return command_line.main("methods.checks", __name__, words)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    sys.exit(main())
