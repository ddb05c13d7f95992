"""All pictures of one training run, rendered ahead of it in parallel."""

import concurrent.futures
import dataclasses
import multiprocessing

import numpy as np

from tiny_clip import styles
from tiny_clip.fonts import Face
from tiny_clip.render import Picture, render
from tiny_clip.subjects import SUBJECTS, Subject, probabilities

CHUNK = 1000


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pictures `[n, 32, 32]` uint8, and what each shows and how."""

    pixels: np.ndarray
    subjects: list[Subject]
    descriptors: list[tuple[str, ...]]


def draw(faces: list[Face], seed: int, index: int) -> tuple[Subject, Picture]:
    """The picture number `index`: a function of its arguments alone."""
    generator = np.random.default_rng((seed, index))
    subject = SUBJECTS[generator.choice(len(SUBJECTS), p=probabilities())]
    face = faces[generator.integers(len(faces))]
    return subject, render(subject, face, styles.draw(generator), generator)


def _chunk(faces: list[Face], seed: int, indices: range) -> list[tuple[Subject, Picture]]:
    return [draw(faces, seed, index) for index in indices]


def fill(faces: list[Face], count: int, seed: int, workers: int) -> Pool:
    """`count` pictures; the same ones whatever the number of workers."""
    chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as executor:
        futures = [executor.submit(_chunk, faces, seed, chunk) for chunk in chunks]
        drawn = [pair for future in futures for pair in future.result()]
    return Pool(
        pixels=np.stack([picture.pixels for _, picture in drawn]),
        subjects=[subject for subject, _ in drawn],
        descriptors=[picture.descriptors for _, picture in drawn],
    )
