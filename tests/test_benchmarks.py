import dataclasses
import json
import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from flax import nnx

from coop_jax import methods
from coop_jax.methods import Images, Learned
from coop_jax.methods.base import cross_entropy

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import counts
import deep
import heads
import lora
import memory
import models
import ours
import parts
import sides
import step
import test_time

KEYS = {
    "speedup",
    "speedup_cached_features",
    "memory_ratio",
    "gradient_error",
    "classes",
    "backbone",
    "device",
    "method",
    "dtype",
    "reference_dtype",
    "extrapolated",
    "seconds",
    "memory_bytes",
    "flops",
}


def settings(method="coop", images=False):
    return sides.Settings(
        classes=6,
        backbone="tiny",
        method=method,
        batch=2,
        images=images,
        dtype="float32",
        device="cpu",
        scan=1,
    )


@pytest.fixture(scope="module")
def recorded():
    """The vocabulary and class names that the benchmarks read."""
    for name in ("golden/bpe_simple_vocab_16e6.txt.gz", "coop_splits/imagenet_classnames.txt"):
        reference.path(name)


@pytest.fixture(scope="module", params=["coop", "cocoop"])
def problem(request, recorded) -> models.Problem:
    return settings(request.param).problem()


def test_class_names(recorded):
    assert models.class_names(2) == ["tench", "goldfish"]
    assert len(set(models.class_names(1000))) == 998
    many = models.class_names(21000)
    assert len(many) == 21000 and len(set(many)) == 20998


