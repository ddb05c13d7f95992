"""Runs that are trained side by side are saved so that all can go on from the same chunk."""

import numpy as np
import pytest
from test_resume import flip
from test_train import problem

from coop_jax import interruption, train
from coop_jax.checkpoint import Checkpoints


class Recorded(Checkpoints):
    """Writes down when it saves and when it has waited until all is on disk."""

    def __init__(self, folder, name, events):
        super().__init__(folder)
        self._name, self._events = name, events

    def save(self, state, *, last=False):
        self._events.append(("save", self._name, int(state["step"]), last))
        super().save(state, last=last)

    def wait(self):
        super().wait()
        self._events.append(("wait", self._name))


@pytest.fixture
def together(tiny_clip, tiny_tokenizer, one_device, tmp_path):
    """Two runs in chunks of a step or two, and what their checkpoints do."""
    events = []
    problems = [problem(tiny_clip, tiny_tokenizer, n_ctx=3, seed=seed) for seed in (1, 2)]
    saved = [Recorded(tmp_path / name, name, events) for name in "ab"]
    runs = [
        train.Run(method, batches, images_of, checkpoints)
        for (method, _, batches, images_of), checkpoints in zip(problems, saved, strict=True)
    ]
    loop = train.fit(runs, tiny_clip, problems[0][1], one_device, images_per_chunk=20)
    yield loop, events, [parts[0] for parts in problems], tmp_path
    for checkpoints in saved:
        checkpoints.close()


def test_none_is_saved_before_all_are_on_disk_as_of_the_chunk_before(together):
    loop, events, _, _ = together
    ends = [chunk[0].done for chunk in loop]
    assert len(ends) >= 4
    saves = [event for event in events if event[0] == "save"]
    last = ends[-1]
    assert saves == [("save", name, end, end == last) for end in ends for name in "ab"]
    for end in ends:
        first = events.index(("save", "a", end, end == last))
        assert sorted(events[first - 2 : first]) == [("wait", "a"), ("wait", "b")]


def test_a_process_that_is_told_to_end_has_saved_every_run(together, monkeypatch):
    """What is on disk is the end of the chunk in hand, of each run its own."""
    loop, events, methods, folder = together
    next(loop)
    step = next(loop)[0].done
    learned = [np.array(method.context[...]) for method in methods]
    monkeypatch.setattr(interruption, "is_wanted", lambda: True)
    with pytest.raises(interruption.Stopped, match=rf"step {step} of 8 of each of 2 runs"):
        next(loop)
    assert sorted(events[-2:]) == [("wait", "a"), ("wait", "b")]
    assert {(folder / name / str(step)).is_dir() for name in "ab"} == {True}
    assert np.abs(learned[0] - learned[1]).max() > 1e-3


def test_a_run_alone_says_its_own_step_alone(
    tiny_clip, tiny_tokenizer, one_device, tmp_path, monkeypatch
):
    method, stage, batches, images_of = problem(tiny_clip, tiny_tokenizer, n_ctx=3)
    with Checkpoints(tmp_path) as saved:
        runs = [train.Run(method, batches, images_of, saved)]
        loop = train.fit(runs, tiny_clip, stage, one_device, images_per_chunk=20)
        done = next(loop)[0].done
        monkeypatch.setattr(interruption, "is_wanted", lambda: True)
        with pytest.raises(interruption.Stopped, match=rf"^saved after step {done} of 8$"):
            next(loop)


def test_a_damaged_checkpoint_of_the_first_step_is_made_again(
    tiny_clip, tiny_tokenizer, one_device, tmp_path, caplog
):
    steps = []
    for attempt in range(3):
        method, stage, batches, images_of = problem(tiny_clip, tiny_tokenizer, n_ctx=3)
        with Checkpoints(tmp_path) as saved:
            runs = [train.Run(method, batches, images_of, saved, begins=steps.append)]
            loop = train.fit(runs, tiny_clip, stage, one_device, images_per_chunk=5)
            next(loop)
            next(loop)
            loop.close()
        if attempt == 0:
            flip(tmp_path / "1")
    assert steps == [0, 0, 1] and caplog.text.count("is damaged") == 1
