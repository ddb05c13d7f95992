import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from report_results import (
    COCOOP,
    COCOOP_LABEL,
    COOP,
    COOP_LABEL,
    ELEVEN,
    SHIFTED,
    TEMPLATE,
    base_to_new,
    few_shot,
    make,
    transfer,
    zero_shot,
)
from rich.console import Console

from coop_jax import report
from coop_jax.errors import InputError
from coop_jax.report.sheet import Cell, Row, Sheet
from coop_jax.results import Result

ACCURACIES = {
    1: {1: 87.123, 2: 88.957, 3: 86.0401},
    2: {1: 88.0, 2: 89.55, 3: 87.25},
    8: {1: 90.14, 2: 90.14, 3: 90.18},
    16: {1: 91.8, 2: 92.05, 3: 91.95},
}
DASH = "\N{EN DASH}"


def experiment(**changes: Any):
    learned = [
        make(shots=shots, seed=seed, accuracy=accuracy, **changes)
        for shots, seeds in ACCURACIES.items()
        for seed, accuracy in seeds.items()
    ]
    return [
        *learned,
        zero_shot(TEMPLATE, 85.97, **changes),
        zero_shot("ensemble of 7", 86.29, **changes),
    ]


def mean(written, **keys):
    """numpy's mean accuracy of the results with these fields."""
    chosen = [one for one in written if all(getattr(one, k) == v for k, v in keys.items())]
    assert chosen
    return np.mean([one.accuracy for one in chosen])


def cells(sheet: Sheet) -> dict[str, dict[str, Any]]:
    """Means by label and column."""
    return {
        row.label: {
            column: value.cell.mean if value else None
            for column, value in zip(sheet.columns, row.values, strict=True)
        }
        for row in sheet.rows
    }


def cell_of(row: Row, column: int = -1) -> Cell:
    value = row.values[column]
    assert value is not None
    return value.cell


