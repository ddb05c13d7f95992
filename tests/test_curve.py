"""What the curve shows: axes, marks that can be told apart, a legend that says what they are."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from report_results import make, zero_shot

from coop_jax.report import curve, few_shot

PROMPTS = [zero_shot(f"{word} {{}}.", 60.0) for word in ("a", "one", "the", "this", "that")]


def learned(shots, seeds=(1, 2, 3), methods=("coop",)):
    return [
        make(shots=number, seed=seed, method=method, accuracy=60.0 + number + seed)
        for number, seed, method in itertools.product(shots, seeds, methods)
    ]


def draw(results):
    """The axes of one dataset's picture, and the texts of its legend."""
    (sheets,) = few_shot.panels("few_shot", results)
    figure = curve.draw(sheets)
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    return axes, [text.get_text() for text in legend.get_texts()]


def mark_places(axes):
    """Colour, form and centre in points of every mark that is drawn."""
    found = []
    for line in axes.lines:
        if line.get_marker() != "None":
            for place in line.get_transform().transform(line.get_xydata()):
                points = 72 / axes.figure.dpi * place
                found.append((to_hex(line.get_color()), line.get_marker(), *points))
    return found


@pytest.mark.parametrize("shots", [(1,), (1, 2, 4), (1, 2, 4, 8, 16), (3, 32)])
@pytest.mark.parametrize("prompts", [[], PROMPTS])
def test_the_axis_ends_at_the_last_measured_shot(shots, prompts):
    axes, _ = draw([*learned(shots), *prompts])
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert sorted(ticks, key=int) == [*["0"] * bool(prompts), *map(str, shots)]
    low, high = axes.get_xlim()
    assert high < 1.5 * shots[-1]
    assert low <= min(x for x in axes.get_xticks()) and max(axes.get_xticks()) == shots[-1]


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ((1,), "one seed: no deviation"),
        ((1, 2, 3), "mean ± population standard deviation over 3 seeds"),
    ],
)
def test_the_legend_says_what_the_band_is(seeds, text):
    _, legend = draw([*learned((1, 2), seeds), PROMPTS[0]])
    assert legend == ['zero-shot CLIP, "a {}."', "CoOp, M = 16, end", text]
    _, legend = draw([*learned((1,), seeds), *learned((2,), (1, 2, 3, 4))])
    assert legend[-1] == f"mean ± population standard deviation over {len(seeds)} to 4 seeds"
    _, legend = draw(PROMPTS[:1])
    assert legend == ['zero-shot CLIP, "a {}."']


@pytest.mark.parametrize("shots", [(1,), (1, 2, 16)])
def test_no_mark_looks_like_another_or_hides_it(shots):
    methods = ("coop", "cocoop")
    axes, legend = draw([*learned(shots, methods=methods), *PROMPTS])
    found = mark_places(axes)
    assert len(found) == len(PROMPTS) + len(methods) * len(shots)
    looks = {(colour, form) for colour, form, *_ in found}
    assert len(looks) == len(PROMPTS) + 2 == len(legend) - 1
    for one, other in itertools.combinations(found, 2):
        assert np.hypot(*np.subtract(one[2:], other[2:])) > 3.5
    zeros = [x for *_, x, _ in found[: len(PROMPTS)]]
    assert max(zeros) < min(x for *_, x, _ in found[len(PROMPTS) :]) - 8


def test_looks_repeat_late():
    many = [zero_shot(f"{number} {{}}.", 60.0) for number in range(20)]
    axes, _ = draw([*many, *learned((1,), methods=[f"method_{n}" for n in range(42)])])
    assert len({(colour, form) for colour, form, *_ in mark_places(axes)}) == len(many) + 42
