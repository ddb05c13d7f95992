"""Checkpoints are as they were saved, or the one before them is used."""

import asyncio
import collections
import gc
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from coop_jax.checkpoint import Checkpoints, together
from coop_jax.errors import InputError, MachineError

NUMBERS = np.arange(1000, dtype=np.float32)


def state(step):
    return {"learned": {"a": jnp.asarray(NUMBERS * step)}, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 3, 5):
            checkpoints.save(state(step), last=step == 5)
    return folder


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1] = b"\xff"
    path.write_bytes(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace(path):
    """Put a folder in the place of a file, and the other way round."""
    is_folder = path.is_dir()
    remove(path)
    path.write_text("") if is_folder else path.mkdir()


@pytest.mark.parametrize("harm", [halve, empty, flip, remove, replace])
def test_the_checkpoint_before_a_damaged_one_is_used(saved, tmp_path, caplog, harm):
    """Every file and folder of the latest is damaged."""
    used = collections.Counter()
    for place in sorted(path.relative_to(saved) for path in (saved / "5").rglob("*")):
        if harm not in (remove, replace) and (saved / place).is_dir():
            continue
        folder = tmp_path / "harmed"
        shutil.copytree(saved, folder)
        harm(folder / place)
        caplog.clear()
        with Checkpoints(folder) as checkpoints:
            target = state(0)
            is_last = checkpoints.ended(target) is not None
            found = [checkpoints.restore(target, step) for step in checkpoints.steps()]
            restored = next(state for state in found if state is not None)
            step = int(restored["step"])
            assert step == (5 if is_last else 3)
            np.testing.assert_array_equal(restored["learned"]["a"], NUMBERS * step)
            if step == 3:
                assert f"{folder / '5'}: is damaged" in caplog.messages[0]
            checkpoints.forget(after=step)
            checkpoints.save(state(7), last=True)
        used[step] += 1
        shutil.rmtree(folder)
    assert used[3] > 5 and used[5] <= 3, used


def test_two_are_kept_and_leftovers_go(saved, tmp_path):
    folder = tmp_path / "left"
    shutil.copytree(saved, folder)
    (folder / "7.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(folder, ["one", "other"]) as checkpoints:
        assert sorted(path.name for path in folder.iterdir()) == ["3", "5"]
        assert checkpoints.steps() == [5, 3] and together(folder) == []
        checkpoints.save(state(7))
        checkpoints.wait()
        assert checkpoints.steps() == [7, 5] and together(folder) == ["one", "other"]
        assert checkpoints.ended(state(0)) is None
    assert sorted(path.name for path in folder.iterdir()) == ["5", "7"]


def test_what_cannot_be_written_is_one_line(tmp_path):
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(state(1), last=True)
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").write_text("in the way")
        with pytest.raises(MachineError, match=r"expected to write a checkpoint, got ") as said:
            checkpoints.save(state(2), last=True)
        assert "\n" not in str(said.value)
    with pytest.raises(InputError, match=r"expected to keep checkpoints, got .*File exists"):
        Checkpoints(tmp_path / "a")


def test_of_tasks_that_fail_unseen_those_of_the_library_are_passed_over(caplog):
    """As on a full disk: the first failure of several is raised, and is enough."""

    async def write_for_orbax():
        raise OSError("no room")

    async def of_another():
        raise OSError("no room")

    for coroutine in (write_for_orbax, of_another):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(asyncio.wait([loop.create_task(coroutine())]))
        loop.close()
        gc.collect()
    (message,) = caplog.messages
    assert "Task exception was never retrieved" in message and "of_another" in message