def product_flops(jaxpr) -> int:
    """FLOPs of every matrix product of a program, those of loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, _ = equation.params["dimension_numbers"][0]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * inner
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for parameter in equation.params.values():
            for part in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += times * product_flops(part)
    return total


def test_counted_flops_are_those_of_the_program(problem):
    graph, learned, fixed = nnx.split(problem.method, Learned, ...)

    def loss(learned):
        method = nnx.merge(graph, learned, fixed)
        texts = method.texts(problem.clip, None)
        logits = method.logits(problem.clip, texts, Images(features=problem.features))
        return cross_entropy(logits, problem.labels, np.ones(2, np.float32))

    conditional = problem.method_name == "cocoop"
    for program, training in ((loss, False), (jax.grad(loss), True)):
        expected = product_flops(jax.make_jaxpr(program)(learned).jaxpr)
        work = counts.our_text(
            models.BACKBONES["tiny"],
            problem.lengths,
            problem.n_ctx,
            2,
            4,
            conditional=conditional,
            training=training,
        )
        # The program pads the attention, and may leave out what nothing depends on.
        assert 0.85 < work.flops / expected < 1.15


def test_a_step_keeps_little_more_than_what_is_counted(recorded):
    problem = dataclasses.replace(settings(), classes=100).problem()
    graph, learned, fixed = nnx.split(problem.method, Learned, ...)

    def total(learned):
        return nnx.merge(graph, learned, fixed).texts(problem.clip, None).sum()

    memory = jax.jit(jax.grad(total)).lower(learned).compile().memory_analysis()
    tokens = 1 + problem.n_ctx + problem.lengths.sum()
    counted = 4 * tokens * counts.kept_values(models.BACKBONES["tiny"].text.transformer)
    assert memory.temp_size_in_bytes < 1.4 * counted


def test_lengths_are_those_of_the_prompts(problem):
    tokenizer = models.create_tokenizer()
    names = models.class_names(6)
    assert problem.lengths.tolist() == [len(tokenizer.ids(f"{name}.")) + 1 for name in names]


def test_work_of_the_reference_grows_with_its_77_tokens(problem):
    own, official = (sides.work(settings(), problem, side).flops for side in ("ours", "reference"))
    assert official > 3 * own


def test_step_of_our_side(recorded, capsys, monkeypatch):
    monkeypatch.setattr(sides, "memory_in_child", lambda *_: 10**6)
    monkeypatch.setattr(sides, "peaks_of", lambda *_: (1e11, 1e10))
    monkeypatch.setattr(models, "choose_device", lambda _: "cpu")
    step.main(["--classes=6", "--backbone=tiny", "--side=ours", "--steps=1"])
    printed = capsys.readouterr().out
    last = json.loads(printed.splitlines()[-1])
    assert last.keys() >= KEYS
    assert last["classes"] == 6 and last["speedup"] is None
    assert last["seconds"]["ours"] > 0


def test_tuning_of_our_side(recorded, capsys, monkeypatch):
    monkeypatch.setattr(models, "choose_device", lambda _: "cpu")
    test_time.main(["--classes=6", "--backbone=tiny", "--side=ours", "--steps=1", "--images=2"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["classes"] == 6 and last["views"] == 64 and last["speedup"] is None
    assert last["images_per_second"]["ours"] > 0


def test_images_share_the_pass_before_the_first_step(recorded):
    problem = settings("tpt").problem()

    def flops(count):
        views = np.zeros((count, problem.method.views.test, problem.features.shape[1]), np.float32)
        program = jax.make_jaxpr(lambda views: problem.method.tune(problem.clip, views))(views)
        return product_flops(program.jaxpr)

    encode = problem.method.prompts.encode
    program = jax.make_jaxpr(lambda context: encode(problem.clip, context))
    forward = product_flops(program(problem.method.context[...]).jaxpr)
    assert flops(1) == pytest.approx(3 * forward, rel=0.1)  # there, back, and there again
    assert flops(5) == pytest.approx(11 * forward, rel=0.1)


def test_parts_of_a_step_have_its_products(recorded):
    record = parts.main(["--classes=6", "--backbone=tiny", "--steps=1"])
    assert record["seconds"][parts.PRODUCTS] > 0
    assert {"normalisation", "activation"} < record["seconds"].keys()
    assert 0 < record["share_of_matmul_peak"] < record["share_of_matmul_peak_in_products"]


@pytest.mark.heavy
def test_deep_prompts_cost_hardly_more_products_than_a_context(recorded):
    record = deep.main(["--classes=6", "--backbone=tiny", "--steps=1", "--method=ivlp"])
    assert record["over_coop"].keys() == {"coop", "ivlp"}
    clip, tokenizer = models.create_clip("tiny"), models.create_tokenizer()

    def flops(name):
        names = models.class_names(6)
        method = methods.create(name, clip, tokenizer, names, deep.METHODS[name], seed=0)
        graph, learned, rest = nnx.split(method, Learned, ...)

        def total(learned):
            return nnx.merge(graph, learned, rest).texts(clip, None).sum()

        return product_flops(jax.make_jaxpr(jax.grad(total))(learned).jaxpr)

    for name in ("ivlp", "maple"):
        assert flops(name) == pytest.approx(flops("coop"), rel=0.01)


@pytest.mark.heavy
def test_pixels_take_less_memory_where_they_are_computed_again(recorded):
    chosen = ["--classes=6", "--backbone=tiny", "--batch=2", "--method=clip_lora"]
    (case,) = memory.main(chosen)["cases"]
    assert 2 * case["recomputed"] < case["kept"]


def test_heads_are_those_of_the_plain_loops():
    chosen = ["--classes=5", "--validation=20", "--shots=1", "--seeds=1", "--epochs=1"]
    assert heads.main(chosen)["error"] < 1e-5


def test_low_rank_step_of_our_side(recorded):
    chosen = ["--classes=6", "--backbone=tiny", "--batch=2", "--steps=1", "--side=ours"]
    record = lora.main(chosen)
    assert record["seconds"]["ours"] > 0 and record["speedup"] is None


@pytest.mark.heavy
@pytest.mark.torch
def test_low_rank_reference_agrees(recorded):
    chosen = lora.parse(["--classes=6", "--backbone=tiny", "--batch=2"])
    apart = lora.errors(chosen)
    assert len(apart) == 13 and max(apart.values()) < 1e-4


def test_extrapolation_is_marked():
    work = counts.Work(1.0, 1.0)
    rows = [
        step.Measured("ours", 6, 1.0, 10, work, (1.0, 1.0)),
        step.Measured("reference", 6, 8.0, 60, work, (1.0, 1.0), "extrapolated"),
    ]
    last = step.record(settings(), rows, 3, 0.0)
    assert last["extrapolated"] and last["reference_classes"] == 3
    assert last["speedup"] == 8 and last["memory_ratio"] == 6


@pytest.mark.torch
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_reference_agrees(method, recorded):
    import torch

    chosen = settings(method, images=method == "coop")
    problem = chosen.problem()
    official = sides.Official(chosen, problem)
    expected_features = official.reference.features(official.inputs).numpy()
    np.testing.assert_allclose(
        ours.image_features(problem), expected_features, rtol=1e-4, atol=1e-4
    )
    loss, gradients = ours.loss_and_gradient(problem)
    gradient = gradients["context"]
    assert official.run() == pytest.approx(loss, rel=1e-4)
    expected = official.reference.gradient()
    assert np.abs(gradient - expected).max() < 1e-4 * np.abs(expected).max()
    assert torch.isfinite(official.reference.learner.ctx).all()


@pytest.mark.torch
@pytest.mark.parametrize("method", ["coop", "cocoop"])
def test_counted_flops_are_those_of_the_reference(method, recorded):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    chosen = settings(method)
    problem = chosen.problem()
    official = sides.Official(chosen, problem)
    # The counter does not know the CPU's joint attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        official.run()
    work = sides.work(chosen, problem, "reference")
    assert work.flops == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_reference_tunes_alike(recorded):
    pytest.importorskip("torch")
    found = test_time.compare(settings("tpt"), 2, 1, with_reference=True)
    assert found["logits_error"] < 1e-4
