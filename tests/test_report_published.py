import csv
import dataclasses
import io

import pytest
from report_results import (
    COCOOP,
    COCOOP_LABEL,
    COOP,
    COOP_LABEL,
    ELEVEN,
    PROBE,
    SHIFTED,
    TEMPLATE,
    base_to_new,
    few_shot,
    make,
    published_numbers,
    transfer,
    zero_shot,
)

from coop_jax import report
from coop_jax.report.sheet import csv_text


def published(written, **keys):
    """The published number and status of the one value with these fields of its CSV line."""
    records = [record for sheet in report.tables(written) for record in sheet.records()]
    found = [one for one in records if all(one[key] == value for key, value in keys.items())]
    assert len(found) == 1, found
    return found[0]["published"], found[0]["status"]


def test_no_two_numbers_answer_the_same_question():
    keys = [
        {key: value for key, value in record.items() if key not in ("value", "status", "source")}
        for record in published_numbers()
    ]
    assert len(keys) > 300
    assert all(keys.count(key) == 1 for key in keys)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({**COOP, "split": "base"}, (76.47, "source_image")),
        ({**COOP, "split": "new"}, (67.88, "source_image")),
        ({**COCOOP, "split": "base"}, (75.98, "source_image")),
        ({**COOP, "split": "base", "n_ctx": 16}, (None, None)),
        ({**COOP, "split": "base", "class_specific": True}, (None, None)),
        ({**COOP, "split": "base", "class_token_position": "middle"}, (None, None)),
        ({**COOP, "split": "base", "context_init": ""}, (None, None)),
        ({**COOP, "split": "base", "backbone": "RN50"}, (None, None)),
        ({**COOP, "split": "base", "shots": 4}, (None, None)),
        ({**COOP, "split": "base of TFDS"}, (None, None)),
        ({**COOP, "split": "all"}, (None, None)),
        ({**COCOOP, "split": "base", "n_ctx": 16}, (None, None)),
        ({**COCOOP, "split": "base", "context_init": ""}, (None, None)),
        ({**COCOOP, "split": "base", "config": {"batch_size": 32}}, (None, None)),
        ({**COOP, "split": "base", "n_classes": 499}, (None, None)),
    ],
)
def test_base_to_new_numbers_are_matched(changes: dict, expected: tuple):
    result = make(protocol="base_to_new", dataset="imagenet", **changes)
    assert published([result], split=result.split) == expected


def test_averages_are_matched_if_the_datasets_are_the_papers():
    learned = {"dataset": "average over 11 datasets", "method": COOP_LABEL}
    for split, number in (("base", 82.69), ("new", 63.22), ("H", 71.66)):
        assert published(base_to_new(), split=split, **learned)[0] == number
    assert published(base_to_new(), split="mean of H", **learned) == (None, None)
    fewer = learned | {"dataset": "average over 10 datasets"}
    assert published(base_to_new(ELEVEN[1:]), split="base", **fewer) == (None, None)
    label = "zero-shot CLIP, each dataset's prompt"
    everywhere = {"dataset": "average over 11 datasets", "method": label}
    assert published(few_shot(), **everywhere) == (58.77, "derived_from_source")


def test_transfer_numbers_are_matched():
    crossed = transfer("cross_dataset", ELEVEN[1:])
    label = {"method": COCOOP_LABEL}
    assert published(crossed, dataset="imagenet", **label)[0] == 71.02
    assert published(crossed, dataset="eurosat", **label)[0] == 45.37
    assert published(crossed, dataset="average over 10 targets", **label)[0] == 65.74
    shifted = transfer("domain_generalization", SHIFTED)
    assert published(shifted, dataset="average over 4 targets", **label)[0] == 59.9
    prompt = {"method": f'zero-shot CLIP, "{TEMPLATE}"'}
    assert published(shifted, dataset="imagenet_r", **prompt)[0] == 73.96


def test_contexts_that_began_differently_have_different_numbers():
    common = {
        "protocol": "domain_generalization",
        "dataset": "imagenet_a",
        "trained_on": "imagenet",
    }
    words, random = COOP, COOP | {"context_init": ""}
    assert published([make(**common, **words)], dataset="imagenet_a")[0] == 49.71
    assert published([make(**common, **random)], dataset="imagenet_a")[0] == 49.9
    sixteen = random | {"n_ctx": 16, "backbone": "RN50"}
    assert published([make(**common, **sixteen)]) == (22.12, "memory_unverified")


SGD = make().config["optimizer"]
ELSEWHERE = {"dataset": "/data/caltech101", "targets": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"epochs": 20}},
        {"config": {"batch_size": 64}},
        {"config": {"sampling": "linear_probe"}},
        {"config": {"optimizer": SGD | {"learning_rate": 0.02}}},
        {"config": {"optimizer": SGD | {"dtype": "bfloat16"}}},
        {"config": {"optimizer": "SGD"}},
        {"config": {"augmentation": {"scale": [0.6, 1.0], "ratio": [0.75, 1.5], "flip": 0.5}}},
        {"config": {"clip": {"name": "RN50", "dtype": "bfloat16", "tokenizer": ""}}},
        {"config": ELSEWHERE},
        {"trained_on": "imagenet"},
        {"n_classes": 101},
        {"n_examples": 2464},
    ],
)
def test_what_is_not_the_papers_experiment_has_no_number(changes: dict):
    assert published([make()])[0] == 92.07
    assert published([make(**changes)]) == (None, None)
    if changes.keys() <= {"n_classes", "n_examples"} or changes.get("config") is ELSEWHERE:
        assert published([zero_shot(TEMPLATE, 80.0, **changes)]) == (None, None)


