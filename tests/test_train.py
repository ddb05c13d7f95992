"""The step and the loop: frozen weights, devices, resuming, and what a checkpoint holds."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CLASS_NAMES, make_clip
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import products

from coop_jax import methods, optim, parallel, states, train
from coop_jax.checkpoint import Checkpoints
from coop_jax.chunks import Batches, left, plan, resumable
from coop_jax.data import sampling
from coop_jax.errors import InputError
from coop_jax.methods import Fixed, Images, Learned, Stage

EPOCHS, COUNT = 4, 12


def problem(
    clip,
    tokenizer,
    batch_size=5,
    epochs=EPOCHS,
    name="coop",
    dtype="float32",
    shards=1,
    seed=1,
    learning_rate=0.002,
    names=CLASS_NAMES,
    **config,
):
    """A method, its stage, its batches, and random image features that depend on the epoch."""
    method = methods.create(name, clip, tokenizer, names, config, seed=seed, shards=shards)
    order, epoch = sampling.batch_order(COUNT, batch_size, epochs, seed=seed)
    labels = np.arange(COUNT, dtype=np.int32) % len(names)
    config = optim.OptimizerConfig(learning_rate=learning_rate, dtype=dtype)
    rate = optim.learning_rates(config, epochs, 1)[epoch]
    table = np.random.default_rng(0).normal(size=(epochs, COUNT, 24)).astype(np.float32)

    def features_of(requests):
        return Images(features=table[requests[:, 0], requests[:, 1]])

    return method, Stage(optimizer=config), Batches(order, epoch, rate, labels), features_of


def first_steps(batches, steps):
    """The batches of a run that was stopped."""
    return Batches(
        batches.order[:steps], batches.epoch[:steps], batches.rate[:steps], batches.labels
    )


def run(clip, parts, mesh, *, checkpoints=None, **options):
    return run_together(clip, [parts], mesh, checkpoints=[checkpoints], **options)[0]


def run_together(clip, problems, mesh, *, checkpoints=None, **options):
    """The losses of each run."""
    stage, losses = problems[0][1], [[] for _ in problems]
    runs = [
        train.Run(method, batches, features_of, saved)
        for (method, _, batches, features_of), saved in zip(
            problems, checkpoints or [None] * len(problems), strict=True
        )
    ]
    for chunk in train.fit(runs, clip, stage, mesh, **options):
        for progress in chunk:
            losses[progress.run].extend(progress.losses)
            assert progress.done <= runs[progress.run].batches.steps
    return [np.asarray(found) for found in losses]


def test_training_lowers_the_loss_and_changes_nothing_frozen(tiny_clip, tiny_tokenizer, one_device):
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(tiny_clip)))
    parts = problem(tiny_clip, tiny_tokenizer, epochs=30)
    method = parts[0]
    fixed = jax.tree.map(np.array, nnx.state(method, Fixed))
    start = np.array(method.context[...])
    losses = run(tiny_clip, parts, one_device)
    assert losses[-6:].mean() < losses[:6].mean()
    assert not np.array_equal(method.context[...], start)
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(tiny_clip)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    jax.tree.map(np.testing.assert_array_equal, fixed, nnx.state(method, Fixed))


def test_frozen_weights_cost_no_gradient_and_no_optimizer_memory(
    tiny_clip, tiny_tokenizer, one_device
):
    method, stage, _, _ = problem(tiny_clip, tiny_tokenizer)
    state = states.initial_state(method, tiny_clip, stage)
    learned = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(method, Learned)))
    optimizer_sizes = [leaf.size for leaf in jax.tree.leaves(state["optimizer"])]
    assert sum(optimizer_sizes) == learned  # momentum

    graph, learned_state, fixed = nnx.split(method, Learned, ...)
    clip_graph, frozen = nnx.split(tiny_clip)
    optimizer = optim.create(stage.optimizer)
    steps = train.compile_steps(
        graph, clip_graph, optimizer, (), one_device, averages=False, texts_per_image=False
    )
    data = (
        Images(features=np.zeros((1, 2, 5, 24), np.float32)),
        np.zeros((1, 2, 5), np.int32),
        np.ones((1, 2, 5), np.float32),
        np.ones((1, 2), np.float32),
        np.zeros((1, 2), np.float32),
        np.zeros((1, 2, 2), np.uint32),
    )
    arguments = [state], fixed, frozen, data
    [new_state], terms, _ = jax.eval_shape(steps, *arguments)
    program = jax.make_jaxpr(steps)(*arguments)
    kernels = {leaf.shape[-2:] for leaf in jax.tree.leaves(frozen) if leaf.ndim == 3}
    made = {
        variable.aval.shape for equation in products(program.jaxpr) for variable in equation.outvars
    }
    assert len(made) > 5 and not made & kernels
    assert terms["cross_entropy"].shape == (1, 2)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    assert learned_state.keys() == new_state["learned"].keys() == {"context"}


@pytest.mark.parametrize(
    ("name", "batch_size", "config"),
    [
        ("coop", 5, {}),
        ("coop", 8, {"class_specific": True, "n_ctx": 3}),
        ("cocoop", 1, {}),
    ],
)
def test_two_and_eight_devices_agree_with_one(
    tiny_clip, tiny_tokenizer, one_device, name, batch_size, config
):
    """Images and classes are split over the devices; more shards than classes, too."""

    def trained(mesh):
        parts = problem(
            tiny_clip, tiny_tokenizer, batch_size, name=name, shards=mesh.size, **config
        )
        losses = run(tiny_clip, parts, mesh)
        return losses, np.array(parts[0].context[...])

    losses, context = trained(one_device)
    for count in (2, 8):
        other_losses, other_context = trained(parallel.create_mesh(jax.devices()[:count]))
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        np.testing.assert_allclose(other_context, context, atol=1e-5 * np.abs(context).max())


def test_how_the_steps_are_cut_into_chunks_changes_nothing(tiny_clip, tiny_tokenizer, one_device):
    whole, cut = (problem(tiny_clip, tiny_tokenizer) for _ in range(2))
    losses = run(tiny_clip, whole, one_device)
    np.testing.assert_array_equal(run(tiny_clip, cut, one_device, images_per_chunk=1), losses)
    np.testing.assert_array_equal(cut[0].context[...], whole[0].context[...])


SEVERAL = [
    {"seed": 1},
    {"seed": 2, "learning_rate": 0.02},
    {"seed": 3, "epochs": 2, "batch_size": 3},
]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "config", "devices"),
    [
        ("coop", {}, 1),
        ("coop", {"class_specific": True, "n_ctx": 3}, 2),
        ("cocoop", {"n_ctx": 4}, 2),
    ],
)
def test_runs_side_by_side_are_each_what_they_are_alone(
    tiny_clip, tiny_tokenizer, name, config, devices
):
    """Seeds, learning rates, lengths and batch sizes differ."""
    mesh = parallel.create_mesh(jax.devices()[:devices])

    def create(own):
        return problem(
            tiny_clip,
            tiny_tokenizer,
            name=name,
            shards=devices,
            names=("circle", "hen-of-the-woods", "a", "seven"),
            **config,
            **own,
        )

    alone = [create(own) for own in SEVERAL]
    expected = [run(tiny_clip, parts, mesh) for parts in alone]

    together = [create(own) for own in SEVERAL]
    losses = run_together(tiny_clip, together, mesh)
    for got, other, parts, own in zip(losses, expected, together, alone, strict=True):
        np.testing.assert_allclose(got, other, rtol=1e-5)
        context = np.asarray(own[0].context[...])
        np.testing.assert_allclose(
            parts[0].context[...], context, rtol=0, atol=1e-5 * np.abs(context).max()
        )


def test_a_class_specific_context_is_split_over_devices_with_its_classes(tiny_clip, tiny_tokenizer):
    mesh = parallel.create_mesh(jax.devices()[:2])
    names = ("circle", "hen-of-the-woods", "a", "seven")
    parts = problem(tiny_clip, tiny_tokenizer, shards=2, names=names, class_specific=True, n_ctx=3)
    method, stage, _, _ = parts
    state = parallel.place(states.initial_state(method, tiny_clip, stage), mesh)
    large = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 3]
    assert len(large) == 2  # the context and its momentum
    assert {leaf.addressable_shards[0].data.shape for leaf in large} == {(2, 3, 32)}


@pytest.mark.parametrize(("saved_on", "restored_on"), [(1, 1), (8, 1), (1, 8)])
def test_resuming_on_other_devices_continues_the_run(
    tiny_clip, tiny_tokenizer, tmp_path, saved_on, restored_on
):
    def mesh(count):
        return parallel.create_mesh(jax.devices()[:count])

    whole = problem(tiny_clip, tiny_tokenizer)
    expected = run(tiny_clip, whole, mesh(1))

    method, stage, batches, features_of = problem(tiny_clip, tiny_tokenizer)
    half = first_steps(batches, 4)
    checkpoints = Checkpoints(tmp_path)
    first = run(
        tiny_clip, (method, stage, half, features_of), mesh(saved_on), checkpoints=checkpoints
    )
    saved = np.array(method.context[...])
    checkpoints.close()

    again = problem(tiny_clip, tiny_tokenizer)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(
        parallel.put(
            states.initial_state(again[0], tiny_clip, again[1]),
            parallel.replicated(mesh(restored_on)),
        ),
        4,
    )
    assert int(restored["step"]) == 4
    np.testing.assert_array_equal(restored["learned"]["context"][...], saved)
    assert len(restored["learned"]["context"][...].devices()) == restored_on
    rest = run(tiny_clip, again, mesh(restored_on), checkpoints=checkpoints)
    checkpoints.close()
    np.testing.assert_allclose(np.concatenate([first, rest]), expected, rtol=1e-5)
    np.testing.assert_allclose(again[0].context[...], whole[0].context[...], atol=1e-6)


def test_a_checkpoint_is_small_and_fits_only_its_method(
    tiny_clip, tiny_tokenizer, tmp_path, one_device
):
    parts = problem(tiny_clip, tiny_tokenizer)
    checkpoints = Checkpoints(tmp_path)
    run(tiny_clip, parts, one_device, checkpoints=checkpoints)
    frozen = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(tiny_clip)))
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert written < frozen / 2
    other = problem(tiny_clip, tiny_tokenizer, class_specific=True)
    with pytest.raises(InputError, match=r"context.value': \[5, 16, 32\].* got .*: \[16, 32\]"):
        run(tiny_clip, other, one_device, checkpoints=checkpoints)
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's
def test_a_damaged_checkpoint_is_refused_or_read_as_it_was(
    tiny_clip, tiny_tokenizer, tmp_path, one_device, caplog
):
    """One byte is another, in several places of every file of numbers."""
    parts = problem(tiny_clip, tiny_tokenizer)
    checkpoints = Checkpoints(tmp_path)
    run(tiny_clip, parts, one_device, checkpoints=checkpoints)
    checkpoints.close()
    outcomes = collections.Counter()
    for path in [path for path in tmp_path.rglob("d/*") if path.is_file()]:
        whole = path.read_bytes()
        for share in (0.1, 0.5, 0.9):
            damaged = bytearray(whole)
            damaged[int(share * len(whole))] ^= 0xFF
            path.write_bytes(damaged)
            checkpoints = Checkpoints(tmp_path)
            try:
                state = checkpoints.ended(states.initial_state(parts[0], tiny_clip, parts[1]))
                if state is None:
                    assert "is damaged" in caplog.messages.pop()
                    outcomes["refused"] += 1
                    continue
                got, expected = state["learned"]["context"], parts[0].context
                np.testing.assert_array_equal(got[...], expected[...])
                outcomes["read"] += 1
            finally:
                checkpoints.close()
        path.write_bytes(whole)
    assert outcomes["refused"] >= 6, outcomes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_training_on_a_half_precision_clip(tiny_clip, tiny_tokenizer, one_device, dtype):
    half = make_clip(tiny_tokenizer, "vit", dtype)
    exact_parts = problem(tiny_clip, tiny_tokenizer, n_ctx=4)
    half_parts = problem(half, tiny_tokenizer, n_ctx=4)
    exact, losses = (
        run(clip, parts, one_device)
        for clip, parts in ((tiny_clip, exact_parts), (half, half_parts))
    )
    np.testing.assert_allclose(losses, exact, rtol=20 * float(jnp.finfo(dtype).eps))
    assert half_parts[0].context.dtype == jnp.float32


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_training_in_pure_float16(tiny_clip, tiny_tokenizer, tmp_path, one_device, name):
    half = make_clip(tiny_tokenizer, "vit", jnp.float16)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(half)))
    exact = run(tiny_clip, problem(tiny_clip, tiny_tokenizer, name=name, n_ctx=4), one_device)

    parts = problem(half, tiny_tokenizer, name=name, dtype="float16", n_ctx=4)
    method, stage, batches, features_of = parts
    start = np.array(method.context[...])
    first = first_steps(batches, 4)
    checkpoints = Checkpoints(tmp_path)
    losses = run(half, (method, stage, first, features_of), one_device, checkpoints=checkpoints)
    assert all(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(nnx.state(method, Learned)))
    assert not np.array_equal(method.context[...], start.astype(np.float16))
    saved = checkpoints.restore(states.initial_state(method, half, stage), 4)
    kinds = {(leaf.dtype.name, leaf.ndim > 0) for leaf in jax.tree.leaves(saved)}
    assert kinds == {("float16", True), ("int32", False)}  # the rest counts steps
    np.testing.assert_array_equal(saved["learned"]["context"][...], method.context[...])

    again = problem(half, tiny_tokenizer, name=name, dtype="float16", n_ctx=4)
    losses = np.concatenate([losses, run(half, again, one_device, checkpoints=checkpoints)])
    checkpoints.close()
    np.testing.assert_allclose(losses, exact, rtol=20 * float(jnp.finfo(jnp.float16).eps))
    assert again[0].context.dtype == jnp.float16
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(half)))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1, max_size=4),
    images=st.sampled_from([1, 9, 20, 1000]),
    data=st.data(),
)
def test_chunks_cover_every_step_of_every_run_once(lengths, images, data):
    runs = [
        Batches(
            np.zeros((epochs * steps, 2), int),
            np.repeat(np.arange(epochs), steps),
            np.zeros(epochs * steps),
            np.zeros(1, int),
        )
        for epochs, steps in lengths
    ]
    chunks = plan(runs, images)
    ends = resumable([range(run.steps + 1) for run in runs], chunks)
    done = data.draw(st.sampled_from(ends))
    for begun in ((0,) * len(runs), done):
        rest = left(chunks, begun)
        for index, run in enumerate(runs):
            pieces = [piece for chunk in rest for piece in chunk if piece.run == index]
            steps = [step for piece in pieces for step in range(piece.start, piece.stop)]
            assert steps == list(range(begun[index], run.steps))
        for chunk in rest:
            assert len({piece.stop - piece.start for piece in chunk}) == 1
    assert ends[-1] == (0,) * len(runs) and ends[0] == tuple(run.steps for run in runs)
    if len(runs) > 1:
        assert left(chunks, done) == chunks[len(chunks) - len(left(chunks, done)) :]
        assert len(ends) == len(chunks) + 1