def printed(sheet: Sheet, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(sheet)
    return capture.get().splitlines()


def test_few_shot_table_equals_numpy():
    (sheet,) = report.tables(experiment(backbone="tiny"))
    assert sheet.header == ("shots per class", "0", "1", "2", "4", "8", "16")
    expected = [DASH]
    for shots in (1, 2, 4, 8, 16):
        values = np.array(list(ACCURACIES.get(shots, {}).values()))
        expected.append(f"{values.mean():.1f}±{values.std(ddof=0):.1f}" if len(values) else DASH)
    assert sheet.body() == [
        [f'"{TEMPLATE}"', "86.0", *[DASH] * 5],
        ["ensemble of 7", "86.3", *[DASH] * 5],
        ["CoOp, M = 16, end", *expected],
    ]
    assert sheet.title == "caltech101, tiny: few_shot, test split, 100 classes"
    assert sheet.caption == "accuracy in percent: mean ± population standard deviation over 3 seeds"


def test_one_seed_of_few_shots_has_neither_deviations_nor_empty_columns():
    results = [r for r in experiment(backbone="tiny") if r.shots in (0, 2) and r.seed in (0, 1)]
    (sheet,) = report.tables(results)
    assert sheet.header == ("shots per class", "0", "1", "2")
    assert ["CoOp, M = 16, end", DASH, DASH, "88.0"] in sheet.body()
    assert sheet.caption == "accuracy in percent: one seed"


def test_statistics_are_of_unrounded_values():
    (sheet,) = report.tables(experiment())
    for value in filter(None, sheet.rows[-1].values):
        accuracies = np.array(list(ACCURACIES[value.shots].values()))
        cell = value.cell
        assert cell.mean == pytest.approx(accuracies.mean(), rel=1e-12)
        assert cell.deviation == pytest.approx(accuracies.std(), rel=1e-12)
        assert cell.seeds == 3


def test_markdown_has_the_numbers_of_the_table():
    (sheet,) = report.tables([*experiment(), zero_shot("{} | [bold]", 50.0)])
    title, _, header, alignment, *body, _, caption = sheet.markdown().splitlines()
    assert title == f"**{sheet.title}**"
    assert caption == sheet.caption
    assert header == "| shots per class | 0 | 1 | 2 | 4 | 8 | 16 |"
    assert alignment == "| --- |" + " ---: |" * 6
    text = [line.replace("\\|", "/").strip("| ").split(" | ") for line in body]
    for got, line in zip(text, sheet.body(), strict=True):
        assert got[0] in (line[0].replace("|", "/"), f"*{line[0].strip()}*")
        assert [cell.strip(" |") for cell in got[1:]] == line[1 : len(got)]
    assert ['"{} / [bold]"', "50.0"] in [line[:2] for line in text]


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(width: int):
    written = [*few_shot(), *base_to_new(), *transfer("cross_dataset", ELEVEN[1:])]
    for sheet in report.tables([*written, *transfer("domain_generalization", SHIFTED)]):
        lines = printed(sheet, width)
        text = "\n".join(lines)
        assert max(map(len, lines)) <= width
        assert "…" not in text
        words = set(text.split())
        assert {cell for line in sheet.body() for cell in line[1:] if cell} <= words
        assert text.count("─ ") <= (1 if width == 120 else 2)


def test_several_methods_keep_their_order():
    none = {"settings": {}}
    written = [
        make(method="cocoop", n_ctx=4),
        make(class_specific=True, class_token_position="middle"),
        make(method="a_new_one", **none),
        make(method="linear_probe", **none),
        make(),
        zero_shot("ensemble of 2", 10.0),
        zero_shot(TEMPLATE, 20.0),
    ]
    assert [row.label for row in report.tables(written)[0].rows] == [
        "zero-shot CLIP, ensemble of 2",
        f'zero-shot CLIP, "{TEMPLATE}"',
        "CoCoOp, M = 4, end",
        "CoOp, M = 16, middle, class-specific",
        "a_new_one",
        "linear-probe CLIP",
        "CoOp, M = 16, end",
    ]


def test_one_seed_has_no_deviation_and_fewer_seeds_are_marked():
    (one,) = report.tables([make(accuracy=90.04, backbone="tiny")])
    assert one.body()[0][-1] == "90.0"
    results = [make(seed=seed, accuracy=89.0 + seed, backbone="tiny") for seed in (1, 2)]
    (some,) = report.tables([*results, make(shots=1, accuracy=80.0, backbone="tiny")])
    assert some.body()[0][2] == "80.0 (1)"
    assert some.body()[0][-1] == "90.5±0.5"
    assert some.caption.endswith("over 2 seeds, or (n) where fewer")


def test_other_numbers_of_shots_get_a_column():
    (sheet,) = report.tables([make(shots=3), make(shots=32)])
    assert sheet.columns == ("0", "1", "2", "3", "4", "8", "16", "32")


def test_a_seed_evaluated_twice_counts_once(caplog: pytest.LogCaptureFixture):
    (sheet,) = report.tables([make(accuracy=90.0), make(accuracy=90.0, seconds=1.0)])
    assert cell_of(sheet.rows[0]).seeds == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        (sheet,) = report.tables([make(accuracy=90.0), make(accuracy=91.0)])
    assert cell_of(sheet.rows[0]) == Cell(91.0, 0.0, 1)
    assert "several results" in caplog.text


def test_configs_that_a_label_does_not_tell_apart_get_their_hash():
    other = with_hashes(make(accuracy=20.0), config="f6a7b8c9")
    (sheet,) = report.tables([make(accuracy=10.0), other])
    assert {row.label: cell_of(row).mean for row in sheet.rows} == {
        "CoOp, M = 16, end [e5]": 10.0,
        "CoOp, M = 16, end [f6a7b8]": 20.0,
    }


def with_hashes(result: Result, **changes: str) -> Result:
    return dataclasses.replace(result, hashes=dataclasses.replace(result.hashes, **changes))


def test_configs_are_never_averaged_together():
    written = [make(accuracy=80.0), with_hashes(make(dataset="dtd"), config="f6a7b8c9")]
    assert [sheet.subject for sheet in report.tables(written)] == ["caltech101", "dtd"]
    both = [with_hashes(make(accuracy=82.0), config="f6a7b8c9"), *written]
    average, *_ = report.tables(both)
    assert {row.label: cell_of(row).mean for row in average.rows} == {
        "CoOp, M = 16, end [f6a7b8]": 86.0
    }


def test_images_of_tfds_do_not_merge_with_the_original_files():
    written = [
        make(seed=1, accuracy=10.0),
        with_hashes(make(seed=2, accuracy=20.0), data="f6a7b8c9"),
        zero_shot(TEMPLATE, 30.0),
        with_hashes(zero_shot(TEMPLATE, 40.0), split="0d1e2f3a"),
    ]
    (sheet,) = report.tables(written)
    found = {row.label: filter(None, row.values) for row in sheet.rows}
    assert {label: [one.cell.mean for one in values] for label, values in found.items()} == {
        f'zero-shot CLIP, "{TEMPLATE}" [data a1]': [30.0],
        f'zero-shot CLIP, "{TEMPLATE}" [data 0d1e2f]': [40.0],
        "CoOp, M = 16, end [data d0]": [10.0],
        "CoOp, M = 16, end [data f6a7b8]": [20.0],
    }


def test_labels_say_what_differs_in_words():
    half = make().config["clip"] | {"dtype": "float16"}
    written = [
        make(n_ctx=4),
        make(n_ctx=4, context_init="a_photo_of_a"),
        make(n_ctx=4, config={"clip": half}),
        zero_shot(TEMPLATE, 30.0, config={"clip": half}),
        zero_shot(TEMPLATE, 40.0),
    ]
    (sheet,) = report.tables(written)
    assert [row.label for row in sheet.rows] == [
        f'zero-shot CLIP, "{TEMPLATE}", float16',
        f'zero-shot CLIP, "{TEMPLATE}"',
        "CoOp, M = 4, end",
        COOP_LABEL,
        "CoOp, M = 4, end, float16",
    ]


def test_a_source_with_tfds_s_split_is_no_target():
    written = [
        make(protocol="cross_dataset", dataset=name, split="test of TFDS", trained_on="dtd of TFDS")
        for name in ("dtd", "eurosat", "food101")
    ]
    (sheet,) = report.tables(written)
    assert sheet.columns == ("DTD", "Food", "EuroSAT", "average")
    assert "over the 2 targets" in sheet.caption


def test_datasets_are_averaged_where_each_has_a_value():
    written = few_shot(("mine", "ucf101", "imagenet"))
    gone = {"dataset": "mine", "shots": 4, "method": "coop"}
    written = [one for one in written if not all(getattr(one, k) == v for k, v in gone.items())]
    sheets = report.tables(written)
    assert [sheet.subject for sheet in sheets] == [
        "average over 3 datasets",
        "imagenet",
        "ucf101",
        "mine",
    ]
    table = cells(sheets[0])
    assert list(table) == [
        "zero-shot CLIP, each dataset's prompt",
        "CoOp, M = 16, end",
        "linear-probe CLIP",
    ]
    assert table["CoOp, M = 16, end"]["4"] is None
    keys = {"method": "coop", "shots": 16}
    each = [mean(written, dataset=name, **keys) for name in ("mine", "ucf101", "imagenet")]
    np.testing.assert_allclose(table["CoOp, M = 16, end"]["16"], np.mean(each), rtol=1e-12)
    prompts = [mean(written, dataset=name, shots=0) for name in ("mine", "ucf101", "imagenet")]
    np.testing.assert_allclose(
        table["zero-shot CLIP, each dataset's prompt"]["0"], np.mean(prompts), rtol=1e-12
    )


def test_splits_and_backbones_are_never_averaged_together():
    written = [
        make(dataset="dtd"),
        make(dataset="eurosat", split="test of TFDS"),
        make(dataset="ucf101", backbone="RN101"),
    ]
    assert [sheet.subject for sheet in report.tables(written)] == ["dtd", "eurosat", "ucf101"]


def test_zero_shot_joins_every_protocol_with_the_same_classes():
    written = [
        zero_shot(TEMPLATE, 50.0, protocol="zero_shot"),
        zero_shot(TEMPLATE, 60.0, protocol="zero_shot", n_classes=50),
        make(),
        make(protocol="cross_dataset", trained_on="imagenet"),
    ]
    label = f'zero-shot CLIP, "{TEMPLATE}"'
    first = {sheet.protocol: cells(sheet)[label] for sheet in report.tables(written)}
    assert first["few_shot"]["0"] == 50.0
    assert first["cross_dataset"]["Caltech"] == 50.0
    assert first["zero_shot"]["0"] == 60.0


def test_harmonic_means_both_ways():
    written = base_to_new(("dtd", "eurosat"))
    average, dtd, eurosat = report.tables(written)

    def harmonic(base, new):
        return 2 / (1 / base + 1 / new)

    halves = {}
    for sheet, dataset in ((dtd, "dtd"), (eurosat, "eurosat")):
        accuracies = {
            half: np.array(
                [
                    one.accuracy
                    for one in written
                    if (one.dataset, one.split, one.method) == (dataset, half, "coop")
                ]
            )
            for half in ("base", "new")
        }
        base, new = halves[dataset] = [accuracies[half].mean() for half in ("base", "new")]
        by_seed = harmonic(accuracies["base"], accuracies["new"])
        row = cells(sheet)[COOP_LABEL]
        expected = {"base": base, "new": new, "H": harmonic(base, new), "H by seed": by_seed.mean()}
        assert row == pytest.approx(expected, rel=1e-12)
        (coop,) = (row for row in sheet.rows if row.label == COOP_LABEL)
        assert cell_of(coop, 3).deviation == pytest.approx(by_seed.std(), rel=1e-9)
    base, new = np.mean(list(halves.values()), axis=0)
    each = [harmonic(*pair) for pair in halves.values()]
    official = {"base": base, "new": new, "H": harmonic(base, new), "mean of H": np.mean(each)}
    assert cells(average)[COOP_LABEL] == pytest.approx(official, rel=1e-12)
    assert official["H"] != pytest.approx(official["mean of H"], abs=0.01)


def test_all_classes_get_a_column_and_several_shots_a_row_each():
    common = {"protocol": "base_to_new", "dataset": "dtd"}
    written = [
        make(split=split, accuracy=accuracy, shots=shots, **common)
        for split, accuracy in (("base", 80.0), ("new", 60.0), ("all", 50.0))
        for shots in (4, 16)
    ]
    (sheet,) = report.tables(written)
    assert sheet.columns == ("base", "new", "H", "H by seed", "all")
    assert [row.label.rpartition(", ")[2] for row in sheet.rows] == ["4 shots", "16 shots"]
    assert cells(sheet)["CoOp, M = 16, end, 4 shots"]["all"] == 50.0
    (halved,) = report.tables(written[:2])
    assert [value and value.cell.mean for value in halved.rows[0].values] == [80.0, *[None] * 3]


def test_transfer_averages_the_targets_without_the_source():
    targets = ("dtd", "caltech101", "mine")
    written = transfer("cross_dataset", targets)
    (sheet,) = report.tables(written)
    assert sheet.columns == ("ImageNet", "Caltech", "DTD", "mine", "average")
    for label, changes in ((COOP_LABEL, COOP), (COCOOP_LABEL, COCOOP)):
        method = changes.get("method", "coop")
        each = [mean(written, dataset=name, method=method) for name in targets]
        table = cells(sheet)[label]
        np.testing.assert_allclose(table["average"], np.mean(each), rtol=1e-12)
        source = mean(written, dataset="imagenet", method=method)
        np.testing.assert_allclose(table["ImageNet"], source, rtol=1e-12)
    assert "16 shots per class" in sheet.caption
    incomplete = [one for one in written if (one.dataset, one.method) != ("dtd", "cocoop")]
    assert cells(report.tables(incomplete)[0])[COCOOP_LABEL]["average"] is None


def test_each_source_has_its_table():
    written = [
        make(protocol="cross_dataset", dataset=dataset, trained_on=source, accuracy=accuracy)
        for dataset, source, accuracy in (("dtd", "imagenet", 40.0), ("dtd", "sun397", 50.0))
    ]
    found = {sheet.subject: cell_of(sheet.rows[0], 0).mean for sheet in report.tables(written)}
    assert found == {
        "cross_dataset from imagenet": 40.0,
        "cross_dataset from sun397": 50.0,
    }


def test_no_results():
    with pytest.raises(InputError, match="got none"):
        report.tables([])
