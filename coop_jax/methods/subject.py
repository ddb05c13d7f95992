"""A method with something to learn from, on which `coop_jax.methods.checks` tries the contract."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from coop_jax import clip as clip_package
from coop_jax import config as config_module
from coop_jax import evaluate, parallel
from coop_jax.classes import Classes
from coop_jax.data import memory
from coop_jax.errors import InputError
from coop_jax.frozen import Frozen
from coop_jax.methods import registry
from coop_jax.methods.base import Images
from coop_jax.run import Losses, TrainingRun, Watcher, learn
from coop_jax.train import Progress

NAMES = ("circle", "hen-of-the-woods", "a", "seven")
SHOTS, STEPS, BATCH_SIZE = 2, 4, 5
CLOSE, LOGITS, LEARNED = 1e-4, 3e-5, 5e-4
"""The largest difference, relative, of losses; of logits; of what was learned.

The gradient of an absolute difference jumps where it vanishes (PromptSRC, 2.8e-4 after four steps);
all other methods are within 1e-4.
"""


class ContractError(InputError):
    """A method does not keep the contract."""


def expect(holds: Any, message: str) -> None:
    """Go on where something holds.

    Raises:
        ContractError: it does not.
    """
    if not holds:
        raise ContractError(message)


def expect_close(got: Any, expected: Any, tolerance: float, message: str) -> None:
    """Go on where the arrays of two trees hardly differ.

    Raises:
        ContractError: the norm of a difference is more than that of what is expected times the
            tolerance.
    """
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        same_shape, size = one.shape == other.shape, np.linalg.norm(other)
        error = np.linalg.norm(one - other) if same_shape else np.inf
        expect(
            error <= tolerance * max(size, 1e-6),
            f"{message}, got a difference of {error:.2g} where the whole is {size:.2g}",
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A method with something to learn from.

    Attributes:
        name: of a method, or the path of its file.
        settings: those that differ from its `default_config()`.
        folder: where checkpoints may be written.
        devices: 2 of which are compared with one.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path = Path()
    devices: int = 2

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The settings of its runs."""
        config = config_module.default(self.name)
        return config | {"method": config["method"] | dict(self.settings)}

    @functools.cached_property
    def dataset(self) -> Any:
        """Small pictures, different for every class."""
        size = clip_package.load(self.config["clip"]["name"])[0].config.vision.image_size

        def pictures(seed: int, shots: int) -> np.ndarray:
            colours = np.random.default_rng(0).integers(64, 192, (len(NAMES), 1, 1, 3))
            noise = np.random.default_rng(seed).integers(-64, 64, (shots, 1, size, size, 3))
            return (colours + noise).reshape(-1, size, size, 3).astype(np.uint8)

        labels = np.tile(np.arange(len(NAMES)), SHOTS)
        dataset = memory.dataset(pictures(1, SHOTS), labels, NAMES)
        others = {
            split: memory.labelled(
                memory.examples(pictures(seed, SHOTS), split=split), labels, NAMES
            )
            for seed, split in ((2, "val"), (3, "test"))
        }
        return dataclasses.replace(dataset, **others)

    def frozen(self, devices: int = 1) -> Frozen:
        """Return the embedded CLIP on so many devices."""
        frozen = Frozen(self.config, self.dataset)
        frozen.mesh = parallel.create_mesh(jax.devices()[:devices])
        return frozen

    def method(self, names: Sequence[str] = NAMES, seed: int = 1) -> Any:
        """Return the method as new, for classes of the dataset or others."""
        classes = Classes(tuple(names)).moved_from(Classes(NAMES))
        dataset = dataclasses.replace(self.dataset, classes=classes)
        return self.frozen().create(dataset, seed)

    def run(self, seed: int = 1, folder: str = "", devices: int = 1) -> TrainingRun:
        """Return a run of few steps; with a folder, one that keeps checkpoints."""
        kept = self.folder / folder if folder else None
        frozen = self.frozen(devices)
        made = TrainingRun(frozen, self.dataset, SHOTS, seed, kept, self.dataset.train)
        made.stages = tuple(
            stage
            if stage.epochs == 0
            else dataclasses.replace(
                stage, epochs=STEPS, steps_per_shot=None, batch_size=BATCH_SIZE
            )
            for stage in made.stages
        )
        return made

    @functools.cached_property
    def trained(self) -> tuple[TrainingRun, np.ndarray]:
        """A run that has learned, and its losses."""
        return self.learned(self.run())

    @staticmethod
    def learned(made: TrainingRun) -> tuple[TrainingRun, np.ndarray]:
        """Let a run learn; return it, and its losses."""
        losses = Losses()
        learn([made], [losses])
        return made, losses.values

    def images(self, method: Any) -> Images:
        """Return the test images as the method takes them."""
        return self.frozen().images_of(method, self.dataset.test)(np.arange(len(self.dataset.test)))

    def logits(self, method: Any, devices: int = 1) -> np.ndarray:
        """Return the compiled logits of the test images."""
        frozen = self.frozen(devices)
        return evaluate.logits(method, frozen.clip, self.images(method), frozen.mesh)


class Stop(Watcher):
    """Ends a run as Ctrl-C does, after so many chunks.

    Attributes:
        after: their number.
        noted: those that came.
    """

    def __init__(self, after: int):
        self.after, self.noted = after, 0

    def note(self, progress: Progress) -> None:
        """Count a chunk.

        Raises:
            KeyboardInterrupt: it was the last.
        """
        self.noted += 1
        if self.noted == self.after:
            raise KeyboardInterrupt


def values(method: Any) -> dict[str, np.ndarray]:
    """Return what a method saves."""
    return {name: np.asarray(v[...]) for name, v in registry.saved(method).items()}