def test_one_other_experiment_among_several_leaves_the_average_without_number():
    written = few_shot()
    label = {"dataset": "average over 11 datasets", "method": "CoOp, M = 16, end", "shots": 16}
    assert published(written, **label)[0] == 73.45
    other = dataclasses.replace(written[3], n_examples=1, correct="gA==")
    assert (other.shots, other.method) == (1, "coop")
    assert published([*written, other], **label)[0] == 73.45
    assert published([*written, other], **(label | {"shots": 1})) == (None, None)


def test_the_official_precision_has_the_papers_numbers():
    half = {"clip": make().config["clip"] | {"dtype": "float16"}}
    config = half | {"optimizer": SGD | {"dtype": "float16"}}
    assert published([make(config=config)])[0] == published([make()])[0] is not None


def test_the_seven_templates_have_a_number_of_their_own():
    prompts = ["7 ImageNet templates", "80 ImageNet templates", TEMPLATE]
    written = [zero_shot(prompt, 60.0, dataset="imagenet") for prompt in prompts]
    (sheet,) = report.tables(written)
    found = {record["method"]: record["published"] for record in sheet.records()}
    assert found[f"zero-shot CLIP, {prompts[0]}"] == 60.41
    assert found[f"zero-shot CLIP, {prompts[1]}"] is None
    assert found[f'zero-shot CLIP, "{TEMPLATE}"'] == 58.18


def test_the_dataset_s_own_template_has_the_zero_shot_number():
    written = [
        zero_shot("ensemble of 7", 60.0),
        zero_shot(TEMPLATE, 61.0),
        zero_shot("art of the {}.", 62.0),
    ]
    (sheet,) = report.tables(written)
    found = [record["published"] for record in sheet.records()]
    assert found == [None, 86.29, None]


@pytest.mark.parametrize("protocol", ["few_shot", "base_to_new", "cross_dataset"])
def test_splits_of_tfds_have_no_numbers(protocol: str):
    if protocol == "few_shot":
        written = few_shot(split="test of TFDS")
    elif protocol == "base_to_new":
        written = base_to_new(origin=" of TFDS")
    else:
        written = [
            make(protocol=protocol, dataset=name, split="test of TFDS", trained_on="imagenet")
            for name in ELEVEN
        ]
    sheets = report.tables(written)
    assert not any(record["published"] for sheet in sheets for record in sheet.records())
    assert not any("published" in sheet.markdown() for sheet in sheets)
    assert any("average" in record["dataset"] for sheet in sheets for record in sheet.records())


def test_splits_of_tfds_do_not_merge_with_coops():
    written = [*base_to_new(("dtd",)), *base_to_new(("dtd",), origin=" of TFDS")]
    coop, tfds = report.tables(written)
    assert "TFDS" not in coop.title
    assert tfds.title.endswith("base_to_new, split of TFDS, 16 shots")
    assert {value.split for row in tfds.rows for value in row.values if value} == {
        f"{half} of TFDS" for half in ("base", "new", "H", "H by seed")
    }


def test_published_rows_and_their_marks():
    written = [
        make(accuracy=92.0, **PROBE),
        make(shots=1, accuracy=88.0),
    ]
    (sheet,) = report.tables(written)
    lines = [[line[0], line[2], line[-1]] for line in sheet.body()]
    dash = "\N{EN DASH}"
    assert lines == [
        ["linear-probe CLIP", dash, "92.0"],
        ["  published", "", "~90.6"],
        ["  difference", "", "+1.4"],
        ["CoOp, M = 16, end", "88.0", dash],
        ["  published", "*87.8", ""],
        ["  difference", "+0.2", ""],
    ]
    assert "~ from memory, unverified" in sheet.caption
    assert "* as the APE paper plots CoOp" in sheet.caption
    (read,) = report.tables([make(dataset="imagenet", shots=1)])
    assert read.body()[1][2] == "57.1"
    assert "~" not in read.caption and "*" not in read.caption


def test_csv_equals_the_results():
    written = [*few_shot(("dtd", "imagenet")), *transfer("domain_generalization", SHIFTED)]
    sheets = report.tables(written)
    lines = list(csv.DictReader(io.StringIO(csv_text(sheets))))
    assert " ".join(lines[0]) == (
        "protocol dataset split backbone method uses shots mean deviation seeds published status"
        " difference"
    )
    assert len(lines) == sum(
        value is not None for s in sheets for r in s.rows for value in r.values
    )
    checked = 0
    for line in lines:
        if line["method"] != "CoOp, M = 16, end" or line["dataset"] == "average over 2 datasets":
            continue
        chosen = [
            one.accuracy
            for one in written
            if (one.protocol, one.dataset, one.split, one.backbone, str(one.shots))
            == tuple(line[key] for key in ("protocol", "dataset", "split", "backbone", "shots"))
            and one.method == "coop"
        ]
        assert float(line["mean"]) == pytest.approx(sum(chosen) / 3, rel=1e-12)
        assert line["seeds"] == "3"
        assert float(line["difference"]) == pytest.approx(
            float(line["mean"]) - float(line["published"]), abs=1e-9
        )
        checked += 1
    assert checked == 10
    averages = [line for line in lines if line["dataset"].startswith("average")]
    assert all(line["deviation"] == "" for line in averages)
